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
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from eain_jax import artifacts
from eain_jax.config import PrepareConfig
from eain_jax.data.columns import ColumnFiles, written_by_polars
from eain_jax.data.examples import PARTS, NegativeSampler, Part, make_sampler
from eain_jax.data.features import Feature, Vocabulary
from eain_jax.data.soundness import (
  REMEDY,
  Inspection,
  checked_fields,
  map_columns,
)
from eain_jax.errors import InputError

FORMAT_VERSION = 1


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
    users = pl.read_parquet(self.path / 'users.parquet', glob=False)['user']
    items = pl.read_parquet(self.path / 'items.parquet', glob=False)['item']
    table = {
      'user': users.gather(self.user),
      'item': items.gather(self.item),
      'timestamp': self.timestamp,
    }
    return pl.DataFrame({**table, **self.context_ids})

  def raw_items(self, items: np.ndarray) -> list[str]:
    """The raw ids of items, as the source has them."""
    file = self.path / 'items.parquet'
    table = pl.read_parquet(file, columns=['item'], glob=False)
    return table['item'].gather(items).cast(pl.String).to_list()

  def values_of(self, feature: str, ids: np.ndarray) -> dict[int, str]:
    """By id the value of each of `ids` that is in a feature's vocabulary."""
    table = (
      pl.scan_csv(
        self.path / 'vocabularies' / f'{feature}.csv',
        schema_overrides={'value': pl.String},
        glob=False,
      )
      .filter(pl.col('id').is_in(np.unique(ids).tolist()))
      .collect()
    )
    values = table['value'].fill_null('')  # An empty field reads as none.
    return dict(zip(table['id'], values, strict=True))


def _write_table(
  write: Callable[[Path], object],
  file: Path,
  num_rows: int,
  scan: Callable[..., pl.LazyFrame],
) -> None:
  """Writes a table with polars, and counts its rows in the file.

  Raises:
    OSError: it cannot be written, which polars says in several ways.
    InputError: the file does not hold the rows.
  """
  with written_by_polars():
    write(file)
  found = 0
  if num_rows:
    found = scan(file, glob=False).select(pl.len()).collect().item()
  if found != num_rows:
    raise InputError(
      f'{file} holds {found} rows of {num_rows} that were just written: its '
      'disk fails'
    )


class DatasetWriter:
  """Writes a dataset's files; its columns grow by pieces.

  Attributes:
    folder: where they are written; see `folder_written_whole`.
    scratch: columns that are no part of the dataset.
  """

  def __init__(self, folder: Path):
    self.folder = folder
    for made in ('columns', 'vocabularies', 'scratch'):
      (folder / made).mkdir()
    self._columns = ColumnFiles(folder / 'columns')
    self.scratch = ColumnFiles(folder / 'scratch')

  def append(self, name: str, rows: np.ndarray) -> None:
    """Adds rows [n, ...] to a column; see `open_dataset` for the names."""
    self._columns.append(name, rows)

  def map(self, name: str) -> np.ndarray:
    """A column, complete now, to read; `release` lets go of what was read."""
    return self._columns.map(name)

  def release(self) -> None:
    """Takes what was read of columns out of the process's memory."""
    self._columns.release()
    self.scratch.release()

  def close(self) -> None:
    """Lets go of files, also of columns that were not finished."""
    self._columns.close()
    self.scratch.close()

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
    self._columns.finish()
    self.scratch.finish()
    shutil.rmtree(self.scratch.folder)
    folder = self.folder
    for name, vocabulary in vocabularies.items():
      table = vocabulary.table()
      file = folder / 'vocabularies' / f'{name}.csv'
      _write_table(table.write_csv, file, len(table), pl.scan_csv)
    for name, table in (('users', users), ('items', items)):
      # Bytes follow chunks, which follow how a source was read.
      table = table.rechunk()
      file = folder / f'{name}.parquet'
      _write_table(table.write_parquet, file, len(table), pl.scan_parquet)
    file = folder / 'rejected.jsonl'
    _write_table(rejected.write_ndjson, file, len(rejected), pl.scan_lines)
    names = [
      str(file.relative_to(folder))
      for file in sorted(folder.rglob('*'))
      if file.is_file()
    ]
    return artifacts.write_manifest(
      folder,
      names,
      format_version=FORMAT_VERSION,
      **manifest,
      features=[dataclasses.asdict(feature) for feature in features],
    )


@contextlib.contextmanager
def dataset_written_whole(path: Path) -> Iterator[DatasetWriter]:
  """Writes a dataset, whole or not at all.

  Raises:
    InputError: `path` already holds something, or the disk is full.
  """
  with (
    artifacts.folder_written_whole(path) as folder,
    contextlib.closing(DatasetWriter(folder)) as writer,
  ):
    yield writer


def open_dataset(
  path: str | Path, *, verify: Literal['full', 'quick'] = 'full'
) -> Dataset:
  """Opens a prepared dataset; its columns are mapped, not read.

  Args:
    path: its folder.
    verify: 'full' reads every file, checks its hash, and that every id is
      within its table. 'quick' checks the manifest's own hash, that every file
      is there and of its size, and what has a row a user or an item: for the
      processes beside one that has looked at all.

  Raises:
    InputError: no dataset there, or a file is missing, changed, or holds what
      cannot be used.
  """
  if verify not in ('full', 'quick'):
    raise ValueError(f"verify is {verify!r}, neither 'full' nor 'quick'")
  path = Path(path)
  if not (path / artifacts.MANIFEST).is_file():
    raise InputError(
      f'{path} is not a prepared dataset: it holds no {artifacts.MANIFEST}; '
      'make one with python -m experiments.prepare_data'
    )
  manifest = artifacts.read_manifest(path, REMEDY, FORMAT_VERSION)
  artifacts.check_files(path, manifest, verify=verify, remedy=REMEDY)
  manifest = checked_fields(path, manifest)
  columns = map_columns(path, manifest)
  inspection = Inspection(path, manifest, columns)
  inspection.check_tables()
  if verify == 'full':
    inspection.check_columns()
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
