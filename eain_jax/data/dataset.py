"""The prepared dataset: a folder that is whole or absent.

    manifest.json          schema, counts, sources, settings, a hash a file
    columns/*.npy          flat arrays that map into memory
    items.parquet          every item: raw id, feature ids
    users.parquet          every user: raw id, feature id, number of events
    vocabularies/*.csv     id, value, count: for a person to read
    rejected.jsonl         the lines that were not read, each with its reason

A dataset is written beside its place and renamed when complete, and checked
against its hashes when opened. Columns grow by pieces, so that to write one
takes no more memory than a piece. Histories are stored once: an example holds
where its history ends.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from eain_jax.config import PrepareConfig
from eain_jax.data.columns import ColumnWriter, map_column, release
from eain_jax.data.examples import PARTS, NegativeSampler, Part, make_sampler
from eain_jax.data.features import Feature, Vocabulary
from eain_jax.data.lines import hash_file
from eain_jax.errors import InputError

FORMAT_VERSION = 1
MANIFEST = 'manifest.json'


def _canonical_hash(values: Mapping[str, Any]) -> str:
  text = json.dumps(values, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(text.encode()).hexdigest()


def refuse_existing(path: Path, flag: str = '--output_dir') -> None:
  """Raises InputError where `path` is a file or holds something."""
  if path.is_file():
    raise InputError(
      f'{flag}={path} is a file: name a folder that is not there'
    )
  if path.is_dir() and any(path.iterdir()):
    raise InputError(
      f'{flag}={path} already holds something: name another, or remove it'
    )


def refuse_small_disk(path: Path, num_bytes: int) -> None:
  """Raises InputError where `num_bytes` do not fit on the disk of `path`."""
  there = path.absolute()
  while not there.exists():
    there = there.parent
  free = shutil.disk_usage(there).free
  if free < num_bytes:
    raise InputError(
      f'{path} would take at least {num_bytes / 1e9:,.1f} GB, and its disk has '
      f'{free / 1e9:,.1f} GB left: name another, or prepare less'
    )


@contextlib.contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
  """A folder to write into that becomes `path` only when the block ends well.

  Files are flushed to the disk before the rename, so a crash leaves either
  the whole folder or none.

  Raises:
    InputError: `path` already holds something, cannot be made, or the disk
      is full.
  """
  refuse_existing(path)
  beside = path.parent / f'.{path.name}.unfinished-{os.getpid()}'
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
  except OSError as error:
    raise InputError(f'{path} cannot be written: {error.strerror}') from error
  try:
    yield beside
    for file in sorted(beside.rglob('*')):
      if file.is_file():
        with file.open('rb') as handle:
          os.fsync(handle.fileno())
    if path.is_dir():
      path.rmdir()
    beside.rename(path)
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
      raise
    raise InputError(
      f'{path} cannot be written: the disk is full, {error.strerror}'
    ) from error
  finally:
    shutil.rmtree(beside, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class Dataset:
  """An open dataset; arrays are mapped from the disk, not read.

  Attributes:
    path: its folder.
    manifest: what `manifest.json` holds.
    features: of the user, the items and the context, in this order.
    user: int32 [N], each event's user; non-decreasing.
    item: int32 [N], each event's item.
    timestamp: int64 [N], seconds UTC.
    context_ids: by feature name int32 [N].
    user_ids: int32 [U], the vocabulary id of each user.
    item_ids: by feature name int32 [I] or [I, W].
    item_train_count: int64 [I], each item's events in the training part.
    history_event: int64 [M], event rows that histories are made of, in
      canonical order; None where that is every event.
    history_start: int64 [U + 1], where each user's history begins.
    user_start: int64 [U + 1], each user's first event.
    parts: the examples of 'train', 'valid' and 'test'.
  """

  path: Path
  manifest: Mapping[str, Any]
  features: tuple[Feature, ...]
  user: np.ndarray
  item: np.ndarray
  timestamp: np.ndarray
  context_ids: Mapping[str, np.ndarray]
  user_ids: np.ndarray
  item_ids: Mapping[str, np.ndarray]
  item_train_count: np.ndarray
  history_event: np.ndarray | None
  history_start: np.ndarray
  user_start: np.ndarray
  parts: Mapping[str, Part]

  @property
  def config(self) -> PrepareConfig:
    """The settings that the dataset was prepared with."""
    return PrepareConfig.from_dict(self.manifest['config'])

  @property
  def task(self) -> str:
    """next_item, rating or logged."""
    return self.manifest['task']

  @property
  def fingerprint(self) -> str:
    """A hash of everything in the dataset."""
    return self.manifest['fingerprint']

  @property
  def num_users(self) -> int:
    return len(self.user_ids)

  @property
  def num_items(self) -> int:
    return len(self.item_ids['item'])

  def sampler(self, seed: int) -> NegativeSampler:
    """Draws training negatives as the dataset's settings say."""
    config = self.config
    return make_sampler(
      self.item,
      self.user_start,
      self.item_train_count,
      sampling=config.negative_sampling,
      exponent=config.popularity_exponent,
      exclusion=config.negative_exclusion,
      seed=seed,
    )

  def events_table(self) -> pl.DataFrame:
    """The events with their raw ids, for a person to look at."""
    users = pl.read_parquet(self.path / 'users.parquet')['user']
    items = pl.read_parquet(self.path / 'items.parquet')['item']
    table = {
      'user': users.gather(self.user),
      'item': items.gather(self.item),
      'timestamp': self.timestamp,
    }
    return pl.DataFrame({**table, **self.context_ids})


class DatasetWriter:
  """Writes a dataset's files; its columns grow by pieces.

  Attributes:
    folder: where they are written; see `folder_written_whole`.
  """

  def __init__(self, folder: Path):
    self.folder = folder
    self._scratch = folder / 'scratch'
    self._writers: dict[str, ColumnWriter] = {}
    self._mapped: list[np.ndarray] = []
    for made in ('columns', 'vocabularies', 'scratch'):
      (folder / made).mkdir()

  def append(
    self, name: str, rows: np.ndarray, *, is_scratch: bool = False
  ) -> None:
    """Adds rows to a column, which the first ones begin.

    Args:
      name: of its file, without ending; see `open_dataset`.
      rows: [n, ...].
      is_scratch: the column is no part of the dataset.
    """
    writer = self._writers.get(name)
    if writer is None:
      folder = self._scratch if is_scratch else self.folder / 'columns'
      writer = self._writers[name] = ColumnWriter(
        folder / f'{name}.npy', rows.dtype, rows.shape[1:]
      )
    writer.append(rows)

  def map(self, name: str) -> np.ndarray:
    """A column, complete now, to read; `release` lets go of what was read."""
    writer = self._writers[name]
    writer.close()
    column = map_column(writer.path)
    self._mapped.append(column)
    return column

  def release(self) -> None:
    """Takes what was read of columns out of the process's memory."""
    release(*self._mapped)

  def close(self) -> None:
    for writer in self._writers.values():
      writer.close()

  def finish(
    self,
    *,
    manifest: Mapping[str, Any],
    features: list[Feature],
    vocabularies: Mapping[str, Vocabulary],
    users: pl.DataFrame,
    items: pl.DataFrame,
    rejected: pl.DataFrame,
  ) -> dict[str, Any]:
    """Writes all but the columns, and returns the whole manifest.

    Args:
      manifest: task, counts, sources, settings, notes.
      features: the model's input features.
      vocabularies: by feature name.
      users: one row a user.
      items: one row an item.
      rejected: file, line, reason, text of each rejected line.
    """
    self.close()
    self._mapped.clear()
    shutil.rmtree(self._scratch)
    folder = self.folder
    for name, vocabulary in vocabularies.items():
      vocabulary.table().write_csv(folder / 'vocabularies' / f'{name}.csv')
    users.write_parquet(folder / 'users.parquet')
    items.write_parquet(folder / 'items.parquet')
    rejected.write_ndjson(folder / 'rejected.jsonl')
    files = {}
    for file in sorted(folder.rglob('*')):
      if file.is_file():
        files[str(file.relative_to(folder))] = {
          'bytes': file.stat().st_size,
          'sha256': hash_file(file),
        }
    whole = {
      'format_version': FORMAT_VERSION,
      **manifest,
      'features': [dataclasses.asdict(feature) for feature in features],
      'files': files,
    }
    whole['fingerprint'] = _canonical_hash(whole)
    (folder / MANIFEST).write_text(json.dumps(whole, indent=2) + '\n')
    return whole


@contextlib.contextmanager
def dataset_written_whole(path: Path) -> Iterator[DatasetWriter]:
  """Writes a dataset, whole or not at all.

  Raises:
    InputError: `path` already holds something, or the disk is full.
  """
  with (
    folder_written_whole(path) as folder,
    contextlib.closing(DatasetWriter(folder)) as writer,
  ):
    yield writer


def read_manifest(path: Path) -> dict[str, Any]:
  """The manifest of a dataset folder, checked against its own hash.

  Raises:
    InputError: there is no dataset at `path`, it is of another version, or
      its manifest was changed.
  """
  file = path / MANIFEST
  if not file.is_file():
    raise InputError(
      f'{path} is not a prepared dataset: it holds no {MANIFEST}; make one '
      'with python -m experiments.prepare_data'
    )
  try:
    manifest = json.loads(file.read_text())
    stated = manifest.pop('fingerprint')
  except (ValueError, KeyError, AttributeError, TypeError) as error:
    raise InputError(f'{file} is damaged: prepare the dataset again') from error
  if manifest.get('format_version') != FORMAT_VERSION:
    raise InputError(
      f'{file} has format version {manifest.get("format_version")}, this '
      f'version reads {FORMAT_VERSION}: prepare the dataset again'
    )
  if _canonical_hash(manifest) != stated:
    raise InputError(
      f'{file} was changed after it was written: prepare the dataset again'
    )
  return {**manifest, 'fingerprint': stated}


def open_dataset(
  path: str | Path, *, verify: Literal['full', 'quick'] = 'full'
) -> Dataset:
  """Opens a prepared dataset; its columns are mapped, not read.

  Args:
    path: its folder.
    verify: 'full' reads every file and checks its hash. 'quick' checks the
      manifest's own hash, and that every file is there and of its size: for
      the processes beside one that has looked at all.

  Raises:
    InputError: no dataset there, or a file is missing or changed.
  """
  if verify not in ('full', 'quick'):
    raise ValueError(f"verify is {verify!r}, neither 'full' nor 'quick'")
  path = Path(path)
  manifest = read_manifest(path)
  for name, expected in manifest['files'].items():
    file = path / name
    if Path(name).is_absolute() or '..' in Path(name).parts:
      raise InputError(f'{path / MANIFEST} names {name}, outside the dataset')
    if not file.is_file():
      raise InputError(f'{file} is missing: prepare the dataset again')
    num_bytes = file.stat().st_size
    differs = ''
    if num_bytes != expected['bytes']:
      differs = f'it has {num_bytes} bytes of {expected["bytes"]}'
    elif verify == 'full' and hash_file(file) != expected['sha256']:
      differs = 'its sha256 differs'
    if differs:
      raise InputError(
        f'{file} is not as it was written ({differs}): prepare the dataset '
        'again'
      )
  columns = {
    name.removeprefix('columns/').removesuffix('.npy'): map_column(path / name)
    for name in manifest['files']
    if name.startswith('columns/')
  }
  prefixed = lambda prefix: {
    name.removeprefix(prefix): column
    for name, column in columns.items()
    if name.startswith(prefix)
  }
  parts = {}
  for name in PARTS:
    arrays = prefixed(f'{manifest["part_files"][name]}.')
    arrays.setdefault('history_end', arrays['event'])
    parts[name] = Part(**arrays)
  return Dataset(
    path,
    manifest,
    tuple(Feature(**feature) for feature in manifest['features']),
    columns['events.user'],
    columns['events.item'],
    columns['events.timestamp'],
    prefixed('context.'),
    columns['users.id'],
    prefixed('item_ids.'),
    columns['items.train_count'],
    columns.get('history.event'),
    columns['history.start'],
    columns['users.start'],
    parts,
  )
