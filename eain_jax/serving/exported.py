"""An exported model, opened and checked: raw ids in, scores out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl
from jax import export
from safetensors import safe_open
from safetensors.numpy import load_file

from eain_jax.artifacts import MANIFEST, check_files, read_manifest
from eain_jax.config import PrepareConfig
from eain_jax.data.batches import Batch
from eain_jax.data.dataset import Dataset
from eain_jax.data.features import Feature
from eain_jax.data.soundness import check_features
from eain_jax.errors import InputError
from eain_jax.serving.asked_rows import make_rows
from eain_jax.serving.candidates import Rows
from eain_jax.serving.encoder import Encoder, power_of_two
from eain_jax.serving.export import (
  FACTS,
  FORMAT_VERSION,
  GOLDEN_BATCH,
  GOLDEN_ROWS,
  PARAMETERS,
  PROGRAM,
  TABLES_HASH,
  encode_rows,
  flat_batch,
  hash_of_tables,
)
from eain_jax.serving.export_loader import make_program
from eain_jax.serving.scorer import Scorer

MAX_SLOTS = 4096
# jax.export has a name for each maker of GPUs.
_PLATFORM_OF = {'gpu': 'cuda'}
_REMEDY = 'export the model again'


def platform_here() -> str:
  """What jax.export calls the devices of this process."""
  backend = jax.default_backend()
  return _PLATFORM_OF.get(backend, backend)


class ExportedModel:
  """The program of an export, with its parameters and vocabularies.

  Attributes:
    path: its folder.
    facts: the content of `export.json`.
    encoder: of raw rows, which bring their histories with them.
    context: the columns that a row has beside user, item and timestamp.
  """

  def __init__(
    self,
    path: Path,
    facts: Mapping[str, Any],
    encoder: Encoder,
    program: export.Exported,
    parameters: Mapping[str, np.ndarray],
  ):
    """Of what `open_export` has checked."""
    self.path, self.facts, self.encoder = path, facts, encoder
    self.context = tuple(encoder.categories)
    self._parameters = jax.device_put(dict(parameters))
    self._program = jax.jit(program.call)
    # By size of their batches: a single row does not pay for thousands.
    self._scorers: dict[int, Scorer] = {}

  def score_batch(self, batch: Mapping[str, np.ndarray]) -> jax.Array:
    """float32 [R, 1], the logits of a batch that `export.json` describes."""
    return self._program(self._parameters, dict(batch))

  def score_rows(self, rows: Rows) -> np.ndarray:
    """float32 [n], the logits of rows that bring their histories."""
    if not len(rows):
      return np.zeros(0, np.float32)
    slots = min(MAX_SLOTS, power_of_two(len(rows)))
    if slots not in self._scorers:
      self._scorers[slots] = Scorer(self.encoder, self._score, slots)
    [(_, logits, _)] = self._scorers[slots].score([rows])
    return logits

  def _score(self, batch: Batch) -> jax.Array:
    return self.score_batch(flat_batch(batch))

  def score(
    self,
    users: Sequence[str],
    items: Sequence[str],
    timestamps: Sequence[int],
    context: Mapping[str, Sequence[str | None]] | None = None,
    histories: Sequence[Sequence[str]] | None = None,
    history_timestamps: Sequence[Sequence[int]] | None = None,
  ) -> np.ndarray:
    """The logit of each (user, item) at its time, after its history.

    Args:
      users: raw ids, text or whole numbers, n of them; unknown ones are
        scored by the unknown value.
      items: raw ids, n of them.
      timestamps: seconds UTC, n of them.
      context: by column of `context` n raw values; None, also in the place of a
        column, stands for the unknown value.
      histories: raw ids of the items that each user had before, the oldest
        first; None: nobody had any.
      history_timestamps: when, seconds UTC, in the order of time and before the
        row's.

    Returns:
      float32 [n].

    Raises:
      InputError: a length, a column, an id, a time, or the order of a history
        is wrong.
    """
    rows = make_rows(
      self.context,
      users,
      items,
      timestamps,
      context,
      [()] * len(users) if histories is None else histories,
      history_timestamps,
    )
    return self.score_rows(rows)


def _check_no_other_files(folder: Path, manifest: Mapping[str, Any]) -> None:
  """Raises InputError where the folder holds what its manifest does not."""
  known = {MANIFEST, *manifest['files']}
  for file in sorted(folder.rglob('*')):
    name = str(file.relative_to(folder))
    if (file.is_symlink() or not file.is_dir()) and name not in known:
      raise InputError(
        f'{file} is no file of this export: remove it, or {_REMEDY}'
      )
    if file.is_symlink():
      raise InputError(f'{file} is a link, and no file: {_REMEDY}')


def _tables_of(
  folder: Path, facts: Mapping[str, Any], files: Mapping[str, Any]
) -> Dataset:
  """The users, items and vocabularies of an export: a dataset of no events."""
  of_data = facts['dataset']
  features = tuple(Feature(**feature) for feature in facts['features'])
  check_features(folder / FACTS, list(features))
  for feature in features:
    name = f'vocabularies/{feature.name}.csv'
    if name not in files:
      raise ValueError(f'it has no {name}')
  users = pl.read_parquet(folder / 'users.parquet', glob=False)
  items = pl.read_parquet(folder / 'items.parquet', glob=False)
  config = PrepareConfig(
    columns=tuple(of_data['columns']),
    context=tuple(of_data['context']),
    history_length=of_data['history_length'],
  )
  item_ids = {
    feature.name: _ids_of(items[f'id.{feature.name}'], feature)
    for feature in features
    if feature.kind == 'item'
  }
  [user] = (feature for feature in features if feature.kind == 'user')
  no_event = np.zeros(0, np.int32)
  bounds = np.zeros(len(users) + 1, np.int64)
  return Dataset(
    path=folder,
    manifest={'config': config.to_dict(), **of_data},
    features=features,
    user=no_event,
    item=no_event,
    timestamp=no_event.astype(np.int64),
    context_ids={f.name: no_event for f in features if f.kind == 'context'},
    user_ids=_ids_of(users['id'], user),
    item_ids=item_ids,
    item_train_count=np.zeros(len(items), np.int64),
    history_event=None,
    history_start=bounds,
    user_start=bounds,
    parts={},
  )


def _ids_of(column: pl.Series, feature: Feature) -> np.ndarray:
  """int32 [n] or [n, W], within the feature's table.

  Raises:
    ValueError: they are not.
  """
  ids = column.to_numpy()
  if ids.dtype != np.int32 or ids.ndim != 1 + feature.multi_valued:
    raise ValueError(f'{column.name} is no column of ids')
  if len(ids) and (ids.min() < 0 or ids.max() >= feature.num_rows):
    raise ValueError(f'{column.name} has ids beyond its table')
  return ids


def _read_golden(folder: Path) -> tuple[Rows, dict[str, np.ndarray]]:
  lines = (folder / GOLDEN_ROWS).read_text(encoding='utf-8').splitlines()
  records = [json.loads(line) for line in lines]
  column = lambda name: [record.pop(name) for record in records]
  for record in records:
    record.pop('logit')
  user, item, timestamp = column('user'), column('item'), column('timestamp')
  history, times = column('history'), column('history_timestamp')
  own = column('context')
  context = {name: [values[name] for values in own] for name in own[0]}
  with np.load(folder / GOLDEN_BATCH, allow_pickle=False) as arrays:
    golden = dict(arrays)
  return Rows(user, item, timestamp, context, history, times, {}), golden


def open_export(path: str | Path) -> ExportedModel:
  """Opens an export after it has checked it.

  Every file is the manifest's, nothing else lies there, and the golden rows
  make the golden batch by these vocabularies, and the golden logits by this
  program.

  Args:
    path: the folder that `export` wrote.

  Raises:
    InputError: it is no export, was changed, or does not belong together.
  """
  folder = Path(path)
  if not (folder / MANIFEST).is_file():
    raise InputError(f'{folder} is no exported model: name one of export')
  manifest = read_manifest(folder, _REMEDY, FORMAT_VERSION)
  check_files(folder, manifest, remedy=_REMEDY)
  _check_no_other_files(folder, manifest)
  try:
    facts = json.loads((folder / FACTS).read_text(encoding='utf-8'))
    platforms, tolerance = tuple(facts['platforms']), float(facts['tolerance'])
    encoder = Encoder(_tables_of(folder, facts, manifest['files']))
    with safe_open(folder / PARAMETERS, 'numpy') as file:
      tables = (file.metadata() or {}).get(TABLES_HASH)
    parameters = load_file(folder / PARAMETERS)
    program = make_program(facts, parameters, (folder / PROGRAM).read_bytes())
    rows, golden = _read_golden(folder)
    logit = golden.pop('logit')
    if logit.dtype != np.float32 or logit.shape != (len(rows), 1):
      raise ValueError(f'{GOLDEN_BATCH} has no logit a row')
    batch = encode_rows(encoder, rows)
    model = ExportedModel(folder, facts, encoder, program, parameters)
    agrees = tables == hash_of_tables(folder) and (
      batch.keys() == golden.keys()
      and all(np.array_equal(batch[name], golden[name]) for name in batch)
    )
  except InputError:
    raise
  except (Exception, pl.exceptions.PanicException) as error:
    # Files of a stranger: whatever they raise, they are no export.
    why = (str(error).splitlines() or [type(error).__name__])[0][:200]
    raise InputError(
      f'{folder} is damaged, it is no whole export ({why}): {_REMEDY}'
    ) from error
  if not agrees:
    raise InputError(
      f'the rows of {folder / GOLDEN_ROWS} do not make {GOLDEN_BATCH}: a '
      f'vocabulary or a table of ids is not of this model, {_REMEDY}'
    )
  here = platform_here()
  if here not in platforms:
    raise InputError(
      f'{folder} is for {", ".join(platforms)}, and this is {here}: export '
      f'the model with --platforms={here}'
    )
  try:
    found = np.asarray(model.score_batch(golden))
  except Exception as error:
    # The program is foreign: whatever it cannot do is damage.
    raise InputError(
      f'{folder / PROGRAM} is damaged, or is no program of {PARAMETERS} and '
      f'{GOLDEN_BATCH}: {_REMEDY}'
    ) from error
  difference = (np.abs(found - logit) / np.maximum(1, np.abs(logit))).max()
  if not difference <= tolerance:
    raise InputError(
      f'{folder} does not give the logits of {GOLDEN_BATCH}, they differ by '
      f'{difference:.1e}: parameters and program are not of one model, '
      f'{_REMEDY}'
    )
  return model
