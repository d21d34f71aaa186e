"""What EAIN looks at: attention, gates and masks of a trained network.

Its layers sow them into 'intermediates'; here they meet the names of what they
stand for, as averages over many requests of the test part, and of a few
requests that one can read. Which those are a fixed hash decides, so that
nobody picks what looks well.

A pair is a row of the part with one candidate; what is sown of it does not
depend on the other candidates of its request.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from eain_jax.data.batches import Batch, Packer
from eain_jax.data.dataset import Dataset
from eain_jax.data.examples import Part, hash_bits, segment_ranges
from eain_jax.data.features import (
  NUM_RESERVED,
  SECONDS_PER_DAY,
  Feature,
)
from eain_jax.layers.embedding import embed_batch
from eain_jax.models import Model
from eain_jax.models.eain import EAIN
from eain_jax.models.fields import field_names

NUM_EXAMPLES = 4
# Events of an example: enough to choose among, few enough to read.
EXAMPLE_EVENTS = (5, 20)
NUM_AVERAGED = 2_000
MAX_RANK = 20
# A mean over fewer tells more of them than of the network.
MIN_REQUESTS = 30
QUANTILES = (0.1, 0.9)
UNKNOWN_VALUE = '(unknown)'
_PAIRS_A_BATCH = 256
_HASH_KEY = 0x100C


@dataclasses.dataclass(frozen=True)
class Sown:
  """What the network makes of B pairs; None where it lacks the layer.

  Attributes:
    logit_B: float32 [B].
    attention: by pair float32 [T], the weights of its history, oldest first.
    gate_BF: float32 [B, F], of each field.
    mask_BP: float32 [B, P], of each pair of fields the mean |M| over D.
  """

  logit_B: np.ndarray
  attention: list[np.ndarray] | None
  gate_BF: np.ndarray | None
  mask_BP: np.ndarray | None


def make_sow(
  features: Sequence[Feature], model: Model
) -> Callable[[Any, Any, Batch], dict[str, jax.Array]]:
  """`sow(params, stats, batch)`: what the layers make of B = R * C pairs.

  Args:
    features: of the dataset.
    model: any; one without a layer sows nothing of it.

  Returns:
    By name float32 'logit' [B], 'attention' [N * C], 'gate' [B, F], 'mask'
    [B, P], the mean |M| over D.
  """

  read = model.reads(features)

  @jax.jit
  def sow(params, stats, batch):
    inputs = embed_batch(params['tables'], batch, read, model.compute_dtype)
    variables = {'params': params['net'], 'stats': stats}
    logit_RC, found = cast(
      tuple[jax.Array, Mapping[str, Any]],
      model.apply(variables, inputs, mutable=['intermediates']),
    )
    layers = found.get('intermediates', {})
    sown: dict[str, jax.Array] = {'logit': logit_RC.reshape(-1)}
    if 'attention' in layers:
      (weight_NC,) = layers['attention']['attention_weight']
      sown['attention'] = weight_NC.reshape(-1)
    if 'squeeze_excitation' in layers:
      (sown['gate'],) = layers['squeeze_excitation']['gate']
    if 'mask_block' in layers:
      (mask_BPD,) = layers['mask_block']['mask']
      sown['mask'] = jnp.abs(mask_BPD.astype(jnp.float32)).mean(-1)
    return {name: x.astype(jnp.float32) for name, x in sown.items()}

  return sow


def make_look(
  dataset: Dataset, model: EAIN, params: Any, stats: Any, part: Part
) -> Callable[[np.ndarray, np.ndarray], Sown]:
  """`look(row_B, item_B) -> Sown`: pairs of the part's rows and candidates.

  Args:
    dataset: an open dataset.
    model: the network.
    params: of it.
    stats: of it.
    part: of the dataset.
  """

  sow = make_sow(dataset.features, model)
  packer = Packer(
    dataset,
    part,
    dataset.config.history_length,
    _PAIRS_A_BATCH,
    0,
    0,
    model.reads(dataset.features),
  )

  def look(row_B: np.ndarray, item_B: np.ndarray) -> Sown:
    start_B, end_B = packer.history_range(row_B)
    length_B = end_B - start_B
    first = np.arange(0, len(row_B), _PAIRS_A_BATCH)
    num_events = max(1, int(np.add.reduceat(length_B, first).max()))
    num_items = 1 + min(num_events + _PAIRS_A_BATCH, dataset.num_items)
    found: dict[str, list[np.ndarray]] = {}
    for begin in first:
      pairs = slice(begin, begin + _PAIRS_A_BATCH)
      item_B1 = item_B[pairs, None]
      blank_B1 = np.ones(item_B1.shape)
      batch = packer.pack(
        row_B[pairs], item_B1, blank_B1, blank_B1, 0, num_events, num_items
      )
      real = {'attention': int(length_B[pairs].sum())}
      for name, values in sow(params, stats, batch).items():
        kept = np.asarray(values)[: real.get(name, len(item_B1))]
        found.setdefault(name, []).append(kept)
    sown = {name: np.concatenate(values) for name, values in found.items()}
    attention = None
    if 'attention' in sown:
      attention = np.split(sown['attention'], np.cumsum(length_B)[:-1])
    return Sown(sown['logit'], attention, sown.get('gate'), sown.get('mask'))

  return look


def _in_hash_order(rows: np.ndarray) -> np.ndarray:
  """Rows of a part in an order that has to do with nothing in them."""
  return rows[np.argsort(hash_bits(_HASH_KEY, rows), kind='stable')]


def mask_matrix(
  mask_P: np.ndarray, num_fields: int
) -> list[list[float | None]]:
  """F lists of F, symmetric, None on the diagonal, from the pairs i < j."""
  matrix = np.zeros((num_fields, num_fields))
  matrix[np.triu_indices(num_fields, 1)] = mask_P
  matrix += matrix.T
  return [
    [None if i == j else float(matrix[i, j]) for j in range(num_fields)]
    for i in range(num_fields)
  ]


def attention_by_rank(
  attention: Sequence[np.ndarray], is_share: bool
) -> list[dict[str, Any]]:
  """The mean weight of the newest event, of the one before it, and so on.

  Args:
    attention: by request its weights, oldest first.
    is_share: weights of a request sum to one.

  Returns:
    By rank, the newest is 1, {'rank', 'weight', 'even', 'requests'}: means over
    the requests that have so many events. 'even' is what the event would have
    if all of its history weighed alike; None where weights are no shares. At
    most MAX_RANK, none with fewer than MIN_REQUESTS.
  """
  found = []
  for rank in range(1, MAX_RANK + 1):
    reached = [weight_T for weight_T in attention if len(weight_T) >= rank]
    if len(reached) < MIN_REQUESTS:
      break
    even = float(np.mean([1 / len(weight_T) for weight_T in reached]))
    found.append(
      {
        'rank': rank,
        'weight': float(np.mean([weight_T[-rank] for weight_T in reached])),
        'even': even if is_share else None,
        'requests': len(reached),
      }
    )
  return found


def attention_to_same(
  relative_N: np.ndarray, is_same_N: np.ndarray
) -> dict[str, Any]:
  """How events that share something with the target weigh, and the others.

  Args:
    relative_N: of each event its weight by the mean weight of its history.
    is_same_N: bool, whether it shares it.

  Returns:
    'same' and 'other', means of `relative_N`, None over fewer than
    MIN_REQUESTS events; 'events_same' and 'events_other', how many.
  """
  found: dict[str, Any] = {}
  for name, events in (('same', is_same_N), ('other', ~is_same_N)):
    count = int(events.sum())
    enough = count >= MIN_REQUESTS
    found[name] = float(relative_N[events].mean()) if enough else None
    found[f'events_{name}'] = count
  return found


def shares_value(here_N: np.ndarray, there_N: np.ndarray) -> np.ndarray:
  """bool [N]: whether two items have a known value in common.

  Args:
    here_N: ids of one of them, int32 [N] or [N, W].
    there_N: of the other, likewise.
  """
  here_NW, there_NW = (x.reshape(len(x), -1) for x in (here_N, there_N))
  shares_N = np.zeros(len(here_NW), bool)
  for ids_N in here_NW.T:
    is_known_N = ids_N >= NUM_RESERVED
    shares_N |= is_known_N & (there_NW == ids_N[:, None]).any(1)
  return shares_N


class ItemNames:
  """Raw ids and attributes of a few items."""

  def __init__(self, dataset: Dataset, items: np.ndarray):
    items = np.unique(items)
    raw = dataset.raw_items(items)
    self._raw = dict(zip(items.tolist(), raw, strict=True))
    self._ids = {
      feature.name: dataset.item_ids[feature.name]
      for feature in dataset.features
      if feature.kind == 'item' and feature.name != 'item'
    }
    self._values = {
      name: dataset.values_of(name, ids[items])
      for name, ids in self._ids.items()
    }

  def __call__(self, item: int) -> dict[str, Any]:
    """{'item', 'attributes'}: by name the values, as the source has them."""
    attributes = {
      name: [
        self._values[name].get(number, UNKNOWN_VALUE)
        for number in np.atleast_1d(ids[item]).tolist()
        if number
      ]
      for name, ids in self._ids.items()
    }
    return {'item': self._raw[item], 'attributes': attributes}


def _negatives_of(
  dataset: Dataset, part: Part, row: int
) -> tuple[np.ndarray, np.ndarray]:
  """Rows and items of the negatives in the request of a row."""
  if part.candidates is not None:
    items = part.candidates[row]
    return np.full(len(items), row), items
  begin = np.searchsorted(part.request, part.request[row])
  end = np.searchsorted(part.request, part.request[row], side='right')
  rows = np.arange(begin, end)
  rows = rows[part.label[begin:end] == 0]
  return rows, dataset.item[part.event[rows]]


class _Inside:
  """The looks of `look_inside`, each by itself."""

  def __init__(self, dataset: Dataset, model: EAIN, params: Any, stats: Any):
    self.dataset, self.part = dataset, dataset.parts['test']
    config = model.config
    self.is_share = config.use_softmax
    self.fields = field_names(model.reads(dataset.features))
    self._look = make_look(dataset, model, params, stats, self.part)
    length = dataset.config.history_length
    self._packer = Packer(dataset, self.part, length, 1, 0, 0, ())
    self.rows = _in_hash_order(np.flatnonzero(self.part.label == 1))

  def _history(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Events of the histories of rows, oldest first, and whose they are."""
    entry, owner = segment_ranges(*self._packer.history_range(rows))
    if self.dataset.history_event is not None:
      entry = self.dataset.history_event[entry]
    return entry, owner

  def _target(self, rows: np.ndarray) -> np.ndarray:
    return self.dataset.item[self.part.event[rows]]

  def average(self) -> dict[str, Any]:
    """Over the first NUM_AVERAGED positives."""
    rows = self.rows[:NUM_AVERAGED]
    sown = self._look(rows, self._target(rows))
    found: dict[str, Any] = {
      'requests': len(rows),
      'attention': None,
      'same': None,
      'gate': None,
      'mask': None,
    }
    if sown.attention is not None:
      found['attention'] = attention_by_rank(sown.attention, self.is_share)
      if self.is_share:
        found['same'] = self._same(rows, sown.attention)
    if sown.gate_BF is not None:
      low_F, high_F = np.quantile(sown.gate_BF, QUANTILES, axis=0)
      mean_F = sown.gate_BF.mean(0, dtype=np.float64)
      found['gate'] = [
        {
          'field': name,
          'mean': float(mean_F[i]),
          'low': float(low_F[i]),
          'high': float(high_F[i]),
        }
        for i, name in enumerate(self.fields)
      ]
    if sown.mask_BP is not None:
      mask_P = sown.mask_BP.mean(0, dtype=np.float64)
      found['mask'] = mask_matrix(mask_P, len(self.fields))
    return found

  def _same(
    self, rows: np.ndarray, attention: Sequence[np.ndarray]
  ) -> list[dict[str, Any]]:
    """By attribute how events weigh that share a value with the target."""
    event, owner = self._history(rows)
    length = np.bincount(owner, minlength=len(rows))[owner]
    relative = np.concatenate(attention) * length
    chosen = length > 1  # A single event has all of the weight, whatever it is.
    item = self.dataset.item[event][chosen]
    target = self._target(rows)[owner][chosen]
    found = []
    for feature in self.dataset.features:
      if feature.kind != 'item' or feature.name == 'item':
        continue
      ids = self.dataset.item_ids[feature.name]
      is_same = shares_value(ids[item], ids[target])
      found.append(
        {
          'feature': feature.name,
          **attention_to_same(relative[chosen], is_same),
        }
      )
    return found

  def examples(self) -> list[dict[str, Any]]:
    """Of the first NUM_EXAMPLES positives of EXAMPLE_EVENTS events."""
    start, end = self._packer.history_range(self.rows)
    low, high = EXAMPLE_EVENTS
    is_readable = (end - start >= low) & (end - start <= high)
    rows = self.rows[is_readable][:NUM_EXAMPLES]
    return [self._example(int(row)) for row in rows]

  def _example(self, row: int) -> dict[str, Any]:
    rows, items = _negatives_of(self.dataset, self.part, row)
    rows = np.append(row, rows)
    items = np.append(self._target(np.array([row])), items)
    sown = self._look(rows, items)
    event, _ = self._history(np.array([row]))
    event = event[::-1]
    history = self.dataset.item[event]
    best = 1 + int(sown.logit_B[1:].argmax()) if len(rows) > 1 else None
    shown = [0] if best is None else [0, best]
    names = ItemNames(self.dataset, np.append(history, items[shown]))
    days: list[float | None] = [None] * len(event)
    if self.dataset.task != 'logged':
      # There a timestamp may be any order, such as a list's number.
      time = self.dataset.timestamp
      seconds = time[self.part.event[row]] - time[event]
      days = (seconds / SECONDS_PER_DAY).tolist()

    def candidate(number: int) -> dict[str, Any]:
      return {
        **names(int(items[number])),
        'logit': float(sown.logit_B[number]),
        'attention': sown.attention
        and sown.attention[number][::-1].astype(np.float64).tolist(),
        'gate': None
        if sown.gate_BF is None
        else sown.gate_BF[number].astype(np.float64).tolist(),
        'mask': None
        if sown.mask_BP is None
        else mask_matrix(sown.mask_BP[number], len(self.fields)),
      }

    return {
      'row': row,
      'candidates': len(rows),
      'rank': 1 + int((sown.logit_B[1:] > sown.logit_B[0]).sum()),
      'history': [
        {**names(int(item)), 'days_before': ago}
        for item, ago in zip(history, days, strict=True)
      ],
      'positive': candidate(0),
      'negative': None if best is None else candidate(best),
    }


def look_inside(
  dataset: Dataset, model: EAIN, params: Any, stats: Any
) -> Mapping[str, Any]:
  """What EAIN looks at in the test part.

  Positives are taken in the order of a fixed hash of their row's number.

  Args:
    dataset: as it was trained on.
    model: the network.
    params: of it.
    stats: of it.

  Returns:
    fields: the names of the F fields.
    weights_are_shares: those of a history sum to one.
    average: over the first 'requests' positives, at most NUM_AVERAGED:
      'attention' (see `attention_by_rank`), 'same' (by attribute, see
      `attention_to_same`), 'gate' (by field its mean and QUANTILES), 'mask'
      (of each pair of fields the mean |M|, F lists of F); None without the
      layer.
    examples: the first NUM_EXAMPLES positives whose history has EXAMPLE_EVENTS
      events: 'row' of the part, 'history' from the newest event on, and of
      'positive' and 'negative', the one that scores highest, the item, 'logit',
      'attention', 'gate' and 'mask'; 'rank' of the positive among all
      'candidates' of its request, and 1 more than those above it.
  """
  inside = _Inside(dataset, model, params, stats)
  return {
    'fields': inside.fields,
    'weights_are_shares': inside.is_share,
    'average': inside.average(),
    'examples': inside.examples(),
  }
