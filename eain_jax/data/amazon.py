"""Amazon's own formats: reviews, ratings and metadata of 2014, 2018 and 2023.

The format is told from a file's keys, never from its name, and is said. Only
the ids, the rating, the time and four attributes are kept: never a text.
"""

import array
import ast
import dataclasses
import html
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from eain_jax.data.events import (
  Codes,
  EventLog,
  RawEvents,
  check_rejected,
  clean_events,
  rejected_table,
  to_seconds,
)
from eain_jax.data.lines import LineReader, ReadOptions
from eain_jax.errors import InputError

MAX_ATTRIBUTE_LENGTH = 200
SAMPLE_LINES = 1_000

# Reviews say it differently a release: user, item, rating, time.
REVIEW_KEYS = {
  '2014': ('reviewerID', 'asin', 'overall', 'unixReviewTime'),
  '2018': ('reviewerID', 'asin', 'overall', 'unixReviewTime'),
  '2023': ('user_id', 'parent_asin', 'rating', 'timestamp'),
}
HEADER_NAMES = {
  'user': ('user_id', 'reviewerid', 'user', 'userid'),
  'item': ('parent_asin', 'asin', 'item', 'item_id', 'itemid', 'product_id'),
  'rating': ('rating', 'overall'),
  'time': ('timestamp', 'unixreviewtime', 'time'),
}


class _Review(msgspec.Struct):
  """The fields of a review that are read, of 2014 and 2018."""

  reviewerID: str
  asin: str
  overall: int | float
  unixReviewTime: int | float


class _Review2023(msgspec.Struct):
  """The fields of a review that are read, of 2023."""

  user_id: str
  parent_asin: str
  rating: int | float
  timestamp: int | float


class _Metadata(msgspec.Struct):
  """The fields of a metadata line that are read; junk is sorted out later."""

  asin: str | None = None
  parent_asin: str | None = None
  category: Any = None
  categories: Any = None
  brand: Any = None
  store: Any = None
  price: Any = None


def _first_line(path: Path, options: ReadOptions) -> bytes:
  reader = LineReader(path, dataclasses.replace(options, allow_truncated=True))
  for _, lines in reader.blocks():
    for line in lines:
      if line:
        return line
  raise InputError(f'{path} is empty: it holds no line')


def _parse_record(line: bytes) -> dict[str, Any] | None:
  """A line as a dict, JSON or Python literal; None where it is neither."""
  try:
    record = msgspec.json.decode(line)
  except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
    try:
      record = ast.literal_eval(line.decode())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
      return None
  return record if isinstance(record, dict) else None


def detect_format(path: Path, options: ReadOptions) -> str:
  """The format of one of Amazon's files, from its first line.

  Returns:
    amazon-{2014,2018,2023}-{reviews,metadata}, amazon-ratings-csv or
    amazon-ratings-csv-header.

  Raises:
    InputError: it is none of those.
  """
  line = _first_line(path, options)
  if line.startswith((b'{', b'[')):
    record = _parse_record(line)
    if record is None:
      raise InputError(
        f'{path}, line 1: neither a JSON object nor a Python literal: '
        f'{line[:80].decode("utf-8", "replace")!r}'
      )
    keys = set(record)
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
  fields = line.decode('utf-8', 'replace').split(',')
  if len(fields) >= 4:
    names = [field.strip().strip('"').lower() for field in fields]
    if any(name in HEADER_NAMES['user'] for name in names):
      return 'amazon-ratings-csv-header'
    if len(fields) == 4 and _number(fields[2]) is not None and (
      _number(fields[3]) is not None
    ):
      return 'amazon-ratings-csv'
  raise InputError(
    f'{path}: not one of Amazon\'s formats; its first line is '
    f'{line[:80].decode("utf-8", "replace")!r}. Read a log of your own with '
    '--events and --columns'
  )


def _number(text: str) -> float | None:
  """The finite number that a text holds, or None."""
  try:
    value = float(text)
  except ValueError:
    return None
  return value if math.isfinite(value) else None


def _bad_fields(user: str, item: str, rating: float, time: float) -> str | None:
  """Why the fields of an event cannot be used, or None."""
  if not user or not item:
    return 'an id is empty'
  if '\0' in user or '\0' in item or '\ufffd' in user or '\ufffd' in item:
    return 'an id holds NUL or invalid UTF-8'
  if not math.isfinite(rating):
    return f'the rating is {rating}'
  # Exact in float64, and far beyond any microsecond time stamp.
  if not -(2**53) < time < 2**53 or time != int(time):
    return f'the time {time} is not a whole number in range'
  return None


class _Events:
  """Gathers events over all files, ids as int32 codes from the start."""

  def __init__(self):
    self.user_of, self.item_of = Codes(), Codes()
    self.user, self.item = array.array('i'), array.array('i')
    self.rating, self.time = array.array('f'), array.array('q')
    self.line = array.array('q')

  def add(self, user, item, rating, time, line) -> None:
    self.user.append(self.user_of(user))
    self.item.append(self.item_of(item))
    self.rating.append(rating)
    self.time.append(int(time))
    self.line.append(line)


def _json_events(reader: LineReader, format_name: str, events: _Events) -> None:
  is_2023 = format_name == 'amazon-2023-reviews'
  decoder = msgspec.json.Decoder(_Review2023 if is_2023 else _Review)
  for start, lines in reader.blocks():
    for number, line in enumerate(lines, start):
      if not line:
        continue
      try:
        record = decoder.decode(line)
      except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reader.reject(number, str(error) or 'nested too deep', line)
        continue
      if isinstance(record, _Review2023):
        fields = (
          record.user_id,
          record.parent_asin,
          record.rating,
          record.timestamp,
        )
      else:
        fields = (
          record.reviewerID,
          record.asin,
          record.overall,
          record.unixReviewTime,
        )
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
    np.mean([asin.fullmatch(row[c]) is not None for row in rows]) for c in (0, 1)
  ]
  if share[0] > 0.9 and share[1] < 0.5:
    return 0
  if share[1] > 0.9 and share[0] < 0.5:
    return 1
  raise InputError(
    f'{path} has no header, and its ids do not tell which of the first two '
    f'columns is the item: {share[0]:.0%} and {share[1]:.0%} of them look '
    'like ASINs; add a header user,item,rating,timestamp'
  )


def _csv_events(
  reader: LineReader, format_name: str, events: _Events, notes: list[str]
) -> None:
  has_header = format_name.endswith('header')
  order, width = None, 0
  for start, lines in reader.blocks():
    rows = [
      line.decode('utf-8', 'replace').replace('"', '').split(',')
      for line in lines
    ]
    if order is None:
      if has_header:
        first = next(i for i, line in enumerate(lines) if line)
        header = [name.strip().lower() for name in rows[first]]
        order, width = _header_order(reader.path, header), len(header)
        said = 'its header'
        rows[first], lines[first] = [], b''
        reader.lines -= 1
      else:
        sample = [row for row in rows[:SAMPLE_LINES] if len(row) == 4]
        column = _item_column(reader.path, sample)
        order, width = [1 - column, column, 2, 3], 4
        said = 'the look of its ids'
      first = next((row for row in rows if len(row) == width), None)
      if first:
        user, item, rating, time = (first[i] for i in order)
        notes.append(
          f'{reader.path.name}: columns taken by {said}; its first event is '
          f'user {user}, item {item}, rating {rating}, time {time}.'
        )
    for number, (row, line) in enumerate(zip(rows, lines, strict=True), start):
      if not line:
        continue
      if len(row) != width:
        reader.reject(number, f'{len(row)} fields, expected {width}', line)
        continue
      user, item, rating, time = (row[i].strip() for i in order)
      rating, time = _number(rating), _number(time)
      if rating is None or time is None:
        reader.reject(number, 'the rating or the time is no number', line)
      elif reason := _bad_fields(user, item, rating, time):
        reader.reject(number, reason, line)
      else:
        events.add(user, item, rating, time, number)


def _header_order(path: Path, header: list[str]) -> list[int]:
  """Places of user, item, rating and time in a header.

  Raises:
    InputError: one of them is not there.
  """
  order = []
  for name, known in HEADER_NAMES.items():
    found = [header.index(alias) for alias in known if alias in header]
    if not found:
      raise InputError(
        f'{path}: its header has no column for the {name}, only '
        f'{", ".join(header)}; name them with --events and --columns'
      )
    order.append(found[0])
  return order


def _read_review_files(
  paths: Sequence[str | Path], options: ReadOptions
) -> tuple[RawEvents, list[LineReader], list[dict[str, Any]], list[str]]:
  events, readers, sources, notes = _Events(), [], [], []
  times = []
  for path in map(Path, paths):
    reader = LineReader(path, options)
    format_name = detect_format(path, options)
    if format_name.endswith('metadata'):
      raise InputError(
        f'{path} is item metadata ({format_name}), not reviews: give it as '
        '--metadata'
      )
    begin = len(events.time)
    if format_name.endswith('reviews'):
      _json_events(reader, format_name, events)
    else:
      _csv_events(reader, format_name, events, notes)
    time = np.array(events.time[begin:], np.int64)
    seconds, unit, odd = to_seconds(time)
    for row in np.flatnonzero(odd):
      reader.reject(
        events.line[begin + row],
        f'the time {time[row]} is not in {unit} as most of the file is',
        '',
      )
    check_rejected(reader)
    if unit != 'seconds':
      notes.append(f'{path.name}: times in {unit} were read as seconds.')
    times.append(np.where(odd, np.iinfo(np.int64).min, seconds))
    readers.append(reader)
    sources.append(_source(reader, format_name, notes))
  timestamp = np.concatenate(times)
  kept = timestamp != np.iinfo(np.int64).min
  user, item = (
    dataclasses.replace(column, codes=column.codes[kept])
    for column in (
      events.user_of.column(events.user),
      events.item_of.column(events.item),
    )
  )
  rating = np.array(events.rating, np.float32)[kept]
  return RawEvents(user, item, timestamp[kept], rating), readers, sources, notes


def _source(
  reader: LineReader, format_name: str, notes: list[str]
) -> dict[str, Any]:
  """What the manifest says of a file."""
  if reader.truncated:
    notes.append(
      f'{reader.path.name}: a truncated gzip file; its {reader.lines} complete '
      'lines were kept.'
    )
  return {
    'name': reader.path.name,
    'bytes': reader.num_bytes,
    'sha256': reader.sha256,
    'format': format_name,
    'lines': reader.lines,
    'blank': reader.blank,
    'rejected': len(reader.rejected),
  }


_LITERAL_TOKENS = re.compile(
  r"""'[^'\\]*'|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^'"]+""", re.DOTALL
)
_LITERAL_PUNCTUATION = re.compile(
  r'(?:[\s\d.,:{}\[\]+-]|(?<=\d)[eE]|None|True|False)*'
)


def literal_to_json(text: str) -> str | None:
  """A Python literal of dicts, lists, strings and numbers as JSON.

  Faster than `ast.literal_eval`, and as safe: nothing is evaluated. None
  where the text holds anything else, which `ast.literal_eval` may judge.
  """
  tokens = _LITERAL_TOKENS.findall(text)
  if sum(map(len, tokens)) != len(text):
    return None
  parts = []
  for token in tokens:
    first = token[0]
    if first == "'" and '\\' not in token and '"' not in token:
      parts.append('"' + token[1:-1].replace('\t', '\\t') + '"')
    elif first in '\'"':
      try:
        parts.append(json.dumps(ast.literal_eval(token)))
      except (ValueError, SyntaxError):
        return None
    elif _LITERAL_PUNCTUATION.fullmatch(token):
      token = token.replace('None', 'null')
      parts.append(token.replace('True', 'true').replace('False', 'false'))
    else:
      return None
  return ''.join(parts)


_METADATA = msgspec.json.Decoder(_Metadata)


def _decode_metadata(line: bytes) -> _Metadata:
  """A metadata line, JSON or Python literal.

  Raises:
    ValueError: it is neither, or its fields are of odd types.
  """
  try:
    if not line.startswith(b"{'"):
      return _METADATA.decode(line)
    text = line.decode()
    translated = literal_to_json(text)
    if translated is not None:
      try:
        return _METADATA.decode(translated)
      except msgspec.ValidationError:
        raise
      except msgspec.DecodeError:
        pass  # Not what the translation expects; the slow way decides.
    value = ast.literal_eval(text)
    return msgspec.convert(value, _Metadata)
  except (SyntaxError, MemoryError, RecursionError) as error:
    raise ValueError(f'neither JSON nor a Python literal: {error}') from error


_PRICE = re.compile(
  r'\$?\s*(\d[\d,]*(?:\.\d+)?)(?:\s*-\s*\$?\s*\d[\d,]*(?:\.\d+)?)?'
)


def parse_price(value: Any) -> float | None:
  """A price in dollars: 9.5, "$1,250.00", the lower of "$5.00 - $10.00".

  None for everything else, such as missing prices and junk.
  """
  if isinstance(value, bool):
    return None
  if isinstance(value, int | float):
    return float(value) if math.isfinite(value) and value >= 0 else None
  if isinstance(value, str) and len(value) <= MAX_ATTRIBUTE_LENGTH:
    if match := _PRICE.fullmatch(value.strip()):
      return float(match[1].replace(',', ''))
  return None


def _clean_name(value: Any) -> str | None:
  """A brand or category as text, HTML entities resolved; None where empty."""
  if not isinstance(value, str) or len(value) > MAX_ATTRIBUTE_LENGTH:
    return None
  return html.unescape(value).strip() or None


def _category_path(record: _Metadata) -> list[str]:
  """The category names of an item, each once, from the root.

  2014 has a list of paths, 2018 and 2023 one path. The first comes first; its
  last name is the leaf.
  """
  value = record.category if record.category else record.categories
  if not isinstance(value, list):
    value = [value]
  nested = [entry if isinstance(entry, list) else [entry] for entry in value]
  names = [_clean_name(name) for path in nested for name in path]
  return list(dict.fromkeys(name for name in names if name))


def _leaf(record: _Metadata, path: list[str]) -> str | None:
  value = record.categories
  if isinstance(value, list) and value and isinstance(value[0], list):
    names = [name for name in map(_clean_name, value[0]) if name]
    return names[-1] if names else None
  return path[-1] if path else None


def _read_metadata_files(
  paths: Sequence[str | Path], items: pl.Series, options: ReadOptions
) -> tuple[pl.DataFrame, dict[str, int], list[LineReader], list, list[str]]:
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
        except (ValueError, RecursionError) as error:
          reader.reject(number, str(error) or 'nested too deep', line)
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
    sources.append(_source(reader, format_name, notes))
  if not seen.any():
    formats = ', '.join(source['format'] for source in sources)
    raise InputError(
      f'not one of the {len(items)} items of the reviews is in the metadata '
      f'({formats}): the files are of different categories or years'
    )
  table = pl.DataFrame(
    {
      'category': pl.Series(leaves, dtype=pl.String),
      'category_path': pl.Series(category_paths, dtype=pl.List(pl.String)),
      'brand': pl.Series(brands, dtype=pl.String),
      'price': pl.Series(prices, dtype=pl.Float64),
    }
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
) -> tuple[EventLog, pl.DataFrame]:
  """Reads Amazon reviews or ratings, with metadata where given.

  Args:
    reviews: files of reviews (JSON lines) or ratings (CSV), plain or gzip.
    metadata: files of item metadata, JSON or Python literals.
    options: how forgiving to be.

  Returns:
    The events with item attributes category, category_path, brand and price;
    and the rejected lines.

  Raises:
    InputError: a file is missing, damaged, or not what it should be.
  """
  raw, readers, sources, notes = _read_review_files(reviews, options)
  log = clean_events(
    raw,
    counts={
      'lines': sum(reader.lines for reader in readers),
      'blank': sum(reader.blank for reader in readers),
      'rejected': _reject_count(readers),
    },
    sources=tuple(sources),
    notes=tuple(notes),
  )
  if metadata:
    table, counts, more, more_sources, more_notes = _read_metadata_files(
      metadata, log.items, options
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
