"""Every kind of broken line, in every text format: refused, or told and kept.

Each kind is a line and a piece of the reason that it is rejected with. Strict,
the run stops with file, line and reason. Tolerant, that line alone is missing,
and stands in rejected.jsonl.
"""

import json

import pytest

from eain_jax.config import PrepareConfig
from eain_jax.data.amazon import read_amazon
from eain_jax.data.lines import ReadOptions
from eain_jax.data.log_files import read_log
from eain_jax.data.prepare import prepare
from eain_jax.errors import InputError

STRICT = ReadOptions(max_rejected=0.0)
TOLERANT = ReadOptions(max_rejected=0.5)
SECOND = 1_393_545_600
DEEP = b'[' * 100_000 + b']' * 100_000
# Before and after the broken line, and a blank one.
NUM_BEFORE, NUM_AFTER = 4, 3


# Reviews of each year: the keys of user, item, rating and time.


def review(user='A1', item='B1', rating=5.0, time=SECOND, keys='2014'):
  names = KEYS[keys]
  unit = 1_000 if keys == '2023' else 1
  record = dict(zip(names, (user, item, rating, time), strict=True))
  if isinstance(time, int):
    record[names[3]] = time * unit
  if keys == '2018':
    record['verified'] = True
  return record | {'text': 'say "x"', 'list': [0, 1]}


KEYS = {
  '2014': ('reviewerID', 'asin', 'overall', 'unixReviewTime'),
  '2018': ('reviewerID', 'asin', 'overall', 'unixReviewTime'),
  '2023': ('user_id', 'parent_asin', 'rating', 'timestamp'),
}


def json_kinds(record, user, item, rating, time):
  """name: (line, reason) of a JSON object with those four keys."""
  good = json.dumps(record).encode()
  value = {key: json.dumps(record[key]).encode() for key in record}

  def with_(key, text):
    """The line with another value, as bytes, of a key."""
    name = json.dumps(key).encode() + b': '
    return good.replace(name + value[key], name + text)

  def without(key):
    return json.dumps({k: v for k, v in record.items() if k != key}).encode()

  return {
    'cut': (good[:-9], 'truncated'),
    'cut within a key': (good[:5], 'truncated'),
    'unclosed quote': (good[: good.index(b'say') + 2], 'truncated'),
    'text': (b'not JSON', 'malformed'),
    'a number': (b'17', ''),
    'a string': (b'"a"', ''),
    'a list': (b'[1]', ''),
    'null': (b'null', ''),
    'true': (b'true', ''),
    'no user': (without(user), user),
    'no item': (without(item), item),
    'no rating': (without(rating), rating),
    'no time': (without(time), time),
    'null user': (with_(user, b'null'), user),
    'null item': (with_(item, b'null'), item),
    'null rating': (with_(rating, b'null'), rating),
    'null time': (with_(time, b'null'), time),
    'list for user': (with_(user, b'["A1"]'), user),
    'object for item': (with_(item, b'{"id": "B1"}'), item),
    'bool for user': (with_(user, b'true'), user),
    'text for rating': (with_(rating, b'"five"'), rating),
    'bool for rating': (with_(rating, b'true'), rating),
    'text for time': (with_(time, b'"soon"'), time),
    'bool for time': (with_(time, b'false'), time),
    'list for time': (with_(time, b'[1]'), time),
    'rating 1e400': (with_(rating, b'1e400'), ''),
    'rating 10**400': (with_(rating, b'1' + b'0' * 400), rating),
    'rating 1e39': (with_(rating, b'1e39'), rating),
    'rating NaN': (with_(rating, b'NaN'), 'malformed'),
    'rating Infinity': (with_(rating, b'Infinity'), 'malformed'),
    'rating -Infinity': (with_(rating, b'-Infinity'), ''),
    'time 1e400': (with_(time, b'1e400'), ''),
    'time 10**400': (with_(time, b'1' + b'0' * 400), time),
    'time 2**60': (with_(time, b'%d' % 2**60), time),
    'time in microseconds': (with_(time, b'%d' % (SECOND * 10**6)), 'not in '),
    'empty user': (with_(user, b'""'), 'empty'),
    'empty item': (with_(item, b'""'), 'empty'),
    'blank user': (with_(user, b'" \\t "'), 'empty'),
    'user of 1 MB': (with_(user, b'"' + b'A' * 10**6 + b'"'), '4096'),
    'item of 1 MB': (with_(item, b'"' + b'A' * 10**6 + b'"'), '4096'),
    'NUL in user': (with_(user, b'"a\\u0000b"'), 'NUL'),
    'raw NUL in user': (with_(user, b'"a\0b"'), ''),
    'U+FFFD in item': (with_(item, b'"a\xef\xbf\xbd"'), 'invalid UTF-8'),
    'Latin-1 in user': (with_(user, b'"J\xf6"'), 'utf-8'),
    'half a surrogate': (with_(user, b'"\\ud800"'), 'surrogate'),
    'surrogate as UTF-8': (with_(item, b'"\xed\xa0\x80"'), 'utf-8'),
    'odd escape': (with_(user, b'"\\x41"'), 'escape'),
    'BOM': (b'\xef\xbb\xbf' + good, 'malformed'),
    'BOM within': (good.replace(b', ', b', \xef\xbb\xbf', 1), 'malformed'),
    'two objects': (good + good, 'trailing'),
    'two objects and a space': (good + b' ' + good, 'trailing'),
    'two objects and CR': (good + b'\r' + good, 'trailing'),
    'trailing comma': (good[:-1] + b',}', 'malformed'),
    'comma after it': (good + b',', 'trailing'),
    'trailing junk': (good + b'#', 'trailing'),
    'NUL after it': (good + b'\0', 'trailing'),
    'comment': (b'// ' + good, 'malformed'),
    'hash comment': (b'# ' + good, 'malformed'),
    'Python literal': (repr(record).encode(), 'malformed'),
    'no quotes': (good.replace(b'"', b''), 'malformed'),
    'no colon': (good.replace(b': ', b' ', 1), 'malformed'),
    'leading zero': (with_(rating, b'05'), ''),
    'plus sign': (with_(rating, b'+5'), 'malformed'),
    'hexadecimal': (with_(time, b'0x10'), ''),
    'underscore': (with_(rating, b'5_0'), ''),
    'deep': (with_('list', DEEP), 'recursion'),
    'deep user': (with_(user, DEEP), ''),
    'CSV': (b'A1,B1,5.0,1393545600', ''),
  }


# A review's numbers need be more exact than those of a log of one's own.
def review_kinds(year):
  record = review(keys=year)
  user, item, rating, time = KEYS[year]
  line = json.dumps(record).encode()
  other = json.dumps(review(keys='2014' if year == '2023' else '2023')).encode()
  when = b'%d' % record[time]
  kinds = json_kinds(record, user, item, rating, time)
  # What the reader of reviews says has no name of a key in it.
  for name, reason in {
    'rating 10**400': 'rating', 'rating 1e39': 'rating',
    'time 10**400': 'time', 'time 2**60': 'time',
  }.items():  # fmt: skip
    kinds[name] = (kinds[name][0], reason)
  return kinds | {
    'number for user': (line.replace(b'"A1"', b'17'), 'str'),
    'number for item': (line.replace(b'"B1"', b'1.5'), 'str'),
    'number as text': (line.replace(b'5.0', b'"5.0"'), rating),
    'date as text': (line.replace(when, b'"2014-02-28"'), time),
    'fraction of a second': (line.replace(when, b'1.5'), 'whole number'),
    'another year': (other, 'missing required field'),
    'another unit': (
      line.replace(when, b'%d' % (SECOND * (1 if year == '2023' else 1_000))),
      'not in ',
    ),
  }


REVIEW_KINDS = [
  pytest.param(year, line, reason, id=f'{year} {name}')
  for year in KEYS
  for name, (line, reason) in review_kinds(year).items()
]


def place_among(good, line):
  """A file with a broken line, a blank one, and the number of the broken."""
  before, after = good[:NUM_BEFORE], good[NUM_BEFORE:]
  return b'\n'.join([*before, b'', line, *after, b'']), NUM_BEFORE + 2


def check_line(tmp_path, read, good, line, reason, header=b''):
  """The rules of this file for one broken line among good ones."""
  path = tmp_path / 'a'
  path.write_bytes(header + b'\n'.join([*good, b'']))
  expected, _ = read(path, STRICT)
  data, number = place_among(good, line)
  number += header.count(b'\n')
  path.write_bytes(header + data)
  with pytest.raises(InputError) as caught:
    read(path, STRICT)
  message = str(caught.value)
  assert message.startswith(f'{path}: 1 of {len(good) + 1} lines were rejected')
  assert f'the first in line {number}: ' in message
  assert reason in message
  assert '\n' not in message
  log, rejected = read(path, TOLERANT)
  [(file, rejected_line, said, text)] = rejected.rows()
  assert (file, rejected_line) == ('a', number)
  assert reason in said
  # A time of another unit is found when the line is gone.
  assert text in ('', line.decode('utf-8', 'replace')[:200])
  for column in ('user', 'item', 'timestamp', 'rating', 'label'):
    found, wanted = getattr(log, column), getattr(expected, column)
    assert (found is wanted is None) or found.tolist() == wanted.tolist()
  assert log.users.to_list() == expected.users.to_list()
  counts = log.counts
  assert (counts['lines'], counts['rejected']) == (len(good) + 1, 1)
  assert counts['events'] + counts['duplicates'] == len(good)
  assert counts['blank'] == 1


def good_reviews(year):
  num = NUM_BEFORE + NUM_AFTER
  return [
    json.dumps(review(f'A{n}', f'B{n % 3}', 1.0, SECOND + n, year)).encode()
    for n in range(num)
  ]


def read_reviews(path, options):
  return read_amazon([path], [], options)


@pytest.mark.parametrize(('year', 'line', 'reason'), REVIEW_KINDS)
def test_reviews(tmp_path, year, line, reason):
  check_line(tmp_path, read_reviews, good_reviews(year), line, reason)


# What looks odd and is sound.
@pytest.mark.parametrize(
  ('old', 'new', 'rating', 'time'),
  [
    (b'5.0', b'-0', 0.0, SECOND),
    (b'5.0', b'-0.0', 0.0, SECOND),
    (b'5.0', b'5', 5.0, SECOND),
    (b'5.0', b'5e0', 5.0, SECOND),
    (b'1393545600', b'1393545600.0', 5.0, SECOND),
    (b'1393545600', b'-7', 5.0, -7),
    (b'1393545600', b'0', 5.0, 0),
    (b'{', b' \t{', 5.0, SECOND),
    (b'1]}', b'1]}\r', 5.0, SECOND),
    (b'1]}', b'1]} \t', 5.0, SECOND),
    (b'"asin"', b'"\\u0061sin"', 5.0, SECOND),
    # Two values: the last one, as JSON's readers have it.
    (b'"overall": 5.0', b'"overall": 1.0, "overall": 5.0', 5.0, SECOND),
  ],
)
def test_reviews_that_are_odd_and_sound(tmp_path, old, new, rating, time):
  line = json.dumps(review()).encode()
  assert old in line
  path = tmp_path / 'a'
  path.write_bytes(
    b'\n'.join([*good_reviews('2014'), line.replace(old, new), b''])
  )
  log, rejected = read_reviews(path, STRICT)
  assert rejected.height == 0
  rows = zip(log.users.gather(log.user), log.rating, log.timestamp, strict=True)
  assert ('A1', rating, time) in list(rows)


# Ratings.

RATINGS_KINDS = {
  'cut': (b'A1,B1,5.0', '3 fields, expected 4'),
  'too many': (b'A1,B1,5.0,7,8', '5 fields, expected 4'),
  'empty user': (b',B1,5.0,7', 'an id is empty'),
  'blank item': (b'A1, ,5.0,7', 'an id is empty'),
  'quotes alone': (b'"",B1,5.0,7', 'an id is empty'),
  'NUL': (b'A\0,B1,5.0,7', 'NUL'),
  'Latin-1': (b'J\xf6,B1,5.0,7', 'invalid UTF-8'),
  'user of 1 MB': (b'A' * 10**6 + b',B1,5.0,7', '4096'),
  'no rating': (b'A1,B1,,7', 'no number'),
  'text': (b'A1,B1,five,7', 'no number'),
  'NaN': (b'A1,B1,nan,7', 'no number'),
  'Infinity': (b'A1,B1,inf,7', 'no number'),
  '1e400': (b'A1,B1,1e400,7', 'no number'),
  '10**400': (b'A1,B1,1' + b'0' * 400 + b',7', 'no number'),
  'out of range': (b'A1,B1,1e9,7', 'rating is not a number in range'),
  'decimal comma': (b'A1,B1,4,5,7', '5 fields'),
  'underscore': (b'A1,B1,1_0,7', 'no number'),
  'other digits': ('A1,B1,\u0665,7'.encode(), 'no number'),
  'hexadecimal': (b'A1,B1,0x5,7', 'no number'),
  'true': (b'A1,B1,true,7', 'no number'),
  'no time': (b'A1,B1,5.0,', 'no number'),
  'date': (b'A1,B1,5.0,2014-02-28', 'no number'),
  'fraction': (b'A1,B1,5.0,1.5', 'not a whole number'),
  'time out of range': (b'A1,B1,5.0,1e300', 'not a whole number'),
  'milliseconds': (b'A1,B1,5.0,1393545600000', 'not in seconds'),
  'microseconds': (b'A1,B1,5.0,1393545600000000', 'not in seconds'),
  'header again': (b'user_id,parent_asin,rating,timestamp', 'no number'),
  'JSON': (json.dumps(review()).encode(), 'fields, expected 4'),
  'tabs': (b'A1\tB1\t5.0\t7', '1 fields'),
  'semicolons': (b'A1;B1;5.0;7', '1 fields'),
  'two rows': (b'A1,B1,5.0,7\rA1,B1,5.0,7', '7 fields'),
  'comment': (b'# A1,B1', '2 fields'),
  'text alone': (b'junk', '1 fields'),
}


@pytest.mark.parametrize('kind', RATINGS_KINDS)
def test_ratings(tmp_path, kind):
  num = NUM_BEFORE + NUM_AFTER
  good = [b'A%d,B%d,1.0,%d' % (n, n % 3, SECOND + n) for n in range(num)]
  header = b'user_id,parent_asin,rating,timestamp\n'
  line, reason = RATINGS_KINDS[kind]
  check_line(tmp_path, read_reviews, good, line, reason, header)


# Metadata, JSON or literal: what they share, and what each has of its own.

METADATA = {'asin': 'B1', 'brand': "it's", 'categories': [['a', 'b']]}
GOOD_JSON, GOOD_LITERAL = json.dumps(METADATA).encode(), repr(METADATA).encode()
METADATA_KINDS = {
  'cut': GOOD_JSON[:-9],
  'cut literal': GOOD_LITERAL[:-9],
  'unclosed quote': b"{'asin': 'B1}",
  'text': b'not JSON',
  'a number': b'17',
  'a string': b"'B1'",
  'a list': b'["asin"]',
  'a tuple': b"('asin', 'B1')",
  'a set': b"{'asin'}",
  'null': b'null',
  'None': b'None',
  'no id': b'{"title": "x"}',
  'null id': b'{"asin": null}',
  'None as id': b"{'asin': None}",
  'empty id': b'{"asin": ""}',
  'number as id': b'{"asin": 17}',
  'list as id': b"{'asin': ['B1']}",
  'bool as id': b"{'asin': True}",
  'NaN': b'{"asin": "B1", "price": NaN}',
  'nan': b"{'asin': 'B1', 'price': nan}",
  '1e400': b'{"asin": "B1", "price": 1e400}',
  'literal of 1e400': b"{'asin': 'B1', 'price': 1e400}",
  'a call': b"{'asin': __import__('os').getcwd()}",
  'a sum': b"{'asin': 'B1' + 'B2'}",
  'a comprehension': b"{'asin': ['B1' for _ in '1'][0]}",
  'an f-string': b"{'asin': f'B1'}",
  'bytes': b"{'asin': b'B1'}",
  'a list as key': b'{[]: 1}',
  'NUL': b"{'asin': 'a\0b'}",
  'Latin-1': b"{'asin': 'J\xf6'}",
  'two objects': GOOD_JSON + GOOD_JSON,
  'two literals': GOOD_LITERAL + GOOD_LITERAL,
  'trailing junk': GOOD_JSON + b'x',
  'comment': b'// ' + GOOD_JSON,
  'BOM': b'\xef\xbb\xbf' + GOOD_JSON,
  'deep JSON': b'{"asin": "B1", "a": ' + DEEP + b'}',
  'deep literal': b"{'asin': 'B1', 'a': " + DEEP + b'}',
  'deep objects': b"{'a': " * 100_000 + b'1' + b'}' * 100_000,
  'many signs': b"{'a': " + b'-' * 100_000 + b'1}',
  'many digits': b"{'a': " + b'9' * 5_000 + b'}',
  'many escapes': b"{'a': '" + b"\\'" * 100_000 + b'}',
  'long literal': b"{'asin': 'B1', 'a': (" + b'1,' * 200_000 + b')}',
}


def metadata_of(tmp_path, lines, options):
  reviews, path = tmp_path / 'r', tmp_path / 'm'
  reviews.write_bytes(b'\n'.join(good_reviews('2014')))
  path.write_bytes(b'\n'.join(lines))
  return read_amazon([reviews], [path], options)


@pytest.mark.parametrize('kind', METADATA_KINDS)
def test_metadata(tmp_path, kind):
  line = METADATA_KINDS[kind]
  lines = [b'{"asin": "B0"}', GOOD_JSON, b'', line, b'{"asin": "B2"}']
  with pytest.raises(InputError, match='1 of 4 lines were rejected, the first'):
    metadata_of(tmp_path, lines, STRICT)
  log, rejected = metadata_of(tmp_path, lines, TOLERANT)
  [(file, number, reason, text)] = rejected.rows()
  assert (file, number) == ('m', 4)
  assert reason
  assert text == line.decode('utf-8', 'replace')[:200]
  assert log.counts['metadata_lines'] == 4
  assert log.counts['metadata_rejected'] == 1
  assert log.counts['items_in_metadata'] == 3
  assert log.item_attributes['brand'].to_list() == [None, "it's", None]


# Logs of one's own.

COLUMNS = {
  'user': 'u', 'item': 'i', 'timestamp': 't', 'rating': 'r', 'label': 'l',
  'position': 'p', 'device': 'd',
}  # fmt: skip
ROW = {'u': 'A1', 'i': 'B1', 't': SECOND, 'r': 1.5, 'l': 1, 'p': 3, 'd': 'tv'}


def read_own(path, options):
  return read_log(path, COLUMNS, options)


def own_json_kinds():
  record = ROW | {'text': 'say "x"', 'list': [0, 1]}
  kinds = json_kinds(record, 'u', 'i', 'r', 't')
  names = {'u': 'user', 'i': 'item', 'r': 'rating', 't': 'timestamp'}
  kinds = {
    kind: (line, f'the {names[reason]} ' if reason in names else reason)
    for kind, (line, reason) in kinds.items()
  }
  # Of a log of one's own, text may be a number.
  line = json.dumps(record).encode()
  with_ = lambda old, new: (line.replace(old, new),)
  return kinds | {
    'fraction for user': (*with_(b'"A1"', b'1.5'), 'neither text nor an int'),
    'label 2': (*with_(b'"l": 1', b'"l": 2'), 'the label is 2, not 0 or 1'),
    'label of text': (
      *with_(b'"l": 1', b'"l": "yes"'),
      "the label 'yes' is no",
    ),
    'position -1': (
      *with_(b'"p": 3', b'"p": -1'),
      'the position -1 is not a w',
    ),
    'position 1.5': (*with_(b'"p": 3', b'"p": 1.5'), 'the position 1.5 is not'),
    'position 2**31': (*with_(b'"p": 3', b'"p": 2147483648'), 'the position'),
    'device of a list': (*with_(b'"tv"', b'["tv"]'), "the device is ['tv'], n"),
    'no such month': (*with_(b'1393545600', b'"2014-13-01"'), 'ISO 8601'),
    'milliseconds': (*with_(b'1393545600', b'1393545600000'), 'not in seconds'),
    'user twice': (*with_(b'"u": "A1"', b'"u": "A2", "u": "A1"'), "'u' twice"),
    'time twice': (*with_(b'"p": 3', b'"p": 3, "t": 1'), "'t' twice"),
  }


OWN_JSON_KINDS = own_json_kinds()


@pytest.mark.parametrize('kind', OWN_JSON_KINDS)
def test_own_json(tmp_path, kind):
  num = NUM_BEFORE + NUM_AFTER
  good = [
    json.dumps(ROW | {'u': f'A{n}', 't': SECOND + n}).encode()
    for n in range(num)
  ]
  line, reason = OWN_JSON_KINDS[kind]
  check_line(tmp_path, read_own, good, line, reason)


def test_a_key_twice_with_one_value_or_within_a_value_is_sound(tmp_path):
  path = tmp_path / 'a'
  lines = [
    b'{"u": "A1", "i": "B1", "t": 7, "u": "A1"}',
    b'{"u": "A2", "i": "B1", "t": 7, "z": {"u": 1, "t": 2}}',
    b'{"u": "A3", "i": "B1", "t": 7, "z": "\\"u\\": 5", "y": 1, "y": 2}',
  ]
  path.write_bytes(b'\n'.join(lines))
  columns = {'user': 'u', 'item': 'i', 'timestamp': 't'}
  log, rejected = read_log(path, columns, STRICT)
  assert rejected.height == 0
  assert log.users.to_list() == ['A1', 'A2', 'A3']


# Fields in the order of ROW.
OWN_CSV_KINDS = {
  'cut': (b'A1,B1,7,1.5', '4 fields, the header has 7'),
  'too many': (b'A1,B1,7,1.5,1,3,tv,x', '8 fields, the header has 7'),
  'empty user': (b',B1,7,1.5,1,3,tv', 'the user is empty'),
  'blank item': (b'A1,  ,7,1.5,1,3,tv', 'the item is empty'),
  'NUL': (b'A\0,B1,7,1.5,1,3,tv', 'the user holds NUL'),
  'Latin-1': (b'A1,J\xf6,7,1.5,1,3,tv', 'the item holds NUL or invalid UTF-8'),
  'surrogate': (b'A1,\xed\xa0\x80,7,1.5,1,3,tv', 'the item holds NUL or inv'),
  'user of 100 kB': (b'A' * 10**5 + b',B1,7,1.5,1,3,tv', '4096 characters'),
  'no time': (b'A1,B1,,1.5,1,3,tv', 'the timestamp is missing'),
  'time of text': (b'A1,B1,soon,1.5,1,3,tv', "the timestamp 'soon'"),
  'no such day': (b'A1,B1,2014-02-30,1.5,1,3,tv', 'ISO 8601'),
  'American date': (b'A1,B1,02/28/2014,1.5,1,3,tv', 'ISO 8601'),
  'time NaN': (b'A1,B1,nan,1.5,1,3,tv', "the timestamp 'nan'"),
  'time 1e400': (b'A1,B1,1e400,1.5,1,3,tv', 'the timestamp is 1e400'),
  'time 2**60': (b'A1,B1,1152921504606846976,1.5,1,3,tv', 'out of range'),
  'milliseconds': (b'A1,B1,1393545600000,1.5,1,3,tv', 'not in seconds'),
  'microseconds': (b'A1,B1,1393545600000000,1.5,1,3,tv', 'not in seconds'),
  'no rating': (b'A1,B1,7,,1,3,tv', 'the rating is missing'),
  'rating of text': (b'A1,B1,7,good,1,3,tv', "the rating 'good' is not"),
  'rating NaN': (b'A1,B1,7,nan,1,3,tv', 'the rating is nan'),
  'rating inf': (b'A1,B1,7,-inf,1,3,tv', 'the rating is -inf'),
  'rating 1e39': (b'A1,B1,7,1e39,1,3,tv', 'the rating 1e39 is out of range'),
  'underscore': (b'A1,B1,7,1_0,1,3,tv', "the rating '1_0' is not"),
  'hexadecimal': (b'A1,B1,7,0x5,1,3,tv', "the rating '0x5' is not"),
  'no label': (b'A1,B1,7,1.5,,3,tv', 'the label is missing'),
  'label 2': (b'A1,B1,7,1.5,2,3,tv', 'the label is 2, not 0 or 1'),
  'label true': (b'A1,B1,7,1.5,true,3,tv', "the label 'true' is not"),
  'position -1': (b'A1,B1,7,1.5,1,-1,tv', 'the position -1 is not a whole'),
  'position 1.5': (b'A1,B1,7,1.5,1,1.5,tv', 'the position 1.5 is not'),
  'position 1e10': (b'A1,B1,7,1.5,1,1e10,tv', 'the position 1e10 is not'),
  'NUL in device': (b'A1,B1,7,1.5,1,3,t\0v', 'the device holds NUL'),
  'unclosed quote': (b'"A1,B1,7,1.5,1,3,tv', 'a quote is not closed'),
  'unclosed quote at the end': (b'A1,B1,7,1.5,1,3,"tv', 'a quote is not clo'),
  'text after a quote': (b'"A1"x,B1,7,1.5,1,3,tv', 'expected after'),
  'CR within quotes': (b'"A1",B1,7,1.5\r1,3,tv', ''),
  'two rows': (b'A1,B1,7,1.5,1,3,tv\rA1,B1,7,1.5,1,3,tv', '13 fields'),
  'header again': (b'u,i,t,r,l,p,d', "the timestamp 't'"),
  'JSON': (json.dumps(ROW).encode(), 'the timestamp'),
  'comment': (b'# nothing', '1 fields'),
  'other delimiter': (b'A1;B1;7;1.5;1;3;tv', '1 fields'),
}


@pytest.mark.parametrize('delimiter', [b',', b'\t'])
@pytest.mark.parametrize('kind', OWN_CSV_KINDS)
def test_own_csv(tmp_path, kind, delimiter):
  num = NUM_BEFORE + NUM_AFTER
  good = [b'A%d,B1,%d,1.5,1,3,tv' % (n, SECOND + n) for n in range(num)]
  line, reason = OWN_CSV_KINDS[kind]
  header = ','.join(ROW).encode() + b'\n'
  swap = lambda text: text.replace(b',', delimiter)
  check_line(
    tmp_path, read_own, list(map(swap, good)), swap(line), reason, swap(header)
  )


def test_all_kinds_at_once_stand_in_the_dataset(tmp_path):
  """Lines in are events and rejected lines out, each with number and reason."""
  kinds = review_kinds('2014').values()
  good = [
    json.dumps(review(f'A{n % 9}', f'B{n % 31}', 5.0, SECOND + n)).encode()
    for n in range(3 * len(kinds))
  ]
  path, lines, numbers = tmp_path / 'a', [], []
  for place, (line, _) in enumerate(kinds):
    lines += [*good[3 * place : 3 * place + 3], line]
    numbers.append(len(lines))
  path.write_bytes(b'\n'.join(lines))
  settings = {'reviews': (str(path),), 'eval_negatives': 2, 'negatives': 1}
  with pytest.raises(InputError, match=f'the first in line {numbers[0]}: '):
    prepare(PrepareConfig(max_rejected=0.0, **settings), tmp_path / 'strict')
  assert not (tmp_path / 'strict').exists()
  manifest = prepare(
    PrepareConfig(max_rejected=0.5, **settings), tmp_path / 'ds'
  )
  counts = manifest['counts']
  assert counts['lines'] == len(lines)
  assert counts['events'] + counts['duplicates'] == len(good)
  assert counts['rejected'] == len(kinds)
  with (tmp_path / 'ds' / 'rejected.jsonl').open() as file:
    rejected = [json.loads(line) for line in file]
  assert [row['line'] for row in rejected] == numbers
  for row, (line, reason) in zip(rejected, kinds, strict=True):
    assert row['file'] == 'a'
    assert reason in row['reason']
    assert row['text'] in ('', line.decode('utf-8', 'replace')[:200])
