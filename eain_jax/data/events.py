"""The one table that every source becomes: who, what, when.

Canonical order is by user, then timestamp, then source row. Amazon's reviews
carry whole days, and about 40 % of them share their day with an earlier one of
the same user, so this rule decides results.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import polars as pl


@dataclasses.dataclass(frozen=True)
class ContextColumn:
  """A categorical column of the log, such as device or location.

  Attributes:
    codes: int32 [N], index into `values`; -1 where the log has no value.
    values: raw values as strings, sorted and unique.
  """

  codes: np.ndarray
  values: pl.Series


@dataclasses.dataclass(frozen=True)
class EventLog:
  """N events of U users with I items, in canonical order.

  Attributes:
    user: int32 [N], row of `users`, non-decreasing.
    item: int32 [N], row of `items`.
    timestamp: int64 [N], seconds UTC (or any order that the log defines).
    users: raw user ids as strings, sorted and unique, [U].
    items: raw item ids as strings, sorted and unique, [I].
    item_attributes: one row an item, in the order of `items`; String, Float64
      or List(String) columns; null where the source has no value.
    rating: float32 [N], or None where the source has none.
    label: int8 [N] of 0 and 1, or None.
    request: int32 [N], numbered from 0 in order of appearance, or None.
    position: int32 [N], as the log has it, or None.
    context: categorical columns by name.
    counts: `lines`, `events`, `users`, `items`, `duplicates`, `rejected`, ...
    sources: per file its name, bytes, sha256 and detected format.
    notes: sentences that the user must see (what was assumed or left out).
  """

  user: np.ndarray
  item: np.ndarray
  timestamp: np.ndarray
  users: pl.Series
  items: pl.Series
  item_attributes: pl.DataFrame
  rating: np.ndarray | None = None
  label: np.ndarray | None = None
  request: np.ndarray | None = None
  position: np.ndarray | None = None
  context: Mapping[str, ContextColumn] = dataclasses.field(
    default_factory=dict
  )
  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
  sources: tuple[Mapping[str, object], ...] = ()
  notes: tuple[str, ...] = ()
