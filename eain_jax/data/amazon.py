"""Amazon's own formats: reviews, ratings and metadata of 2014, 2018 and 2023.

The format is told from a file's keys, never from its name, and is said. Only
the ids, the rating, the time and four attributes are kept: never a text.
"""

import ast
import dataclasses
import functools
import html
import itertools
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from eain_jax.data.events import (
  MAX_ID_LENGTH,
  Codes,
  EventLog,
  LineNumbers,
  RawEvents,
  check_rejected,
  clean_events,
  rejected_table,
)
from eain_jax.data.lines import LineReader, ReadOptions, first_lines
from eain_jax.data.spool import RowBuffer, Spool
from eain_jax.errors import InputError

METADATA_ATTRIBUTES = ('category', 'category_path', 'brand', 'price')
MAX_ATTRIBUTE_LENGTH = 200
# The longest real names of categories have some 50 characters.
MAX_CATEGORY_LENGTH = 60
SAMPLE_LINES = 100
# Python takes up to 500 bytes for each byte of a literal; real ones are 6 kB.
MAX_LITERAL_BYTES = 1 << 18
# Far beyond any; a larger number is junk, and may be beyond float64.
MAX_RATING = 1e6
MAX_PRICE = 1e9
# Exact in float64, and far beyond any time stamp in microseconds.
MAX_TIME = 2**53

HEADER_NAMES = {
  'user': ('user_id', 'reviewerid', 'user', 'userid'),
  'item': ('parent_asin', 'asin', 'item', 'item_id', 'itemid', 'product_id'),
  'rating': ('rating', 'overall'),
  'time': ('timestamp', 'unixreviewtime', 'time'),
}


# gc=False: a block holds thousands of these, and none is part of a cycle.
class _Review2014(msgspec.Struct, gc=False):
  """The fields of a review that are read, of 2014 and 2018."""

  user: str = msgspec.field(name='reviewerID')
  item: str = msgspec.field(name='asin')
  rating: int | float = msgspec.field(name='overall')
  time: int | float = msgspec.field(name='unixReviewTime')


class _Review2023(msgspec.Struct, gc=False):
  """The fields of a review that are read, of 2023."""

  user: str = msgspec.field(name='user_id')
  item: str = msgspec.field(name='parent_asin')
  rating: int | float
  time: int | float = msgspec.field(name='timestamp')


class _Metadata(msgspec.Struct, gc=False):
  """The fields of a metadata line that are read; junk is sorted out later."""

  asin: str | None = None
  parent_asin: str | None = None
  category: Any = None
  categories: Any = None
  brand: Any = None
  store: Any = None
  price: Any = None


def _parse_record(line: bytes) -> dict[str, Any] | None:
  """A line as a dict, JSON or Python literal; None where it is neither."""
  try:
    record = msgspec.json.decode(line)
  except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
    try:
      record = _evaluate_literal(_literal_text(line))
    except ValueError:
      return None
  return record if isinstance(record, dict) else None


def _record_format(path: Path, keys: set[str]) -> str:
  """The format that a record's keys tell.

  Raises:
    InputError: they tell none.
  """
  if {'reviewerID', 'asin'} <= keys:
    year = '2018' if 'verified' in keys else '2014'
    return f'amazon-{year}-reviews'
  if {'user_id', 'parent_asin'} <= keys:
    return 'amazon-2023-reviews'
  if 'parent_asin' in keys:
    return 'amazon-2023-metadata'
  if 'asin' in keys:
    new = {'category', 'also_buy', 'also_view', 'main_cat', 'rank', 'tech1'}
    year = '2018' if new & keys else '2014'
    return f'amazon-{year}-metadata'
  raise InputError(
    f'{path}: not a file of Amazon reviews or metadata; its keys are '
    f'{", ".join(sorted(map(str, keys))[:12])}. Read a log of your own with '
    '--events and --columns'
  )


def detect_format(path: Path, options: ReadOptions) -> str:
  """The format of one of Amazon's files, from its first lines.

  Returns:
    amazon-{2014,2018,2023}-{reviews,metadata}, amazon-ratings-csv or
    amazon-ratings-csv-header.

  Raises:
    InputError: it is none of those.
  """
  sample = first_lines(path, options, SAMPLE_LINES)
  number, line = sample[0]
  shown = line[:80].decode('utf-8', 'replace')
  if line.startswith(b'['):
    raise InputError(
      f'{path}, line {number}: a JSON array, {shown!r}; write one object a line'
    )
  fields = _csv_fields(line)
  if not line.startswith(b'{') and len(fields) >= 4:
    if any(field.lower() in HEADER_NAMES['user'] for field in fields):
      return 'amazon-ratings-csv-header'
    if (
      len(fields) == 4
      and _number(fields[2]) is not None
      and _number(fields[3]) is not None
    ):
      return 'amazon-ratings-csv'
  # The first line may be a broken one; it is rejected like any other.
  for _, line in sample:
    if line.startswith(b'{') and (record := _parse_record(line)) is not None:
      return _record_format(path, set(record))
  if shown.startswith('{'):
    raise InputError(
      f'{path}, line {number}: neither a JSON object nor a Python literal: '
      f'{shown!r}'
    )
  raise InputError(
    f"{path}: not one of Amazon's formats; its first line is {shown!r}. Read a "
    'log of your own with --events and --columns'
  )


def _number(text: str) -> float | None:
  """The finite number that a text holds, or None."""
  # Python's own: 1_000, and digits of other scripts.
  if '_' in text or not text.isascii():
    return None
  try:
    value = float(text)
  except ValueError:
    return None
  return value if math.isfinite(value) else None


def _is_id(text: str) -> bool:
  is_empty = not text or text.isspace()
  is_bad = '\0' in text or '\ufffd' in text
  return not (is_empty or is_bad) and len(text) <= MAX_ID_LENGTH


def _bad_fields(user: str, item: str, rating: float, time: float) -> str | None:
  """Why the fields of an event cannot be used, or None."""
  if not user or not item or user.isspace() or item.isspace():
    return 'an id is empty'
  if max(len(user), len(item)) > MAX_ID_LENGTH:
    return f'an id has more than {MAX_ID_LENGTH} characters'
  if not (_is_id(user) and _is_id(item)):
    return 'an id holds NUL or invalid UTF-8'
  # Not isfinite, which fails on integers beyond float64.
  if not -MAX_RATING < rating < MAX_RATING:
    return 'the rating is not a number in range'
  if not -MAX_TIME < time < MAX_TIME or time != int(time):
    return 'the time is not a whole number in range'
  return None


class _Events:
  """Gathers events over all files, ids as int32 codes from the start."""

  def __init__(self, folder: Path):
    self.user_of, self.item_of = Codes(_is_id), Codes(_is_id)
    self.spool = Spool(folder)
    self.rows = RowBuffer(
      self.spool,
      {
        'user': self.user_of,
        'item': self.item_of,
        'rating': None,
        'timestamp': None,
      },
    )
    columns = self.rows.columns
    self._user, self._item = columns['user'], columns['item']
    self._rating, self._time = columns['rating'], columns['timestamp']
    self.line = LineNumbers()

  def add(self, user, item, rating, time, line) -> None:
    self._user.append(self.user_of(user))
    self._item.append(self.item_of(item))
    self._rating.append(rating)
    self._time.append(int(time))
    self.line.add(line)

  def add_reviews(
    self, reviews: Sequence[_Review2014 | _Review2023], count: Callable
  ) -> bool:
    """Adds the reviews of a block of lines, or none if one has a bad field.

    `count` counts them, and says the line of the first.
    """
    user = self.user_of.of([review.user for review in reviews])
    item = self.item_of.of([review.item for review in reviews])
    try:
      rating = np.array([review.rating for review in reviews], np.float64)
      time = np.array([review.time for review in reviews], np.float64)
    except OverflowError:
      return False
    is_good = (user >= 0) & (item >= 0) & (np.abs(rating) < MAX_RATING)
    is_good &= (np.abs(time) < MAX_TIME) & (time == np.floor(time))
    if not is_good.all():
      return False
    self.line.add(count(len(reviews)), len(reviews))
    self._user.frombytes(user.tobytes())
    self._item.frombytes(item.tobytes())
    self._rating.frombytes(rating.astype(np.float32).tobytes())
    self._time.frombytes(time.astype(np.int64).tobytes())
    return True


def _decode_lines(decoder: msgspec.json.Decoder, text: bytes) -> list | None:
  """The objects of a text that has one on each of its lines; else None."""
  character = np.frombuffer(text, np.uint8)
  end = np.flatnonzero(character == ord('\n'))
  # No object goes on over a line end between } and {. So each line holds one
  # object at least, and where there are as many objects as lines, just one.
  if (
    text[:1] != b'{'
    or text[-2:] != b'}\n'
    or not (character[end - 1] == ord('}')).all()
    or not (character[end[:-1] + 1] == ord('{')).all()
  ):
    return None
  try:
    records = decoder.decode_lines(text)
  except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
    return None
  return records if len(records) == len(end) else None


def _json_events(reader: LineReader, format_name: str, events: _Events) -> None:
  is_2023 = format_name == 'amazon-2023-reviews'
  decoder = msgspec.json.Decoder(_Review2023 if is_2023 else _Review2014)
  decode = decoder.decode
  for text in reader.texts():
    events.rows.make_room()
    reviews = _decode_lines(decoder, text)
    if reviews and events.add_reviews(reviews, reader.count_filled):
      continue
    # One line is odd at least: each is judged by itself.
    start, lines = reader.split(text)
    for number, line in enumerate(lines, start):
      if not line:
        continue
      try:
        record = decode(line)
      except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reader.reject(number, str(error), line)
        continue
      fields = record.user, record.item, record.rating, record.time
      if reason := _bad_fields(*fields):
        reader.reject(number, reason, line)
      else:
        events.add(*fields, number)


def _item_column(path: Path, rows: Sequence[Sequence[str]]) -> int:
  """Which of the first two columns of a file without header holds items.

  An ASIN is ten capitals and digits; reviewer ids start with A and are
  longer. 2014 wrote user, item and 2018 item, user, so the ids must tell.

  Raises:
    InputError: both columns, or none, look like items.
  """
  asin = re.compile(r'[0-9A-Z]{10}')
  share = [
    sum(asin.fullmatch(row[c].strip()) is not None for row in rows) / len(rows)
    for c in (0, 1)
  ]
  if share[0] > 0.9 and share[1] < 0.5:
    return 0
  if share[1] > 0.9 and share[0] < 0.5:
    return 1
  raise InputError(
    f'{path} has no header, and its ids do not tell which of the first two '
    f'columns is the item: {share[0]:.0%} and {share[1]:.0%} of them look '
    'like ASINs; add a header such as user,item,rating,timestamp'
  )


def _header_order(path: Path, header: list[str]) -> list[int]:
  """Places of user, item, rating and time in a header.

  Raises:
    InputError: one of them is not there, or twice.
  """
  order = []
  for name, known in HEADER_NAMES.items():
    found = [alias for alias in known if alias in header]
    if not found:
      raise InputError(
        f'{path}: its header has no column for the {name}, only '
        f'{", ".join(header)}; name them with --events and --columns'
      )
    if header.count(found[0]) > 1:
      raise InputError(f'{path}: its header names {found[0]} twice')
    order.append(header.index(found[0]))
  return order


def _csv_fields(line: bytes) -> list[str]:
  """Amazon's ids and numbers hold no comma, so quotes mean nothing."""
  fields = line.decode('utf-8', 'replace').replace('"', '').split(',')
  return [field.strip() for field in fields]


def _csv_columns(
  path: Path, has_header: bool, options: ReadOptions
) -> tuple[list[int], int, str]:
  """Places of user, item, rating and time; fields a row; and how we know.

  Raises:
    InputError: neither a header nor the ids tell.
  """
  # The look of the ids needs a good sample.
  num = 1 if has_header else 10 * SAMPLE_LINES
  sample = [_csv_fields(line) for _, line in first_lines(path, options, num)]
  if has_header:
    header = [name.lower() for name in sample[0]]
    return _header_order(path, header), len(header), 'its header'
  item = _item_column(path, [row for row in sample if len(row) == 4])
  return [1 - item, item, 2, 3], 4, 'the look of its ids'


def _csv_events(
  reader: LineReader, format_name: str, events: _Events, notes: list[str]
) -> None:
  is_header = format_name.endswith('header')
  order, width, said = _csv_columns(reader.path, is_header, reader.options)
  is_first_event = True
  for start, lines in reader.blocks():
    events.rows.make_room()
    for number, line in enumerate(lines, start):
      if not line:
        continue
      if is_header:
        is_header = False
        reader.lines -= 1
        continue
      row = _csv_fields(line)
      if len(row) != width:
        reader.reject(number, f'{len(row)} fields, expected {width}', line)
        continue
      user, item, *texts = (row[place] for place in order)
      rating, time = map(_number, texts)
      if rating is None or time is None:
        reader.reject(number, 'the rating or the time is no number', line)
      elif reason := _bad_fields(user, item, rating, time):
        reader.reject(number, reason, line)
      else:
        events.add(user, item, rating, time, number)
        if is_first_event:
          is_first_event = False
          notes.append(
            f'{reader.path.name}: columns taken by {said}; its first event is '
            f'user {user}, item {item}, rating {texts[0]}, time {texts[1]}.'
          )


def _read_review_files(
  paths: Sequence[str | Path], options: ReadOptions, folder: Path
) -> tuple[RawEvents, list[LineReader], list[dict[str, Any]], list[str]]:
  events, readers, sources, notes = _Events(folder), [], [], []
  for path in map(Path, paths):
    reader = LineReader(path, options)
    format_name = detect_format(path, options)
    if format_name.endswith('metadata'):
      raise InputError(
        f'{path} is item metadata ({format_name}), not reviews: give it as '
        '--metadata'
      )
    if format_name.endswith('reviews'):
      _json_events(reader, format_name, events)
    else:
      _csv_events(reader, format_name, events, notes)
    events.rows.flush()
    unit, rows, times = events.spool.end_file()
    events.spool.refuse(rows)
    for row, time in zip(rows.tolist(), times.tolist(), strict=True):
      reader.reject(
        events.line.of(row),
        f'the time {time} is not in {unit} as most of the file is',
        '',
      )
    check_rejected(reader)
    if unit != 'seconds':
      notes.append(f'{path.name}: times in {unit} were read as seconds.')
    readers.append(reader)
    sources.append(reader.source(format_name))
    notes += reader.notes()
  return events.rows.finish(), readers, sources, notes


# Splits at strings. A quote that opens none takes all that follows, lest each
# quote after it is tried against the rest of the line.
_LITERAL_STRINGS = re.compile(
  r"""('(?:[^'\\]++|\\.)*+'|"(?:[^"\\]++|\\.)*+"|['"].*+)""", re.DOTALL
)
_LITERAL_OTHERS = re.compile(
  r'(?:[\s\d.,:{}\[\]+-]|(?<=\d)[eE]|None|True|False)*+', re.ASCII
)
_WHOLE_STRING = re.compile(
  r"""'(?:[^'\\]++|\\.)*+'|"(?:[^"\\]++|\\.)*+\"""", re.DOTALL
)
_ESCAPE = re.compile(
  r"""\\(?:x[0-9a-fA-F]{2}|u(?![dD][89a-fA-F])[0-9a-fA-F]{4}|[\\'"nrtbf])"""
  r"""|(?P<bare>["\t])|(?P<odd>\\)"""
)


class _NotTranslated(Exception):
  """A string has an escape that JSON does not know."""


def _translate_escape(match: re.Match) -> str:
  if match['odd']:
    raise _NotTranslated
  text = match[0]
  if match['bare']:
    return '\\"' if text == '"' else '\\t'
  if text[1] == 'x':
    return f'\\u00{text[2:]}'
  return "'" if text == "\\'" else text


def literal_to_json(text: str) -> str | None:
  """A Python literal of dicts, lists, strings and numbers as JSON.

  Faster than `ast.literal_eval`, and as safe: nothing is evaluated. What
  decodes as JSON has the value that `ast.literal_eval` would give.

  Returns:
    JSON where the text is such a literal; None, or what is no JSON, where it
    is not or where only `ast.literal_eval` can judge it.
  """
  pieces = _LITERAL_STRINGS.split(text)
  others, strings = pieces[::2], pieces[1::2]
  joined = ','.join(others)
  if not _LITERAL_OTHERS.fullmatch(joined):
    return None
  if strings and not _WHOLE_STRING.fullmatch(strings[-1]):
    return None
  if 'e' in joined:  # None, True, False or an exponent.
    for place, other in enumerate(others):
      other = other.replace('None', 'null').replace('True', 'true')
      pieces[2 * place] = other.replace('False', 'false')
  if '\\' in text or '\t' in text:
    try:
      pieces[1::2] = [
        f'"{_ESCAPE.sub(_translate_escape, string[1:-1])}"'
        for string in strings
      ]
    except _NotTranslated:
      return None
  else:
    pieces[1::2] = [
      '"' + string[1:-1].replace('"', '\\"') + '"' for string in strings
    ]
  return ''.join(pieces)


def requote_literal(text: str) -> str | None:
  """As `literal_to_json` and far faster, for literals without a backslash.

  There a string ends at the next quote of its own kind, and all that differs
  from JSON is which quotes there are.

  Returns:
    JSON, what is no JSON, or None, as `literal_to_json`.
  """
  if '\\' in text:
    return None
  # JSON takes these for values, and Python takes them for names.
  if 'null' in text or 'true' in text or 'false' in text:
    return None
  pieces, quote = text.split('"'), ''
  for place, piece in enumerate(pieces):
    if place and quote == "'":
      pieces[place - 1] += '\\'
    elif place:
      quote = '' if quote else '"'
    if quote != '"':
      if piece.count("'") % 2:
        quote = '' if quote else "'"
      pieces[place] = piece.replace("'", '"')
  return None if quote else '"'.join(pieces)


def _literal_text(line: bytes) -> str:
  """A line that may be a literal as text.

  Raises:
    ValueError: it is too long for one, or no UTF-8.
  """
  if len(line) > MAX_LITERAL_BYTES:
    raise ValueError(
      f'not JSON, and longer than {MAX_LITERAL_BYTES >> 10} KiB, the most that '
      'a Python literal may have'
    )
  return line.decode()


def _evaluate_literal(text: str) -> Any:
  """`ast.literal_eval`, silent, and with ValueError as its one exception."""
  try:
    with warnings.catch_warnings():
      # An escape that Python does not know is a warning on standard error.
      warnings.simplefilter('ignore')
      return ast.literal_eval(text)
  except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
    reason = getattr(error, 'msg', None) or 'nested too deep'
    raise ValueError(f'neither JSON nor a Python literal: {reason}') from error
  except ValueError as error:
    # It names an object by its address, which no two runs share.
    raise ValueError(re.sub(r' at 0x[0-9a-f]+', '', str(error))) from error


_METADATA = msgspec.json.Decoder(_Metadata)


def _decode_metadata(line: bytes) -> _Metadata:
  """A metadata line, JSON or Python literal.

  Raises:
    ValueError: it is neither, or its fields are of odd types.
  """
  # No JSON starts so.
  if not line.startswith(b"{'"):
    try:
      return _METADATA.decode(line)
    except msgspec.ValidationError:
      raise
    except RecursionError as error:
      raise ValueError('nested too deep') from error
    except msgspec.DecodeError:
      pass
  text = _literal_text(line)
  translated = requote_literal(text)
  if translated is not None:
    try:
      return _METADATA.decode(translated)
    except (msgspec.DecodeError, RecursionError):
      pass  # The ways below decide, and say what is wrong.
  translated = literal_to_json(text)
  if translated is not None:
    try:
      return _METADATA.decode(translated)
    except msgspec.ValidationError:
      raise
    except (msgspec.DecodeError, RecursionError):
      pass  # Not what the translation expects; the slow way decides.
  return msgspec.convert(_evaluate_literal(text), _Metadata)


_DOLLARS = r'\$?\s*(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)'
_PRICE = re.compile(rf'{_DOLLARS}(?:\s*-\s*{_DOLLARS})?', re.ASCII)


def parse_price(value: Any) -> float | None:
  """A price in dollars: 9.5, "$1,250.00", the lower of "$5.00 - $10.00".

  None for everything else, such as missing prices and junk.
  """
  if isinstance(value, bool):
    return None
  if isinstance(value, int | float):
    return float(value) if 0 <= value < MAX_PRICE else None
  if not isinstance(value, str) or len(value) > MAX_ATTRIBUTE_LENGTH:
    return None
  match = _PRICE.fullmatch(value.strip())
  if match is None:
    return None
  price = min(float(text.replace(',', '')) for text in match.groups() if text)
  return price if price < MAX_PRICE else None


_TAG = re.compile(r'</?[a-zA-Z]')


def _clean_name(value: Any) -> str | None:
  """A brand or category as text, HTML entities resolved.

  None where it is empty, or holds tags: 2018 has pieces of pages in both.
  """
  if not isinstance(value, str) or len(value) > MAX_ATTRIBUTE_LENGTH:
    return None
  return _clean_text(value)


# Most names are those of many items.
@functools.lru_cache(maxsize=1 << 15)
def _clean_text(value: str) -> str | None:
  text = html.unescape(value).strip()
  if _TAG.search(text):
    return None
  if '\n' in text:
    # As scraped: "by", then the brand lines below.
    text = ' '.join(text.split()).removeprefix('by ')
  if not text.isascii():
    # Halves of surrogate pairs, as \ud83d\ude00 in a literal, are joined.
    text = text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
  return text or None


def _category_path(record: _Metadata) -> list[str]:
  """The category names of an item, each once, from the root.

  2014 has a list of paths, 2018 and 2023 one path. The first comes first.
  """
  value = record.category if record.category else record.categories
  if not isinstance(value, list):
    value = [value]
  if not any(isinstance(entry, list) for entry in value):
    value = itertools.takewhile(_is_category, value)
  nested = [entry if isinstance(entry, list) else [entry] for entry in value]
  names = [_clean_name(name) for path in nested for name in path]
  return list(dict.fromkeys(name for name in names if name))


def _is_category(name: Any) -> bool:
  """Whether a path goes on: in 2018 pieces of the page follow some of them.

  They begin with markup, or are sentences.
  """
  return not isinstance(name, str) or not (
    _TAG.search(name)
    or name.rstrip().endswith('.')
    or len(name) > MAX_CATEGORY_LENGTH
  )


def _leaf(record: _Metadata, path: list[str]) -> str | None:
  """The category of an item; of several paths in 2014 that of the last.

  So DIN has it, and whoever compares with DIN.
  """
  value = record.categories
  if isinstance(value, list) and value and isinstance(value[-1], list):
    names = [name for name in map(_clean_name, value[-1]) if name]
    return names[-1] if names else None
  return path[-1] if path else None


def _list_column(lists: Sequence[list[str] | None]) -> pl.Series:
  """Lists with one name at least, or None, as a column of lists."""
  # Given the lists, polars would make a series of each.
  rows = np.arange(len(lists))
  lengths = [len(names) if names else 0 for names in lists]
  flat = itertools.chain.from_iterable(names for names in lists if names)
  grouped = (
    pl.DataFrame(
      {
        'row': np.repeat(rows, lengths),
        'name': pl.Series(list(flat), dtype=pl.String),
      }
    )
    .group_by('row', maintain_order=True)
    .agg('name')
  )
  return pl.DataFrame({'row': rows}).join(
    grouped, on='row', how='left', maintain_order='left'
  )['name']


def _read_metadata_files(
  paths: Sequence[str | Path],
  log: EventLog,
  options: ReadOptions,
  attributes: Sequence[str],
) -> tuple[pl.DataFrame, dict[str, int], list[LineReader], list, list[str]]:
  items = log.items
  row_of = {item: row for row, item in enumerate(items)}
  leaves: list[str | None] = [None] * len(items)
  brands: list[str | None] = [None] * len(items)
  prices: list[float | None] = [None] * len(items)
  category_paths: list[list[str] | None] = [None] * len(items)
  seen = np.zeros(len(items), bool)
  unreadable = repeated = 0
  readers, sources, notes = [], [], []
  for path in map(Path, paths):
    reader = LineReader(path, options)
    format_name = detect_format(path, options)
    if not format_name.endswith('metadata'):
      raise InputError(
        f'{path} holds {format_name}, not item metadata: give it as --reviews'
      )
    for start, lines in reader.blocks():
      for number, line in enumerate(lines, start):
        if not line:
          continue
        try:
          record = _decode_metadata(line)
        except ValueError as error:
          reader.reject(number, str(error), line)
          continue
        item = record.parent_asin or record.asin
        if not item:
          reader.reject(number, 'no asin', line)
          continue
        row = row_of.get(item)
        if row is None:
          continue
        if seen[row]:
          repeated += 1
          continue
        seen[row] = True
        names = _category_path(record)
        category_paths[row] = names or None
        leaves[row] = _leaf(record, names)
        brands[row] = _clean_name(record.brand) or _clean_name(record.store)
        prices[row] = parse_price(record.price)
        if prices[row] is None and record.price not in (None, '', 'None'):
          unreadable += 1
    check_rejected(reader)
    readers.append(reader)
    sources.append(reader.source(format_name))
    notes += reader.notes()
  if not seen.any():
    said = lambda sources: ', '.join(
      f'{source["name"]}: {source["format"]}' for source in sources
    )
    raise InputError(
      f'not one of the {len(items)} items of the reviews ({said(log.sources)}) '
      f'is in the metadata ({said(sources)}): the files are of different '
      'categories or years'
    )
  columns = (
    pl.Series(leaves, dtype=pl.String),
    _list_column(category_paths),
    pl.Series(brands, dtype=pl.String),
    pl.Series(prices, dtype=pl.Float64),
  )
  table = pl.DataFrame(dict(zip(METADATA_ATTRIBUTES, columns, strict=True)))
  table = table.select(attributes or METADATA_ATTRIBUTES)
  without = [c.name for c in table if c.null_count() == table.height]
  # Each of the releases lacks some.
  if without:
    notes.append(
      f'The metadata has no {", ".join(without)} of any item of the reviews: '
      'left out.'
    )
  counts = {
    'metadata_lines': sum(reader.lines for reader in readers),
    'items_in_metadata': int(seen.sum()),
    'metadata_repeated': repeated,
    'prices_unreadable': unreadable,
  }
  return table, counts, readers, sources, notes


def _reject_count(readers: Iterable[LineReader]) -> int:
  return sum(len(reader.rejected) for reader in readers)


def read_amazon(
  reviews: Sequence[str | Path],
  metadata: Sequence[str | Path],
  options: ReadOptions,
  folder: Path | None = None,
  attributes: Sequence[str] = (),
) -> tuple[EventLog, pl.DataFrame]:
  """Reads Amazon reviews or ratings, with metadata where given.

  Args:
    reviews: files of reviews (JSON lines) or ratings (CSV), plain or gzip.
    metadata: files of item metadata, JSON or Python literals.
    options: how forgiving to be.
    folder: where events are kept while they are read; see `clean_events`.
    attributes: some of METADATA_ATTRIBUTES; none: all of them.

  Returns:
    The events with these attributes of their items; and the rejected lines.

  Raises:
    InputError: a file is missing, damaged, or not what it should be.
  """
  with tempfile.TemporaryDirectory(dir=folder) as made:
    raw, readers, sources, notes = _read_review_files(
      reviews, options, Path(made)
    )
    log = clean_events(
      raw,
      folder=folder,
      counts={
        'lines': sum(reader.lines for reader in readers),
        'blank': sum(reader.blank for reader in readers),
        'rejected': _reject_count(readers),
      },
      sources=tuple(sources),
      notes=tuple(notes),
    )
    del raw
  if metadata:
    table, counts, more, more_sources, more_notes = _read_metadata_files(
      metadata, log, options, attributes
    )
    readers += more
    log = dataclasses.replace(
      log,
      item_attributes=table,
      counts={
        **log.counts,
        **counts,
        'metadata_rejected': _reject_count(more),
      },
      sources=(*log.sources, *more_sources),
      notes=(*log.notes, *more_notes),
    )
  return log, rejected_table(readers)
