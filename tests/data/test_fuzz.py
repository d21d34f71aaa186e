"""Every parser against anything: an InputError, or all lines accounted for.

A few seconds each here. EAIN_FUZZ_SECONDS=600 runs each for ten minutes:

  EAIN_FUZZ_SECONDS=600 python -m pytest tests/data/test_fuzz.py -k json
"""

import ast
import csv
import datetime
import functools
import gzip
import io
import json
import math
import os
import time
import zlib

import msgspec
import polars as pl
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from eain_jax.config import PrepareConfig
from eain_jax.data import lines as lines_module
from eain_jax.data.amazon import _decode_metadata, read_amazon
from eain_jax.data.lines import LineReader, ReadOptions
from eain_jax.data.log_files import read_log
from eain_jax.data.log_values import (
  MAX_TIME,
  Refused,
  parse_category,
  parse_columns,
  parse_label,
  parse_position,
  parse_rating,
  parse_timestamp,
)
from eain_jax.errors import InputError

SECONDS = float(os.environ.get('EAIN_FUZZ_SECONDS', 0))
ALL = ReadOptions(max_rejected=1.0)


def fuzz(max_examples=60, **strategies):
  """A property over `strategies`: a few examples, or EAIN_FUZZ_SECONDS."""

  def decorate(test):
    # A hang is a failure: an example takes milliseconds.
    quick = settings(
      max_examples=max_examples if not SECONDS else 500,
      deadline=datetime.timedelta(seconds=30),
      suppress_health_check=list(HealthCheck),
      database=None,
    )
    count = [0]

    @functools.wraps(test)
    def counted(*args, **kwargs):
      count[0] += 1
      return test(*args, **kwargs)

    prop = quick(given(**strategies)(counted))

    def run(tmp_path):
      begin = time.monotonic()
      prop(tmp_path=tmp_path)
      while time.monotonic() - begin < SECONDS:
        prop(tmp_path=tmp_path)
      print(f'{test.__name__}: {count[0]} examples')

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run

  return decorate


def check_sentence(error, named=''):
  """One line, which names what it is about."""
  assert '\n' not in str(error)
  assert named in str(error)


def write(path, data):
  path.write_bytes(data)
  return path


def as_rows(log):
  """user, item, time of every event."""
  columns = [
    log.users.gather(log.user).to_list(),
    log.items.gather(log.item).to_list(),
    log.timestamp.tolist(),
  ]
  return list(zip(*columns, strict=True))


def in_order(events):
  """(user, item, time) of source rows in canonical order, without repeats."""
  ordered = sorted(events, key=lambda event: (event[0], event[2]))
  return list(dict.fromkeys(ordered))


def check_conserved(log, rejected, num_lines):
  counts = log.counts
  assert counts['lines'] + counts['blank'] == num_lines
  assert counts['lines'] == (
    counts['events'] + counts['duplicates'] + counts['rejected']
  )
  assert counts['events'] == len(log.user)
  assert rejected.height == counts['rejected']
  assert all(rejected['reason'])


def num_lines(data):
  """Lines of a file; what follows the last line end is one if not empty."""
  return data.count(b'\n') + (not data.endswith(b'\n') and data != b'')


# What lines are broken with.
JUNK = st.one_of(
  st.sampled_from(
    [b'"', b"'", b',', b'\t', b'\r', b'\0', b'{', b'}', b'[', b'\\', b'\\u',
     b'\\ud83d', b'\xff', b'\xed\xa0\x80', b'\xef\xbb\xbf', b'NaN', b'null',
     b'true', b'1e400', b'-0', b'9' * 400, b'-', b'.', b' ', b'#', b'//',
     b'None', b':', b'\x01', b'\x7f', b'\xc2\x85', b'\xe2\x80\xa8']
  ),
  st.binary(max_size=4),
)  # fmt: skip


@st.composite
def mangled(draw, line):
  """A line with pieces cut out, put in, or doubled."""
  for _ in range(draw(st.integers(0, 3))):
    begin = draw(st.integers(0, len(line)))
    end = draw(st.integers(begin, min(len(line), begin + 12)))
    line = line[:begin] + draw(JUNK) + line[end:]
  return line.replace(b'\n', b'')


SCALARS = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(),
  st.integers(0, 2 * 10**9),
  st.floats(),
  st.text(max_size=8),
  st.sampled_from(['', ' ', '\0', '\ufffd', '5', '1e3', 10**400, -0.0, 1e17]),
)
VALUES = st.recursive(
  SCALARS,
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=4), inner, max_size=3)
  ),
  max_leaves=5,
)


@st.composite
def json_lines(draw, good, junk_lines=4):
  """JSON lines of `good` records with other values here and there, mangled."""
  lines = [json.dumps(record).encode() for record in good]
  for _ in range(draw(st.integers(0, junk_lines))):
    place = draw(st.integers(0, len(lines) - 1))
    record = dict(good[draw(st.integers(0, len(good) - 1))])
    for key in draw(st.sets(st.sampled_from(sorted(record)), max_size=2)):
      record[key] = draw(VALUES)
    ascii_only = draw(st.booleans())
    line = json.dumps(record, ensure_ascii=ascii_only)
    line = line.encode('utf-8', 'surrogatepass').replace(b'\n', b'')
    if draw(st.booleans()):
      line = draw(mangled(line))
    lines[place] = draw(st.sampled_from([line, line + line, b'', line + b'\r']))
  # The first lines must tell what the file is.
  lines.insert(0, json.dumps(good[0] | {'head': 'x' * 2_000}).encode())
  return b'\n'.join(lines) + draw(st.sampled_from([b'', b'\n']))


def load_json(line, errors='strict'):
  """A line as `json` reads it, but no NaN, and no half of a surrogate pair."""

  def refuse(constant):
    raise ValueError(constant)

  value = json.loads(line.decode('utf-8', errors), parse_constant=refuse)
  json.dumps(value, ensure_ascii=False).encode()
  return value


def is_id(value):
  return (
    isinstance(value, str)
    and bool(value.strip())
    and not set(value) & set('\0\ufffd')
    and len(value) <= 4_096
  )


def is_number(value, limit):
  return (
    isinstance(value, int | float)
    and not isinstance(value, bool)
    and -limit < value < limit
  )


def blank_or_bare(line):
  return b'' if not line.strip() else line.rstrip(b'\r')


def judge(data, event_of):
  """The events of a file's lines, and the numbers of those that have none."""
  events, bad = [], []
  lines = data.split(b'\n')
  for number, line in enumerate(map(blank_or_bare, lines), 1):
    if line:
      try:
        events.append(event_of(line))
      except (ValueError, KeyError, TypeError, RecursionError):
        bad.append(number)
  return events, bad


# Lines.


@fuzz(
  members=st.lists(st.binary(max_size=200), min_size=1, max_size=3),
  damage=st.lists(st.tuples(st.integers(0, 10**6), JUNK), max_size=2),
  block=st.sampled_from([16, 256, 1 << 22]),
)
def test_gzip(tmp_path, members, damage, block):
  data = b''.join(map(gzip.compress, [b'text' * 9 + b'\n', *members]))
  for place, junk in damage:
    place %= len(data)
    data = data[:place] + junk + data[place + len(junk) :]
  path = write(tmp_path / 'a', data)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(lines_module, 'BLOCK_BYTES', block)
    reader = LineReader(path, ALL)
    try:
      found = [line for _, block in reader.blocks() for line in block]
    except InputError:
      return
  try:
    text = gzip.decompress(data) if data[:2] == b'\x1f\x8b' else data
  except (EOFError, OSError, zlib.error):
    raise AssertionError('gzip refuses what was read') from None
  lines = text.removeprefix(b'\xef\xbb\xbf').removesuffix(b'\n').split(b'\n')
  assert found == list(map(blank_or_bare, lines))
  assert reader.lines + reader.blank == len(found)


@fuzz(data=st.binary(max_size=300), kind=st.integers(0, 3))
def test_any_bytes_as_any_source(tmp_path, data, kind):
  path = write(tmp_path / 'a', gzip.compress(data) if kind % 2 else data)
  try:
    if kind < 2:
      log, rejected = read_amazon([path], [], ALL)
    else:
      names = {'user': 'u', 'item': 'i', 'timestamp': 't'}
      log, rejected = read_log(path, names, ALL)
  except InputError as error:
    check_sentence(error)
    return
  assert log.counts['lines'] == (
    log.counts['events'] + log.counts['duplicates'] + rejected.height
  )


# Amazon.

REVIEWS = [
  {'reviewerID': f'A{n}', 'asin': f'B{n % 2}', 'overall': 5.0,
   'helpful': [0, 1], 'reviewText': 'a "b" \\ \u00e9', 'unixReviewTime': n}
  for n in range(3)
]  # fmt: skip


def review_event(line):
  # What is not taken of a line need not be UTF-8.
  record = load_json(line, 'replace')
  user, item = record['reviewerID'], record['asin']
  rating, when = record['overall'], record['unixReviewTime']
  if not (is_id(user) and is_id(item) and is_number(rating, 1e6)):
    raise ValueError
  if not is_number(when, 2**53) or when != int(when):
    raise ValueError
  return user, item, int(when)


@fuzz(data=json_lines(REVIEWS))
def test_json_reviews(tmp_path, data):
  events, bad = judge(data, review_event)
  # Another unit is for other tests.
  assume(all(abs(event[2]) < 10**11 for event in events))
  log, rejected = read_amazon([write(tmp_path / 'a', data)], [], ALL)
  assert rejected['line'].to_list() == bad
  assert as_rows(log) == in_order(events)
  check_conserved(log, rejected, num_lines(data))


def ratings_event(line):
  text = line.decode('utf-8', 'replace').replace('"', '')
  user, item, rating, when = (field.strip() for field in text.split(','))
  if not (is_id(user) and is_id(item)):
    raise ValueError
  rating, when = plain_float(rating), plain_float(when)
  if not abs(rating) < 1e6 or not abs(when) < 2**53 or when != int(when):
    raise ValueError
  return user, item, int(when)


@fuzz(
  lines=st.lists(
    mangled(b'A2SUAM1J3GNN3B,B00004TKVY,5.0,1393545600'), max_size=5
  )
)
def test_ratings_csv(tmp_path, lines):
  header = b'user_id,parent_asin,rating,timestamp'
  data = b'\n'.join([b'u' * 2_000 + b',i,1,7', *lines])
  events, bad = judge(data, ratings_event)
  assume(all(abs(event[2]) < 10**11 for event in events))
  path = write(tmp_path / 'a', header + b'\n' + data)
  log, rejected = read_amazon([path], [], ALL)
  assert rejected['line'].to_list() == [number + 1 for number in bad]
  assert as_rows(log) == in_order(events)
  check_conserved(log, rejected, num_lines(data))


METADATA = {
  'asin': 'B1', 'title': "it's", 'price': 9.5, 'brand': 'say "x"',
  'categories': [['a', 'b'], ['c']],
}  # fmt: skip


def metadata_fields(line):
  """The fields of a metadata line, as `json` or `ast` reads it."""
  try:
    record = load_json(line)
  except (ValueError, RecursionError):
    record = ast.literal_eval(line.decode().strip(' \t\r\n'))
  # Beyond float64 a number may be refused, or skipped.
  assume(not is_infinite(record))
  # A key of another type is Python's, and no name of a field.
  if not isinstance(record, dict) or not all(
    isinstance(k, str) for k in record
  ):
    raise ValueError
  # A name that is half a surrogate pair may be refused.
  assume('\\ud' not in ascii(list(record)))
  for key in ('asin', 'parent_asin'):
    if not isinstance(record.get(key), str | None):
      raise ValueError
  if not (record.get('parent_asin') or record.get('asin')):
    raise ValueError
  names = 'asin', 'parent_asin', 'category', 'categories', 'brand', 'price'
  return {name: record.get(name) for name in names}


def is_infinite(value):
  """Whether a number is, or one within a value."""
  if isinstance(value, dict):
    value = [*value.keys(), *value.values()]
  if isinstance(value, list | tuple | set):
    return any(map(is_infinite, value))
  return isinstance(value, float) and math.isinf(value)


@st.composite
def metadata_line(draw):
  record = METADATA | draw(
    st.dictionaries(st.sampled_from(sorted(METADATA)), VALUES, max_size=2)
  )
  line = draw(st.sampled_from([repr, json.dumps]))(record)
  line = line.encode('utf-8', 'surrogatepass').replace(b'\n', b'')
  return draw(mangled(line)) if draw(st.booleans()) else line


@fuzz(line=metadata_line())
def test_metadata(tmp_path, line):
  assume(line.strip())
  try:
    expected = metadata_fields(line)
  except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
    expected = None
  try:
    record = _decode_metadata(line)
  except ValueError:
    record = None
  if record is not None and not (record.parent_asin or record.asin):
    record = None
  if expected is None or record is None:
    # What is not taken of a line need not be UTF-8.
    is_text = line.decode('utf-8', 'replace').encode() == line
    assert (expected is None) == (record is None) or not is_text
    return
  for name, value in expected.items():
    assert repr(getattr(record, name)) == repr(value)


@fuzz(lines=st.lists(metadata_line(), min_size=1, max_size=4))
def test_metadata_files(tmp_path, lines):
  reviews = json.dumps({**REVIEWS[0], 'asin': 'B1'}).encode()
  data = b'\n'.join([json.dumps(METADATA).encode(), *lines])
  log, rejected = read_amazon(
    [write(tmp_path / 'r', reviews)], [write(tmp_path / 'm', data)], ALL
  )
  counts = log.counts
  blank = sum(not line.strip() for line in lines)
  assert counts['metadata_lines'] + blank == num_lines(data)
  assert counts['metadata_rejected'] == rejected.height
  assert counts['items_in_metadata'] == log.item_attributes.height == 1


# Logs.

COLUMNS = {'user': 'u', 'item': 'i', 'timestamp': 't'}
FULL = COLUMNS | {
  'rating': 'r', 'label': 'l', 'request': 'q', 'position': 'p', 'device': 'd',
}  # fmt: skip
EVENTS = [
  {'u': f'u{n}', 'i': f'i{n % 2}', 't': n, 'r': 1.5, 'l': 1, 'q': 'q', 'p': n,
   'd': 'tv', 'other': [{'u': 1}]}
  for n in range(3)
]  # fmt: skip


def identifier(value):
  if isinstance(value, int) and not isinstance(value, bool):
    value = str(value)
  if not is_id(value):
    raise ValueError
  return value


def seconds(value):
  """As a column of times reads a JSON value or a text."""
  if isinstance(value, str) and not is_numeral(value):
    when = datetime.datetime.fromisoformat(value.strip())
    if when.tzinfo is None:
      when = when.replace(tzinfo=datetime.UTC)
    return math.floor(when.timestamp())
  return math.floor(number(value, MAX_TIME + 1))


def is_numeral(text):
  try:
    float(text)
  except ValueError:
    return False
  return True


def plain_float(value):
  """As `float`, but no 1_000 and no digits of other scripts."""
  if isinstance(value, str) and ('_' in value or not value.isascii()):
    raise ValueError
  return float(value)


def number(value, limit):
  if value is None or isinstance(value, bool | list | dict):
    raise ValueError
  value = plain_float(value)
  if not abs(value) < limit:
    raise ValueError
  return value


@fuzz(data=json_lines([{k: e[k] for k in 'uit'} for e in EVENTS]))
def test_json_log(tmp_path, data):
  def event_of(line):
    record = load_json(line)
    if not isinstance(record, dict):
      raise ValueError
    return (
      identifier(record.get('u')),
      identifier(record.get('i')),
      seconds(record.get('t')),
    )

  try:
    events, bad = judge(data, event_of)
  except OverflowError:
    assume(False)
  assume(all(abs(event[2]) < 10**11 for event in events))
  log, rejected = read_log(write(tmp_path / 'a', data), COLUMNS, ALL)
  assert rejected['line'].to_list() == bad
  assert as_rows(log) == in_order(events)
  check_conserved(log, rejected, num_lines(data))


@fuzz(data=json_lines(EVENTS))
def test_json_log_of_all_columns(tmp_path, data):
  log, rejected = read_log(write(tmp_path / 'a', data), FULL, ALL)
  check_conserved(log, rejected, num_lines(data))
  assert set(log.label.tolist()) <= {0, 1}
  assert all(map(math.isfinite, log.rating.tolist()))
  assert min(log.position.tolist()) >= 0


FIELD = st.text(
  st.characters(exclude_categories=['Cs', 'Cc'], include_characters='\t"'),
  max_size=6,
)
NOTE = st.text(st.sampled_from('"\n\t, ab'), max_size=6)


@fuzz(
  rows=st.lists(st.tuples(FIELD, FIELD, NOTE), max_size=6),
  delimiter=st.sampled_from(',\t'),
)
def test_quoted_fields(tmp_path, rows, delimiter):
  """What `csv` writes is read as it was; notes may hold line ends."""
  out = io.StringIO()
  writer = csv.writer(out, delimiter=delimiter, lineterminator='\n')
  header = ['u', 'i', 't', 'a', 'b', 'c']
  writer.writerow(header)
  rows = [('a', 'b', 'c'), *rows]
  for n, row in enumerate(rows):
    writer.writerow([f'u{n}', 'i', n, *row])
  names = COLUMNS | {'a': 'a', 'device': 'b'}
  data = out.getvalue().encode()
  log, rejected = read_log(write(tmp_path / 'a', data), names, ALL)
  assert log.counts['lines'] == len(rows)
  assert rejected.height + len(log.user) == len(rows)
  column = {name: log.context[name] for name in ('a', 'device')}
  for place, n in enumerate(log.timestamp.tolist()):
    for name, text in zip(('a', 'device'), rows[n][:2], strict=True):
      code = int(column[name].codes[place])
      expected = text if text.strip() else None
      assert (column[name].values[code] if code >= 0 else None) == expected
  refused = {n for n, row in enumerate(rows) if '\ufffd' in row[0] + row[1]}
  assert set(range(len(rows))) - set(log.timestamp.tolist()) == refused


@fuzz(
  lines=st.lists(mangled(b'u1,i1,1393545600,tv'), max_size=6),
  delimiter=st.sampled_from([b',', b'\t']),
)
def test_delimited_log(tmp_path, lines, delimiter):
  # The head of a file must be text.
  data = b'\n'.join([b'u,i,t,d', b'u,i,7,' + b'd' * 2_000, *lines])
  data = data.replace(b',', delimiter)
  path = write(tmp_path / 'a', data)
  log, rejected = read_log(path, COLUMNS | {'device': 'd'}, ALL)
  events, bad = judge(
    b'\n'.join(data.split(b'\n')[1:]),
    lambda line: delimited_event(line, delimiter.decode()),
  )
  assume(all(abs(event[2]) < 10**11 for event in events))
  check_conserved(log, rejected, num_lines(data) - 1)
  assert rejected['line'].to_list() == [number + 1 for number in bad]
  assert as_rows(log) == in_order(events)


def delimited_event(line, delimiter):
  text = line.decode('utf-8', 'replace')
  row = text.split(delimiter)
  if '"' in text:
    try:
      [row] = csv.reader([text], delimiter=delimiter, strict=True)
    except csv.Error as error:
      raise ValueError from error
  user, item, when, device = row
  if device.strip():
    identifier(device)
  return identifier(user), identifier(item), seconds(when)


# Parquet.


def parquet_bytes(compression):
  out = io.BytesIO()
  rows = range(60)
  pl.DataFrame(
    {
      'u': [f'u{n % 7}' for n in rows],
      'i': [n % 5 for n in rows],
      't': [10**9 + 3_600 * n for n in rows],
      'r': [float(n % 5) for n in rows],
      'd': [None if n % 3 else f'd{n % 4}' for n in rows],
    }
  ).write_parquet(out, compression=compression, row_group_size=25)
  return out.getvalue()


PARQUET = [parquet_bytes(name) for name in ('uncompressed', 'zstd', 'snappy')]


@fuzz(
  whole=st.sampled_from(PARQUET),
  damage=st.lists(st.tuples(st.integers(0, 10**6), JUNK), max_size=3),
  near_end=st.booleans(),
  insert=st.booleans(),
)
def test_parquet(tmp_path, whole, damage, near_end, insert):
  data = whole
  for place, junk in damage:
    place %= len(data) // 2 if near_end else len(data)
    place = len(data) - 1 - place if near_end else place
    data = data[:place] + junk + data[place + (0 if insert else len(junk)) :]
  names = COLUMNS | {'rating': 'r', 'device': 'd'}
  path = write(tmp_path / 'a.parquet', data)
  try:
    log, rejected = read_log(path, names, ALL)
  except InputError as error:
    check_sentence(error, path.name)
    assert data != whole
    return
  check_conserved(log, rejected, log.counts['lines'])
  if data == whole:
    assert log.counts['events'] == 60


# Values and settings.


@fuzz(value=VALUES)
def test_values(tmp_path, value):
  for name, parse in (
    ('timestamp', parse_timestamp),
    ('rating', parse_rating),
    ('label', parse_label),
    ('position', parse_position),
    ('device', parse_category),
  ):
    try:
      parsed = parse(name, value)
    except Refused as error:
      check_sentence(error, name)
      continue
    if name == 'timestamp':
      assert -(2**53) < parsed < 2**53
    elif name == 'label':
      assert parsed in (0, 1)
    elif name == 'position':
      assert 0 <= parsed < 2**31


TIMES = st.datetimes(
  min_value=datetime.datetime(1, 1, 3),
  max_value=datetime.datetime(9999, 12, 29),
  timezones=st.none() | st.timezones(),
)


@fuzz(when=TIMES, separator=st.sampled_from('T '))
def test_dates(tmp_path, when, separator):
  offset = when.utcoffset() or datetime.timedelta()
  assume(not offset.microseconds)
  epoch = datetime.datetime(1970, 1, 1)
  past = when.replace(tzinfo=None) - offset - epoch
  assert parse_timestamp('timestamp', when.isoformat(separator)) == (
    past.days * 86_400 + past.seconds
  )


@fuzz(texts=st.lists(st.text(max_size=12), max_size=5).map(tuple))
def test_columns_flag(tmp_path, texts):
  try:
    pairs = parse_columns(texts)
  except InputError:
    return
  assert len(pairs) == len(texts)
  assert [f'{k}={v}' for k, v in pairs.items()] == list(texts)


# As a file holds them.
SETTINGS = json.loads(json.dumps(PrepareConfig().to_dict()))


@fuzz(
  values=st.dictionaries(
    st.sampled_from(sorted(SETTINGS)) | st.text(max_size=5), VALUES, max_size=4
  )
)
def test_settings(tmp_path, values):
  try:
    config = PrepareConfig.from_dict(SETTINGS | values)
  except InputError as error:
    check_sentence(error)
    return
  assert PrepareConfig.from_dict(config.to_dict()) == config
  for name, value in config.to_dict().items():
    is_float = isinstance(SETTINGS[name], float)
    assert type(value) in (
      (int, float) if is_float else (type(SETTINGS[name]),)
    )
  msgspec.json.encode(config.to_dict())
