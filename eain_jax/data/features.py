"""Raw values to ids: vocabularies, item attributes, context (3.6.1, 3.7.2).

Every categorical feature has one vocabulary, made from the training part alone:
id 0 is padding, id 1 is any value that is unknown or rarer than `min_count`,
and ids from 2 follow falling count, ties by value.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping

import numpy as np
import polars as pl

from eain_jax.data.events import EventLog
from eain_jax.errors import InputError

PADDING = 0
UNKNOWN = 1
NUM_RESERVED = 2
NUM_PRICE_BUCKETS = 10
SECONDS_PER_DAY = 86_400
# 0 days, 1, 2-3, 4-7, ..., 256-511, 512 and more.
NUM_DAY_BUCKETS = 11
# What the timestamp tells; `_time_codes` index into these.
TIME_VALUES = {
  'hour': [str(hour) for hour in range(24)],
  'weekday': ['Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat', 'Sun'],
  'month': [str(month) for month in range(1, 13)],
  'quarter': [
    f'{year} Q{quarter}'
    for year in range(1970, 2100)
    for quarter in (1, 2, 3, 4)
  ],
  'gap': [
    *('first event', '0', '1'),
    *(f'{2**i}-{2 ** (i + 1) - 1}' for i in range(1, 9)),
    '512 or more',
  ],
}


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Values of one feature: `values[i]` has id `i + 2`.

  Attributes:
    values: raw values as strings, [V - 2].
    counts: int64 [V - 2], training events with the value.
  """

  values: pl.Series
  counts: np.ndarray

  @property
  def num_rows(self) -> int:
    """V, rows of the embedding table: the values, padding and unknown."""
    return len(self.values) + NUM_RESERVED

  def table(self) -> pl.DataFrame:
    """The vocabulary as a person reads it: id, value, count."""
    ids = np.arange(NUM_RESERVED, self.num_rows, dtype=np.int32)
    return pl.DataFrame({'id': ids, 'value': self.values, 'count': self.counts})


@dataclasses.dataclass(frozen=True)
class Feature:
  """One categorical feature of the model's input.

  Attributes:
    name: unique name; also the name of its embedding table.
    kind: 'user', 'item' (of targets and history events alike) or 'context'.
    num_rows: rows of its embedding table.
    max_values: 1, or the most values that an item has where multi-valued.
    multi_valued: values are a list, pooled by their mean.
  """

  name: str
  kind: str
  num_rows: int
  max_values: int = 1
  multi_valued: bool = False


def names_of(features: Iterable[Feature], kind: str) -> list[str]:
  """Of the features of a kind, in their order."""
  return [feature.name for feature in features if feature.kind == kind]


def build_vocabulary(
  counts: np.ndarray, values: pl.Series, min_count: int
) -> tuple[Vocabulary, np.ndarray]:
  """A vocabulary of the values that occur at least `min_count` times.

  Args:
    counts: int64 [W], occurrences of each value in the training part.
    values: distinct raw values, [W], sorted.
    min_count: occurrences that a value needs.

  Returns:
    The vocabulary, and int32 [W + 1]: the id of each code; its last entry,
    which code -1 (no value) indexes, is UNKNOWN.
  """
  kept = np.flatnonzero(counts >= min_count)
  # Values are sorted, so a stable sort breaks ties by value.
  kept = kept[np.argsort(-counts[kept], kind='stable')]
  id_of_code = np.full(len(values) + 1, UNKNOWN, np.int32)
  id_of_code[kept] = np.arange(len(kept), dtype=np.int32) + NUM_RESERVED
  return Vocabulary(values.gather(kept), counts[kept]), id_of_code


def _count_codes(
  codes: np.ndarray, num_values: int, weights: np.ndarray | None = None
) -> np.ndarray:
  """int64 [num_values]: occurrences of each code; -1 is not counted."""
  shifted = np.bincount(codes + 1, weights, minlength=num_values + 1)
  return shifted[1:].astype(np.int64)


def encode_categories(column: pl.Series) -> tuple[np.ndarray, pl.Series]:
  """int32 codes (-1 for null) and the sorted distinct values of a column."""
  values = column.drop_nulls().unique().sort()
  numbered = pl.DataFrame(
    {'value': values, 'code': np.arange(len(values), dtype=np.int32)}
  )
  codes = pl.DataFrame({'value': column}).join(
    numbered, on='value', how='left', maintain_order='left'
  )['code']
  return codes.fill_null(-1).to_numpy(), values


def price_buckets(price: pl.Series, train_count: np.ndarray) -> pl.Series:
  """Prices as the names of ten buckets; null stays null.

  The edges are the deciles over the training events, each event with its
  item's price, so the buckets are about equally often seen.
  """
  value = price.fill_null(np.nan).to_numpy()
  known = np.isfinite(value)
  order = np.argsort(value[known], kind='stable')
  cumulative = np.cumsum(train_count[known][order])
  if not len(cumulative) or not cumulative[-1]:
    return pl.Series(price.name, [None] * len(price), pl.String)
  shares = np.arange(1, NUM_PRICE_BUCKETS) / NUM_PRICE_BUCKETS
  at = np.searchsorted(cumulative, shares * cumulative[-1])
  edges = np.unique(value[known][order][at])
  middle = [f'{low:g} to {high:g}' for low, high in itertools.pairwise(edges)]
  names = [f'below {edges[0]:g}', *middle, f'{edges[-1]:g} or more']
  bucket = np.searchsorted(edges, value, side='right')
  return pl.Series(
    price.name,
    [names[b] if k else None for b, k in zip(bucket, known, strict=True)],
    pl.String,
  )


def encode_items(
  items: pl.Series,
  attributes: pl.DataFrame,
  train_count: np.ndarray,
  min_count: int,
) -> tuple[dict[str, np.ndarray], list[Feature], dict[str, Vocabulary]]:
  """The ids of every item's features: the item itself and its attributes.

  Args:
    items: raw ids, [I].
    attributes: one row an item.
    train_count: int64 [I], each item's events in the training part.
    min_count: training events that a value needs.

  Returns:
    By feature name int32 [I], or [I, W] for a multi-valued attribute (padded
    with 0 at the right); the features; their vocabularies.
  """
  vocabulary, id_of_code = build_vocabulary(train_count, items, min_count)
  ids = {'item': id_of_code[:-1].copy()}
  features = [Feature('item', 'item', vocabulary.num_rows)]
  vocabularies = {'item': vocabulary}
  for column in attributes:
    multi_valued = isinstance(column.dtype, pl.List)
    if column.dtype == pl.Float64:
      column = price_buckets(column, train_count)
    if multi_valued:
      lengths = column.list.len().fill_null(0).to_numpy().astype(np.int64)
      flat = column.explode(empty_as_null=False, keep_nulls=False)
    else:
      lengths = np.ones(len(column), np.int64)
      flat = column
    codes, values = encode_categories(flat.cast(pl.String))
    if not len(values):
      continue
    owner = np.repeat(np.arange(len(items)), lengths)
    # An occurrence is a training event of an item that has the value.
    counts = _count_codes(codes, len(values), train_count[owner])
    vocabulary, id_of_code = build_vocabulary(counts, values, min_count)
    width = 1
    if multi_valued:
      width = int(lengths.max(initial=1))
      start = np.cumsum(lengths) - lengths
      slot = np.arange(len(owner)) - np.repeat(start, lengths)
      table = np.zeros((len(items), width), np.int32)
      table[owner, slot] = id_of_code[codes]
      ids[column.name] = table
    else:
      ids[column.name] = id_of_code[codes]
    features.append(
      Feature(column.name, 'item', vocabulary.num_rows, width, multi_valued)
    )
    vocabularies[column.name] = vocabulary
  return ids, features, vocabularies


def bucket_days(days: np.ndarray) -> np.ndarray:
  """int32, of numbers of days: 0, 1, 2-3, 4-7, ... 512+; less than 0 is 0."""
  power = np.frexp(np.maximum(days, 0))[1]
  return np.minimum(power, NUM_DAY_BUCKETS - 1).astype(np.int32)


def begins(request: np.ndarray) -> np.ndarray:
  """int64 [N], for each row the first row of its request, int32 [N]."""
  rows = np.arange(len(request), dtype=np.int64)
  first = np.full(int(request.max(initial=-1)) + 1, len(rows), np.int64)
  np.minimum.at(first, request, rows)
  return first[request]


def gap_codes(days: np.ndarray, is_first: np.ndarray) -> np.ndarray:
  """int32 codes of days since the user's event before: first, then by days."""
  return np.where(is_first, 0, 1 + bucket_days(days)).astype(np.int32)


def _gap_buckets(log: EventLog, begin: np.ndarray) -> np.ndarray:
  before = np.maximum(begin - 1, 0)
  is_first = (begin == 0) | (log.user[before] != log.user)
  # Of the whole request: where a row stands in it may tell its label.
  seconds = log.timestamp[begin] - log.timestamp[before]
  return gap_codes(np.where(is_first, 0, seconds // SECONDS_PER_DAY), is_first)


def time_codes(timestamp: np.ndarray, name: str) -> np.ndarray:
  """Codes of a feature of the timestamp alone: each of TIME_VALUES but gap.

  Args:
    timestamp: int64 [N], seconds UTC.
    name: of the feature.

  Returns:
    int32 [N], -1 for a time that has no value.
  """
  if name == 'hour':
    return (timestamp // 3600 % 24).astype(np.int32)
  day = timestamp // SECONDS_PER_DAY
  if name == 'weekday':
    # Day 0, 1 January 1970, was a Thursday; Monday is 0.
    return ((day + 3) % 7).astype(np.int32)
  first, last = (int(day.min()), int(day.max())) if len(day) else (0, 0)
  if last - first < len(day):
    # The calendar is slow, so each day is looked up in it once.
    month = _months_of_days(np.arange(first, last + 1))[day - first]
  else:
    month = _months_of_days(day)
  if name == 'month':
    return (month % 12).astype(np.int32)
  quarter = month // 3
  is_named = (quarter >= 0) & (quarter < len(TIME_VALUES['quarter']))
  return np.where(is_named, quarter, -1).astype(np.int32)


def _months_of_days(day: np.ndarray) -> np.ndarray:
  """int64, months since January 1970 of days since its first."""
  month = day.astype('datetime64[D]').astype('datetime64[M]')
  return month.astype(np.int64)


def context_values(
  log: EventLog, names: tuple[str, ...]
) -> dict[str, list[str]]:
  """By name, the values that the codes of a context column index into.

  Args:
    log: the events; its own context columns are always taken.
    names: features of the timestamp, of TIME_VALUES.

  Raises:
    InputError: a column has the name of a feature of the timestamp.
  """
  values = {name: TIME_VALUES[name] for name in names}
  for name, column in log.context.items():
    if name in values:
      raise InputError(
        f'the column {name} has the name of a time feature: rename it in '
        '--columns, or leave the time feature out with --context'
      )
    values[name] = column.values.to_list()
  return values


def context_codes(
  log: EventLog, name: str, begin: np.ndarray | None = None
) -> np.ndarray:
  """int32 [N] codes, -1 for none, of some whole users' events.

  Args:
    log: the events.
    name: of the feature.
    begin: int64 [N] of `begins`, for a request's rows are asked for at one
      time. None: each event is a request.
  """
  if name in log.context:
    return log.context[name].codes
  if name == 'gap':
    return _gap_buckets(
      log, np.arange(len(log.user)) if begin is None else begin
    )
  return time_codes(log.timestamp, name)


def encode_context(
  values: Mapping[str, list[str]],
  seen: Mapping[str, np.ndarray],
  train_count: Mapping[str, np.ndarray],
  min_count: int,
) -> tuple[
  dict[str, np.ndarray], list[Feature], dict[str, Vocabulary], list[str]
]:
  """The ids of the context features' codes.

  Args:
    values: by name W values.
    seen: by name int64 [W + 1], events with each code from -1 on.
    train_count: the same, of training events alone.
    min_count: training events that a value needs.

  Returns:
    By feature name int32 [W + 1], the id of each code, that of -1 last; the
    features; their vocabularies; and the names of those left out because they
    take one value in all of the data.
  """
  ids, features, vocabularies, constant = {}, [], {}, []
  for name, named in values.items():
    if np.count_nonzero(seen[name]) == 1:
      constant.append(name)
      continue
    vocabulary, ids[name] = build_vocabulary(
      train_count[name][1:], pl.Series(name, named, pl.String), min_count
    )
    features.append(Feature(name, 'context', vocabulary.num_rows))
    vocabularies[name] = vocabulary
  return ids, features, vocabularies, constant


def encode_users(
  users: pl.Series, train_count: np.ndarray, min_count: int
) -> tuple[np.ndarray, Feature, Vocabulary]:
  """int32 [U], the id of each user; the feature; its vocabulary."""
  vocabulary, id_of_code = build_vocabulary(train_count, users, min_count)
  feature = Feature('user', 'user', vocabulary.num_rows)
  return id_of_code[:-1], feature, vocabulary
