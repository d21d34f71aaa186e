"""What a caller in Python asks of a model, as rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eain_jax.data.log_values import Refused, parse_identifier
from eain_jax.errors import InputError
from eain_jax.serving.candidates import Rows, category

# Whoever asks at such a time has mistaken the unit; see `candidates.seconds`.
MAX_SECONDS = 253_402_300_799


def _seconds(name: str, value: Any) -> int:
  try:
    time = int(value)
    is_whole = time == value and abs(time) <= MAX_SECONDS
  except (TypeError, ValueError, OverflowError):
    is_whole = False
  if not is_whole:
    raise InputError(f'{name} has {value!r}, no whole seconds UTC up to 9999')
  return time


def _plain(value: Any) -> Any:
  """A number of numpy is none of Python's."""
  return value.item() if isinstance(value, np.generic) else value


def _of_length(name: str, values: Sequence[Any], num: int) -> list[Any]:
  if len(values) != num:
    raise InputError(f'{num} users, but {len(values)} of {name}')
  return list(values)


def make_rows(
  names: Sequence[str],
  users: Sequence[Any],
  items: Sequence[Any] | None,
  timestamps: Sequence[int],
  context: Mapping[str, Sequence[Any] | None] | None,
  histories: Sequence[Sequence[Any]] | None = None,
  history_timestamps: Sequence[Sequence[int]] | None = None,
) -> Rows:
  """Checked rows; see `LoadedModel.score` for what is taken.

  Args:
    names: the context columns of the model.
    users: raw ids, text or whole numbers, n of them.
    items: n of them, or None for rows without an item.
    timestamps: seconds UTC, n of them.
    context: by column n raw values; None in the place of one, or of a column,
      stands for the unknown value.
    histories: of each row the items before, the oldest first; None: of none.
    history_timestamps: of each row when.

  Raises:
    InputError: a length, a column, an id, a time or an order is wrong.
  """
  num, given = len(users), dict(context or {})
  if unknown := given.keys() - {*names}:
    raise InputError(
      f'{min(unknown)!r} is no context of the model: '
      f'{", ".join(names) or "it has none"}'
    )
  try:
    own_users = [parse_identifier('users', _plain(user)) for user in users]
    own_items = []
    if items is not None:
      values = _of_length('items', items, num)
      own_items = [parse_identifier('items', _plain(item)) for item in values]
    times = _of_length('timestamps', timestamps, num)
    times = [_seconds('timestamps', time) for time in times]
    columns = {}
    for name in names:
      values = given.get(name)
      values = [None] * num if values is None else _of_length(name, values, num)
      columns[name] = [category(name, _plain(value)) for value in values]
    own_histories = before = None
    if histories is not None:
      own_histories, before = [], []
      if history_timestamps is None:
        history_timestamps = [()] * num
      stated = _of_length('history_timestamps', history_timestamps, num)
      for row, events in enumerate(_of_length('histories', histories, num)):
        own = [_seconds('history_timestamps', time) for time in stated[row]]
        _check_history(row, len(events), own, times[row])
        own_histories.append(
          [parse_identifier('histories', _plain(event)) for event in events]
        )
        before.append(own)
  except Refused as error:
    raise InputError(str(error)) from error
  return Rows(own_users, own_items, times, columns, own_histories, before, {})


def _check_history(
  row: int, num_events: int, times: list[int], before: int
) -> None:
  if len(times) != num_events:
    raise InputError(
      f'the history of row {row} has {num_events} items, but {len(times)} times'
    )
  if sorted(times) != times or times[-1:] >= [before]:
    raise InputError(
      f'the history of row {row} is not in the order of time, or not before '
      'the row'
    )
