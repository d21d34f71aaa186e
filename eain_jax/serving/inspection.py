"""What a model makes of one user and one item."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eain_jax.data.features import SECONDS_PER_DAY
from eain_jax.evaluation.inside import ItemNames, make_sow, mask_matrix
from eain_jax.layers.embedding import embed, embed_mean
from eain_jax.models.eain import EAIN
from eain_jax.models.fields import field_names
from eain_jax.serving.encoder import Asked, Encoder
from eain_jax.training.restore import Run


def item_vectors(run: Run) -> np.ndarray | None:
  """float32 [I, A * D], the embeddings of what is read of each item.

  None where a model has no embeddings, but a weight a value.
  """
  dim = getattr(run.model.config, 'embedding_dim', None)
  if dim is None:
    return None
  dataset, tables = run.dataset, run.params['tables']
  vectors = []
  for feature in run.model.reads(dataset.features):
    if feature.kind == 'item':
      ids = jnp.asarray(np.asarray(dataset.item_ids[feature.name]))
      of = embed_mean if feature.multi_valued else embed
      # What stands behind D is a linear weight.
      vectors.append(of(tables[feature.name][:, :dim], ids))
  return np.asarray(jnp.concatenate(vectors, axis=1))


def nearest_items(
  vectors: np.ndarray, item: int, num: int
) -> list[tuple[int, float]]:
  """The items of the highest cosine to an item, itself left out.

  Returns:
    At most `num` (item, cosine), the nearest first; none where the item's own
    vector is zero, and never one whose vector is.
  """
  length = np.linalg.norm(vectors, axis=1)
  if not length[item]:
    return []
  cosine = vectors @ vectors[item]
  cosine /= np.maximum(length, np.finfo(np.float32).tiny) * length[item]
  cosine[(length == 0) | (np.arange(len(vectors)) == item)] = -np.inf
  order = np.argsort(-cosine, kind='stable')[:num]
  return [(int(i), float(cosine[i])) for i in order if np.isfinite(cosine[i])]


@dataclasses.dataclass(frozen=True)
class Inspection:
  """What was found.

  Attributes:
    item: 'item', its raw id, and 'attributes', by name its values.
    logit: of the pair.
    history: from the newest event on 'item', 'attributes', 'days_before' and
      'weight', its attention, None without attention.
    weights_are_shares: those of a history sum to one.
    gates: (field, factor), or None without SE gates.
    fields: the names of the F fields of EAIN; () of another model.
    mask: F lists of F, of each pair of fields the mean |M|, or None.
    nearest: by cosine of their embeddings 'item', 'attributes', 'cosine'.
  """

  item: Mapping[str, Any]
  logit: float
  history: list[dict[str, Any]]
  weights_are_shares: bool
  gates: list[tuple[str, float]] | None
  fields: tuple[str, ...]
  mask: list[list[float | None]] | None
  nearest: list[dict[str, Any]]


def inspect(
  run: Run, encoder: Encoder, asked: Asked, num_nearest: int
) -> Inspection:
  """Looks at one request of one candidate that the dataset has.

  Args:
    run: any model.
    encoder: of its dataset.
    asked: one user, one item.
    num_nearest: items near to the candidate.
  """
  dataset = run.dataset
  batch = encoder.batch(asked, 1)
  sow = make_sow(dataset.features, run.model)
  sown: dict[str, np.ndarray] = {
    name: np.asarray(x)
    for name, x in jax.device_get(sow(run.params, run.stats, batch)).items()
  }
  items, times = encoder.events(asked)
  count, item = len(items), int(asked.item[0, 0])
  near = []
  if (vectors := item_vectors(run)) is not None:
    near = nearest_items(vectors, item, num_nearest)
  names = ItemNames(
    dataset, np.array([item, *items, *(other for other, _ in near)])
  )
  weights = sown['attention'][:count] if 'attention' in sown else None
  history = [
    {
      **names(int(items[place])),
      # In a log a timestamp may be any order, such as a list's number.
      'days_before': None
      if dataset.task == 'logged'
      else float(asked.timestamp[0] - times[place]) / SECONDS_PER_DAY,
      'weight': None if weights is None else float(weights[place]),
    }
    for place in reversed(range(count))
  ]
  fields: tuple[str, ...] = ()
  if isinstance(run.model, EAIN):
    read = run.model.reads(dataset.features)
    fields = tuple(field_names(read))
  gates = mask = None
  if 'gate' in sown:
    gates = list(zip(fields, map(float, sown['gate'][0]), strict=True))
  if 'mask' in sown:
    mask = mask_matrix(sown['mask'][0], len(fields))
  is_share = getattr(
    run.model.config,
    'use_softmax',
    getattr(run.model.config, 'attention_softmax', False),
  )
  return Inspection(
    names(item),
    float(sown['logit'][0]),
    history,
    bool(is_share),
    gates,
    fields,
    mask,
    [{**names(other), 'cosine': cosine} for other, cosine in near],
  )
