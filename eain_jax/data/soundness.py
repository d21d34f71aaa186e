"""Whether what a dataset holds can be used: its types, shapes and every id.

Hashes say that files are as they were written, not who wrote them. On a device
an id outside of its table reads another row, or NaN, without a word, so it is
refused here, with the file and the value.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

import msgspec
import numpy as np

from eain_jax.artifacts import MANIFEST
from eain_jax.config import PrepareConfig
from eain_jax.data import columns as columns_lib
from eain_jax.data.columns import map_column, release
from eain_jax.data.examples import PARTS
from eain_jax.data.features import NUM_RESERVED, Feature
from eain_jax.errors import InputError

REMEDY = 'prepare the dataset again'
FEATURE_NAME = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.-]*')
_INT32_MAX = np.iinfo(np.int32).max
_FLOAT_MAX = float(np.finfo(np.float32).max)

_PartName = Literal['train', 'valid', 'test']


class _Manifest(msgspec.Struct, forbid_unknown_fields=True):
  """What `manifest.json` holds, and nothing else."""

  format_version: int
  version: str
  task: Literal['next_item', 'rating', 'logged']
  split: Literal['last_out', 'last_out_no_validation', 'time']
  min_history: int
  seed: int
  config: PrepareConfig
  counts: dict[str, int | dict[str, int]]
  sources: list[dict[str, Any]]
  notes: list[str]
  part_files: dict[_PartName, _PartName]
  first_timestamp: int
  last_timestamp: int
  features: list[Feature]
  files: dict[str, dict[str, int | str]]
  fingerprint: str


@dataclasses.dataclass(frozen=True)
class Column:
  """What a column of a dataset is to be.

  Attributes:
    name: of its file, without folder and ending.
    dtype: of its values.
    shape: of the whole; None where the file alone says how many rows.
    low: the least value that it may hold; None: it may hold any.
    high: the first value above those that it may hold.
    is_small: a row a user or an item, not one an event.
  """

  name: str
  dtype: str
  shape: tuple[int | None, ...]
  low: float | None
  high: float
  is_small: bool = False

  @property
  def file(self) -> str:
    """Its path in the dataset."""
    return f'columns/{self.name}.npy'


def checked_fields(path: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
  """The manifest, all of whose keys are there, each of its type.

  Settings that it was written before have their defaults.

  Raises:
    InputError: a key is missing, unknown or of another type.
  """
  file = path / MANIFEST
  try:
    fields = msgspec.convert(manifest, _Manifest)
    config = PrepareConfig.from_dict(manifest['config'])
    for feature in manifest['features']:
      Feature(**feature)
  except (msgspec.ValidationError, TypeError, InputError) as error:
    # It may quote a key, and that an escape sequence for the terminal.
    why = str(error).encode('unicode_escape').decode()
    raise InputError(f'{file} cannot be used, {why}: {REMEDY}') from error
  if set(fields.part_files) != set(PARTS):
    raise InputError(f'{file} does not name the files of each part: {REMEDY}')
  _check_counts(file, fields)
  _check_evaluated_whole(file, fields)
  check_features(file, fields.features)
  features = [dataclasses.asdict(feature) for feature in fields.features]
  return {**manifest, 'config': config.to_dict(), 'features': features}


def _check_counts(file: Path, fields: _Manifest) -> None:
  counts = fields.counts
  for name in ('events', 'users', 'items'):
    value = counts.get(name)
    if not isinstance(value, int) or value < 1:
      raise InputError(f'{file} counts {value!r} {name}: {REMEDY}')
  for part in PARTS:
    value = counts.get(part)
    if not isinstance(value, dict):
      raise InputError(f'{file} has no counts of {part}: {REMEDY}')
    for name in ('positives', 'examples', 'requests'):
      if value.get(name, 0) < 1:
        raise InputError(
          f'{file} counts {value.get(name)!r} {name} of {part}: {REMEDY}'
        )


def _check_evaluated_whole(file: Path, fields: _Manifest) -> None:
  """Refuses what an older version made: Skip Above took from its test."""
  for part in PARTS[1:]:
    counts = fields.counts[part]
    assert isinstance(counts, dict), '`_check_counts` has seen to it'
    lost = counts.get('dropped_by_skip_above', 0)
    if lost > 0:
      raise InputError(
        f'{file}: an older version has taken {lost} examples from {part} by '
        f'Skip Above, which is for training: {REMEDY}'
      )


def check_features(file: Path, features: list[Feature]) -> None:
  """Raises InputError where a file names features that cannot be.

  Their names are those of files.
  """
  names = [feature.name for feature in features]
  kinds = [(feature.name, feature.kind) for feature in features]
  if len(set(names)) < len(names) or not {
    ('user', 'user'),
    ('item', 'item'),
  } <= set(kinds):
    raise InputError(f'{file} names the features {names}: {REMEDY}')
  for feature in features:
    if not (
      FEATURE_NAME.fullmatch(feature.name)
      and feature.kind in ('user', 'item', 'context')
      and (feature.kind == 'user') == (feature.name == 'user')
      and NUM_RESERVED <= feature.num_rows <= _INT32_MAX
      and feature.max_values >= 1
      and (feature.multi_valued or feature.max_values == 1)
    ):
      raise InputError(f'{file} has a feature {feature}: {REMEDY}')


def _shared_columns(
  manifest: Mapping[str, Any], features: tuple[Feature, ...]
) -> list[Column]:
  """The columns of events, users and items."""
  counts = manifest['counts']
  events, users, items = counts['events'], counts['users'], counts['items']
  out = [
    Column('users.start', 'int64', (users + 1,), 0, events + 1, True),
    Column('history.start', 'int64', (users + 1,), 0, events + 1, True),
    Column('items.train_count', 'int64', (items,), 0, events + 1, True),
    Column('events.user', 'int32', (events,), 0, users),
    Column('events.item', 'int32', (events,), 0, items),
    Column('events.timestamp', 'int64', (events,), None, 0),
  ]
  if manifest['task'] == 'logged':
    out.append(Column('history.event', 'int64', (None,), 0, events))
  for feature in features:
    name, rows = {
      'user': ('users.id', users),
      'item': (f'item_ids.{feature.name}', items),
      'context': (f'context.{feature.name}', events),
    }[feature.kind]
    shape = (rows, feature.max_values) if feature.multi_valued else (rows,)
    is_small = feature.kind != 'context'
    out.append(Column(name, 'int32', shape, 0, feature.num_rows, is_small))
  return out


def _part_columns(manifest: Mapping[str, Any], part: str) -> list[Column]:
  """The columns of one part, those that it may do without included."""
  counts, config = manifest['counts'], manifest['config']
  is_next_item = manifest['task'] == 'next_item'
  requests = counts[part]['requests']
  rows = requests if is_next_item else counts[part]['examples']
  events = counts['events']
  out = [
    Column(f'{part}.event', 'int64', (rows,), 0, events),
    Column(f'{part}.request', 'int32', (rows,), 0, requests),
    Column(f'{part}.label', 'int8', (rows,), int(is_next_item), 2),
  ]
  if not is_next_item:
    out.append(Column(f'{part}.history_end', 'int64', (rows,), 0, events + 1))
  elif part == 'train' and config['skip_above']:
    most = config['negatives'] + 1
    out.append(Column(f'{part}.kept_negatives', 'int16', (rows,), 0, most))
  elif part != 'train':
    drawn, truth = config['eval_negatives'], f'{part}.truth'
    shape = (rows, drawn)
    out.append(Column(f'{part}.candidates', 'int32', shape, 0, counts['items']))
    if f'columns/{truth}.npy' in manifest['files']:
      shape = (rows, 1 + drawn)
      out.append(Column(truth, 'float32', shape, -_FLOAT_MAX, np.inf))
  return out


def expected_columns(manifest: Mapping[str, Any]) -> list[Column]:
  """All columns of a dataset whose manifest `checked_fields` gave."""
  features = tuple(Feature(**feature) for feature in manifest['features'])
  out = _shared_columns(manifest, features)
  for part in sorted(set(manifest['part_files'].values())):
    out += _part_columns(manifest, part)
  return out


def map_columns(
  path: Path, manifest: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """Every column by its name, mapped, of the type and shape that it is to be.

  Raises:
    InputError: one is missing, unknown, or of another type or shape.
  """
  expected = expected_columns(manifest)
  named = {n for n in manifest['files'] if n.startswith('columns/')}
  for file in sorted({column.file for column in expected} ^ named):
    which = 'is no column of' if file in named else 'is missing from'
    raise InputError(f'{file} {which} {path / MANIFEST}: {REMEDY}')
  mapped = {}
  for column in expected:
    array = mapped[column.name] = map_column(path / column.file)
    shape = tuple(
      there if size is None else size
      for size, there in zip(column.shape, array.shape, strict=False)
    )
    if array.dtype != column.dtype or array.shape != shape:
      raise InputError(
        f'{path / column.file} holds {array.dtype} {list(array.shape)}, not '
        f'{column.dtype} {list(column.shape)}: {REMEDY}'
      )
  return mapped


def _refuse(file: Path, value: Any, row: int, why: str) -> NoReturn:
  raise InputError(f'{file} holds {value} in row {row}, {why}: {REMEDY}')


def _blocks(column: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
  """First row and rows of a column, a block at a time; pages are let go."""
  width = max(1, int(np.prod(column.shape[1:])))
  step = max(1, columns_lib.BLOCK_ROWS // width)
  for first in range(0, len(column), step):
    yield first, column[first : first + step]
    release(column)


def _check_range(file: Path, column: Column, array: np.ndarray) -> None:
  if column.low is None:
    return
  for first, block in _blocks(array):
    # Neither is true of NaN.
    if block.min() >= column.low and block.max() < column.high:
      continue
    bad = np.argwhere(~((block >= column.low) & (block < column.high)))[0]
    why = 'which is not finite'
    if array.dtype.kind == 'i':
      why = f'outside of {int(column.low)} to {int(column.high) - 1}'
    _refuse(file, block[tuple(bad)], first + int(bad[0]), why)


def _check_start(file: Path, start: np.ndarray, end: int) -> None:
  """Offsets that rise from 0 to `end`."""
  if start[0] != 0:
    _refuse(file, start[0], 0, 'not 0')
  falls = np.flatnonzero(start[1:] < start[:-1])
  if len(falls):
    row = int(falls[0]) + 1
    _refuse(file, start[row], row, f'after {start[row - 1]}')
  if start[-1] != end:
    _refuse(file, start[-1], len(start) - 1, f'not {end}')


def _check_owners(
  file: Path, owner: np.ndarray, start: np.ndarray, first: int
) -> None:
  """Rows from `first` on lie where their owners' offsets say."""
  row = np.arange(first, first + len(owner))
  bad = np.flatnonzero((start[owner] > row) | (row >= start[owner + 1]))
  if len(bad):
    at = int(bad[0])
    _refuse(
      file,
      f'an entry of user {owner[at]}',
      int(row[at]),
      f'where those are rows {start[owner[at]]} to {start[owner[at] + 1] - 1}',
    )


def _check_requests(file: Path, request: np.ndarray, num_requests: int) -> None:
  """Numbers that rise by 0 or 1 from 0 to the last."""
  before = -1
  for first, block in _blocks(request):
    step = np.diff(block, prepend=np.int32(before))
    bad = np.flatnonzero((step < 0) | (step > 1))
    if len(bad):
      at = int(bad[0])
      _refuse(file, block[at], first + at, 'which does not follow')
    before = int(block[-1])
  if before != num_requests - 1:
    _refuse(file, before, len(request) - 1, f'not {num_requests - 1}')


class Inspection:
  """Looks at the values of a dataset's columns.

  Args:
    path: of the dataset.
    manifest: that `checked_fields` gave.
    mapped: of `map_columns`.
  """

  def __init__(
    self,
    path: Path,
    manifest: Mapping[str, Any],
    mapped: Mapping[str, np.ndarray],
  ):
    self._path, self._manifest, self._mapped = path, manifest, mapped
    self._expected = {c.name: c for c in expected_columns(manifest)}

  def _file(self, name: str) -> Path:
    return self._path / self._expected[name].file

  def _check_ranges(self, is_small: bool) -> None:
    for name, column in self._expected.items():
      if column.is_small == is_small:
        _check_range(self._file(name), column, self._mapped[name])

  def check_tables(self) -> None:
    """Checks what has a row a user or an item.

    Raises:
      InputError: it names the file, the row and the value.
    """
    self._check_ranges(is_small=True)
    mapped = self._mapped
    history = mapped.get('history.event', mapped['events.user'])
    for name, entries in (
      ('users.start', mapped['events.user']),
      ('history.start', history),
    ):
      _check_start(self._file(name), mapped[name], len(entries))
      release(mapped[name])

  def check_columns(self) -> None:
    """Checks what has a row an event, block by block.

    Raises:
      InputError: it names the file, the row and the value.
    """
    self._check_ranges(is_small=False)
    mapped = self._mapped
    user = mapped['events.user']
    for first, block in _blocks(user):
      start = mapped['users.start']
      _check_owners(self._file('events.user'), block, start, first)
    for first, block in _blocks(mapped.get('history.event', user[:0])):
      start, file = mapped['history.start'], self._file('history.event')
      _check_owners(file, user[block], start, first)
      release(user)
    for part in sorted(set(self._manifest['part_files'].values())):
      self._check_part(part)
    release(*mapped.values())

  def _check_part(self, part: str) -> None:
    mapped = self._mapped
    requests = self._manifest['counts'][part]['requests']
    name = f'{part}.request'
    _check_requests(self._file(name), mapped[name], requests)
    name = f'{part}.history_end'
    if name not in mapped:
      return
    user, start = mapped['events.user'], mapped['history.start']
    for first, end in _blocks(mapped[name]):
      owner = user[mapped[f'{part}.event'][first : first + len(end)]]
      bad = np.flatnonzero((end < start[owner]) | (end > start[owner + 1]))
      if len(bad):
        at = int(bad[0])
        low, high = start[owner[at]], start[owner[at] + 1]
        why = f'where the history of its user is {low} to {high}'
        _refuse(self._file(name), end[at], first + at, why)
      release(user, mapped[f'{part}.event'])
