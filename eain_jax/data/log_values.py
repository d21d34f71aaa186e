"""What the named columns of a log may hold, however the log is kept."""

import datetime
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eain_jax.data.events import MAX_ID_LENGTH
from eain_jax.errors import InputError

REQUIRED = ('user', 'item', 'timestamp')
OPTIONAL = ('rating', 'label', 'request', 'position')
MAX_INT32 = 2**31 - 1
# Far beyond any rating; float32 holds it.
MAX_RATING = 1e30
# Exact in float64, and far beyond any time stamp in microseconds.
MAX_TIME = 2**53 - 1
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def parse_columns(
  columns: tuple[str, ...], flag: str = '--columns'
) -> dict[str, str]:
  """name=column pairs as a dict; a name given twice is an error.

  Args:
    columns: the pairs as they are written.
    flag: what an error names.

  Raises:
    InputError: text that is no pair, or a name given twice.
  """
  pairs = {}
  for text in columns:
    name, equals, column = text.partition('=')
    if not (name and equals and column):
      raise InputError(f'{flag} holds {text!r}: write it as name=column')
    if name in pairs:
      raise InputError(f'{flag} names {name} twice')
    pairs[name] = column
  return pairs


class Refused(ValueError):
  """A value that its column cannot hold; the message says why."""


class Missing(Refused):
  """There is no value."""


def parse_identifier(name: str, value: Any) -> str:
  """An id or category as text."""
  if value is None:
    raise Missing(f'the {name} is missing')
  if isinstance(value, str):
    text = value
  elif isinstance(value, int) and not isinstance(value, bool):
    text = str(value)
  else:
    raise Refused(f'the {name} is {value!r}, neither text nor an integer')
  if not text or text.isspace():
    raise Missing(f'the {name} is empty')
  if '\0' in text or '\ufffd' in text:
    raise Refused(f'the {name} holds NUL or invalid UTF-8')
  if len(text) > MAX_ID_LENGTH:
    raise Refused(f'the {name} has more than {MAX_ID_LENGTH} characters')
  return text


def parse_category(name: str, value: Any) -> str:
  """The value of a context column as text."""
  return parse_identifier(
    name, str(value).lower() if isinstance(value, bool) else value
  )


def _finite(name: str, value: Any) -> float:
  if value is None or (isinstance(value, str) and not value.strip()):
    raise Missing(f'the {name} is missing')
  if isinstance(value, bool):
    raise Refused(f'the {name} is {value}')
  try:
    # Python's own: 1_000, and digits of other scripts.
    if isinstance(value, str) and ('_' in value or not value.isascii()):
      raise ValueError
    number = float(value)
  except (TypeError, ValueError, OverflowError) as error:
    raise Refused(f'the {name} {value!r} is not a number') from error
  if not math.isfinite(number):
    raise Refused(f'the {name} is {value}')
  return number


def parse_timestamp(name: str, value: Any) -> int:
  """Whole seconds (or the log's own order), or an ISO 8601 date as seconds."""
  if (
    isinstance(value, str)
    and value.isdecimal()
    and value.isascii()
    and len(value) < 16
  ):
    return int(value)
  if isinstance(value, str) and value.strip() and not _looks_numeric(value):
    try:
      time = datetime.datetime.fromisoformat(value.strip())
    except ValueError as error:
      raise Refused(
        f'the {name} {value!r} is neither a number nor an ISO 8601 date'
      ) from error
    if time.tzinfo is None:
      time = time.replace(tzinfo=datetime.UTC)
    # Not timestamp(), a float, which rounds up the last microsecond.
    return (time - EPOCH) // datetime.timedelta(seconds=1)
  number = _finite(name, value)
  if not -MAX_TIME <= number <= MAX_TIME:
    raise Refused(f'the {name} {value} is out of range')
  return math.floor(number)


def _looks_numeric(text: str) -> bool:
  """Digits with at most a sign, a point or an exponent; no date is."""
  body = text.strip().lstrip('+-')
  return body.replace('.', '', 1).isdigit() or 'e' in body.lower()


def parse_rating(name: str, value: Any) -> float:
  number = _finite(name, value)
  if abs(number) >= MAX_RATING:
    raise Refused(f'the {name} {value} is out of range')
  return number


def parse_label(name: str, value: Any) -> int:
  number = float(value) if isinstance(value, bool) else _finite(name, value)
  if number not in (0.0, 1.0):
    raise Refused(f'the {name} is {value}, not 0 or 1')
  return int(number)


def parse_position(name: str, value: Any) -> int:
  number = _finite(name, value)
  if number != int(number) or not 0 <= number <= MAX_INT32:
    raise Refused(f'the {name} {value} is not a whole number from 0 up')
  return int(number)


def require_columns(
  path: str | Path, wanted: Mapping[str, str], found: Sequence[str], flag: str
) -> None:
  for name, column in wanted.items():
    if column not in found:
      raise InputError(
        f'{path} has no column {column!r} for {name}; it has '
        f'{", ".join(map(str, found))}: mend {flag}'
      )
    if found.count(column) > 1:
      raise InputError(f'{path} has two columns of the name {column!r}')


def check_rows(path: str | Path, num_rows: int, columns: Iterable[str]) -> None:
  """Raises InputError where there is no row for columns of the source."""
  if not num_rows:
    named = ', '.join(dict.fromkeys(columns))
    raise InputError(f'{path} holds no line of data, so none for {named}')


def check_filled(
  path: str | Path, columns: Mapping[str, str], filled: Container[str]
) -> None:
  """Raises InputError where a column is not in `filled`: it has no value."""
  for name, column in columns.items():
    if name not in filled:
      raise InputError(
        f'{path}: the column {column!r} for {name} holds no value in any row: '
        'name another one, or leave it out'
      )


def time_note(name: str, unit: str) -> list[str]:
  if unit == 'seconds':
    return []
  return [f'{name}: times in {unit} were read as seconds.']


def odd_time(unit: str) -> str:
  return f'the time is not in {unit} as most of the file is'
