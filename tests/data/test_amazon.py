"""Amazon's formats: hand-made files of each, bad ones, and real ones."""

import ast
import gzip
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from eain_jax.data import amazon, lines
from eain_jax.data.amazon import (
  _decode_metadata,
  detect_format,
  literal_to_json,
  parse_price,
  read_amazon,
  requote_literal,
)
from eain_jax.data.lines import ReadOptions
from eain_jax.errors import InputError

REAL = Path(__file__).parents[2] / '..' / 'shared' / 'data'
STRICT = ReadOptions()
# Files of a few lines, of which some are bad.
LENIENT = ReadOptions(max_rejected=0.9)
fast = settings(
  deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
DAY = 86_400
USER, OTHER_USER = 'A2SUAM1J3GNN3B', 'A14VAT5EAX3D9S'
ITEM, OTHER_ITEM = 'B00004TKVY', '1384719342'

# user, item, rating, time: v has a tie, out of order of item; one repeat.
EVENTS = [
  (USER, ITEM, 5.0, 1_393_545_600),
  (OTHER_USER, OTHER_ITEM, 1.0, 1_363_392_000),
  (USER, OTHER_ITEM, 3.0, 1_393_545_600),
  (OTHER_USER, ITEM, 2.0, 1_363_305_600),
  (USER, ITEM, 4.0, 1_393_545_600),
]
METADATA = [
  {'asin': ITEM, 'title': "Don't", 'price': 9.99, 'brand': 'O\'Hara "X"',
   'salesRank': {'Music': 7}, 'imUrl': None,
   'categories': [['CDs & Vinyl', 'Folk'], ['CDs & Vinyl', 'Pop', 'Rock']]},
  {'asin': OTHER_ITEM, 'categories': [['Digital Music']], 'title': 'a\nb'},
  {'asin': 'B000000000', 'title': 'of no event'},
]  # fmt: skip


def write(path, content, pack=False):
  """Writes text, bytes, or records as JSON lines; gzip if asked."""
  if isinstance(content, list):
    content = ''.join(
      (line if isinstance(line, str) else json.dumps(line)) + '\n'
      for line in content
    )
  if isinstance(content, str):
    content = content.encode()
  path.write_bytes(gzip.compress(content) if pack else content)
  return path


def review_2014(user, item, rating, time):
  return {
    'reviewerID': user, 'asin': item, 'reviewerName': 'Jö', 'helpful': [0, 1],
    'reviewText': 'It\'s "good"', 'overall': rating, 'summary': '',
    'unixReviewTime': time, 'reviewTime': '02 28, 2014',
  }  # fmt: skip


def review_2018(user, item, rating, time):
  return {
    'overall': rating, 'verified': True, 'reviewTime': '02 28, 2014',
    'reviewerID': user, 'asin': item, 'style': {'Gift Amount:': ' 50'},
    'vote': '2', 'image': ['x'], 'reviewText': 'x', 'unixReviewTime': time,
  }  # fmt: skip


def review_2023(user, item, rating, time):
  return {
    'rating': rating, 'title': '', 'text': 'x', 'images': [], 'asin': 'B0CHILD',
    'parent_asin': item, 'user_id': user, 'timestamp': time * 1_000 + 789,
    'helpful_vote': 0, 'verified_purchase': True,
  }  # fmt: skip


def csv_2014(user, item, rating, time):
  return f'{user},{item},{rating},{time}'


def csv_2018(user, item, rating, time):
  return f'{item},{user},{rating},{time}'


def csv_2023(user, item, rating, time):
  return f'{user},{item},{rating},{time * 1_000 + 1}'


FORMATS = {
  'amazon-2014-reviews': (review_2014, ''),
  'amazon-2018-reviews': (review_2018, ''),
  'amazon-2023-reviews': (review_2023, ''),
  'ratings of 2014': (csv_2014, ''),
  'ratings of 2018': (csv_2018, ''),
  'ratings of 2023': (csv_2023, 'user_id,parent_asin,rating,timestamp\n'),
}


def content_of(name, events=EVENTS):
  record, header = FORMATS[name]
  lines = [record(*event) for event in events]
  text = (line if isinstance(line, str) else json.dumps(line) for line in lines)
  return header + ''.join(line + '\n' for line in text)


def as_rows(log):
  columns = [
    log.users.gather(log.user).to_list(),
    log.items.gather(log.item).to_list(),
    log.rating.tolist(),
    log.timestamp.tolist(),
  ]
  return list(zip(*columns, strict=True))


def check_counts(log):
  counts = log.counts
  assert counts['lines'] == (
    counts['events'] + counts['duplicates'] + counts['rejected']
  )
  assert counts['events'] == len(log.user)
  assert (counts['users'], counts['items']) == (len(log.users), len(log.items))


def refusal(reviews, metadata=(), options=STRICT):
  """The sentence that files are refused with."""
  with pytest.raises(InputError) as caught:
    read_amazon(reviews, metadata, options)
  message = str(caught.value)
  assert '\n' not in message
  assert len(message) < 800
  return message


def rejected_rows(path, options=LENIENT):
  log, rejected = read_amazon([path], [], options)
  check_counts(log)
  assert log.counts['rejected'] == rejected.height
  assert set(rejected['file']) <= {path.name}
  return log, rejected.select('line', 'reason').rows()


# Formats.


@pytest.mark.parametrize('pack', [False, True])
@pytest.mark.parametrize('name', FORMATS)
def test_each_format_by_hand(tmp_path, name, pack):
  # The name of the file says nothing.
  path = write(tmp_path / 'meta_data.bin', content_of(name), pack)
  log, rejected = read_amazon([path], [], STRICT)
  assert as_rows(log) == [
    (OTHER_USER, ITEM, 2.0, 1_363_305_600),
    (OTHER_USER, OTHER_ITEM, 1.0, 1_363_392_000),
    (USER, ITEM, 5.0, 1_393_545_600),
    (USER, OTHER_ITEM, 3.0, 1_393_545_600),
  ]
  assert log.users.to_list() == [OTHER_USER, USER]
  assert log.items.to_list() == [OTHER_ITEM, ITEM]
  assert log.counts == {
    'lines': 5, 'blank': 0, 'rejected': 0, 'events': 4, 'users': 2, 'items': 2,
    'duplicates': 1,
  }  # fmt: skip
  assert rejected.height == 0
  [source] = log.sources
  expected = {
    'ratings of 2014': 'amazon-ratings-csv',
    'ratings of 2018': 'amazon-ratings-csv',
    'ratings of 2023': 'amazon-ratings-csv-header',
  }.get(name, name)
  assert source['format'] == expected
  assert source['lines'] == 5
  assert source['bytes'] == path.stat().st_size
  assert ('times in milliseconds were read as seconds' in str(log.notes)) == (
    '2023' in name
  )
  assert log.item_attributes.shape == (0, 0)


def test_csv_says_which_column_it_took(tmp_path):
  for name in ('ratings of 2014', 'ratings of 2018'):
    path = write(tmp_path / 'a.csv', content_of(name))
    note = read_amazon([path], [], STRICT)[0].notes[0]
    assert note == (
      'a.csv: columns taken by the look of its ids; its first event is user '
      f'{USER}, item {ITEM}, rating 5.0, time 1393545600.'
    )


def test_csv_of_2023_with_a_history(tmp_path):
  rows = [
    'user_id,parent_asin,rating,timestamp,history',
    f'AE3{"B" * 25},B001,5.0,1525219200999,',
    f'AE3{"B" * 25},B002,4.0,1525219201999,B001 B003',
  ]
  log, _ = read_amazon([write(tmp_path / 'a', rows, True)], [], STRICT)
  assert as_rows(log) == [
    (f'AE3{"B" * 25}', 'B001', 5.0, 1_525_219_200),
    (f'AE3{"B" * 25}', 'B002', 4.0, 1_525_219_201),
  ]
  assert 'its header' in log.notes[0]


def test_csv_header_in_any_order_and_quoted(tmp_path):
  rows = ['"Rating","item" , user,timestamp', '"4","i1","u1","5"']
  log, _ = read_amazon([write(tmp_path / 'a', rows)], [], STRICT)
  assert as_rows(log) == [('u1', 'i1', 4.0, 5)]


def test_files_together_number_their_ids_once(tmp_path):
  first = write(tmp_path / 'a', content_of('amazon-2014-reviews', EVENTS[:3]))
  second = write(tmp_path / 'b', content_of('ratings of 2018', EVENTS[2:]))
  log, _ = read_amazon([first, second], [], STRICT)
  whole = write(tmp_path / 'c', content_of('amazon-2014-reviews'))
  assert as_rows(log) == as_rows(read_amazon([whole], [], STRICT)[0])
  assert log.counts['lines'] == 6
  assert log.counts['duplicates'] == 2
  assert [source['lines'] for source in log.sources] == [3, 3]


def test_blank_lines_are_counted_apart(tmp_path):
  text = content_of('amazon-2014-reviews').replace('\n', '\r\n\r\n')
  log, _ = read_amazon([write(tmp_path / 'a', text)], [], STRICT)
  check_counts(log)
  assert (log.counts['lines'], log.counts['blank']) == (5, 5)


@fast
@given(st.permutations(EVENTS[1:]), st.sampled_from(list(FORMATS)))
def test_order_of_lines_does_not_matter_where_times_differ(
  tmp_path, shuffled, name
):
  distinct = lambda events: [
    (u, i, r, 10**9 + DAY * EVENTS.index((u, i, r, t))) for u, i, r, t in events
  ]
  paths = [
    write(tmp_path / str(n), content_of(name, distinct(events)))
    for n, events in enumerate([EVENTS[1:], shuffled])
  ]
  logs = [read_amazon([path], [], STRICT)[0] for path in paths]
  assert as_rows(logs[0]) == as_rows(logs[1])
  assert logs[0].counts == logs[1].counts


# Metadata.


def metadata_table(tmp_path, content, options=STRICT):
  reviews = write(tmp_path / 'r', content_of('amazon-2014-reviews'))
  metadata = write(tmp_path / 'm', content)
  log, rejected = read_amazon([reviews], [metadata], options)
  rows = dict(zip(log.items, log.item_attributes.rows(named=True), strict=True))
  return rows, log, rejected


@pytest.mark.parametrize('dump', [json.dumps, repr])
def test_metadata_of_2014_json_or_literal(tmp_path, dump):
  rows, log, _ = metadata_table(tmp_path, [dump(line) for line in METADATA])
  assert rows[ITEM] == {
    'category': 'Rock',
    'category_path': ['CDs & Vinyl', 'Folk', 'Pop', 'Rock'],
    'brand': 'O\'Hara "X"',
    'price': 9.99,
  }
  assert rows[OTHER_ITEM] == {
    'category': 'Digital Music',
    'category_path': ['Digital Music'],
    'brand': None,
    'price': None,
  }
  assert log.sources[1]['format'] == 'amazon-2014-metadata'
  counts = log.counts
  assert (counts['metadata_lines'], counts['items_in_metadata']) == (3, 2)
  assert counts['prices_unreadable'] == counts['metadata_repeated'] == 0
  assert log.item_attributes.schema == {
    'category': pl.String,
    'category_path': pl.List(pl.String),
    'brand': pl.String,
    'price': pl.Float64,
  }


def test_metadata_of_2018(tmp_path):
  rows, log, _ = metadata_table(
    tmp_path,
    [
      {
        'asin': ITEM, 'category': ['Gift Cards', 'A &amp; B', 'Gift Cards'],
        'brand': ' H&amp;M ', 'price': '$1,250.00', 'main_cat': 'x', 'rank': [],
        'tech1': '', 'also_buy': [],
      },
      {'asin': OTHER_ITEM, 'category': [], 'brand': '',
       'price': '.a-box-inner{background-color:#fff}', 'rank': '1 in'},
      {'asin': ITEM, 'category': ['of a second line'], 'price': '$1'},
    ],
  )  # fmt: skip
  assert rows[ITEM] == {
    'category': 'A & B',
    'category_path': ['Gift Cards', 'A & B'],
    'brand': 'H&M',
    'price': 1250.0,
  }
  assert set(rows[OTHER_ITEM].values()) == {None}
  assert log.sources[1]['format'] == 'amazon-2018-metadata'
  assert log.counts['metadata_repeated'] == 1
  assert log.counts['prices_unreadable'] == 1


@pytest.mark.parametrize(
  'junk',
  [
    ['</span></span></span>', 'Starbucks Gift Card 25', 'Starbucks'],
    ['No expiration, no fees.', 'Multiple denominations'],
    ['Made with ' + 'thick, recycled ' * 5, 'Handmade'],
  ],
)
def test_a_path_of_2018_ends_where_the_page_begins(tmp_path, junk):
  path = ['Gift Cards', 'Gift Card Accessories']
  rows, _, _ = metadata_table(
    tmp_path,
    [
      {'asin': ITEM, 'category': [*path, *junk], 'main_cat': 'x', 'rank': []},
      {'asin': OTHER_ITEM, 'category': path, 'rank': []},
    ],
  )
  for item in (ITEM, OTHER_ITEM):
    assert rows[item]['category'] == 'Gift Card Accessories'
    assert rows[item]['category_path'] == path


def test_metadata_of_2023(tmp_path):
  line = {
    'main_category': 'All Beauty', 'parent_asin': ITEM, 'store': 'Howard',
    'categories': ['Beauty', 'Hair'], 'price': None, 'details': {'Brand': 'x'},
  }  # fmt: skip
  rows, log, _ = metadata_table(tmp_path, [line])
  assert rows[ITEM] == {
    'category': 'Hair',
    'category_path': ['Beauty', 'Hair'],
    'brand': 'Howard',
    'price': None,
  }
  assert log.sources[1]['format'] == 'amazon-2023-metadata'
  assert log.counts['prices_unreadable'] == 0


def test_attributes_that_no_item_has_are_told(tmp_path):
  _, log, _ = metadata_table(tmp_path, [{'asin': ITEM, 'brand': 'x'}])
  assert log.notes == (
    'The metadata has no category, category_path, price of any item of the '
    'reviews: left out.',
  )


@pytest.mark.parametrize(
  ('value', 'price'),
  [
    (9.5, 9.5),
    (3, 3.0),
    (0, 0.0),
    ('$1,250.00', 1250.0),
    ('$5.00 - $10.00', 5.0),
    ('$10.00 - $5.00', 5.0),
    (' 12 ', 12.0),
    ('$1,234,567.5', 1234567.5),
    ('12,5', None),
    ('', None),
    (None, None),
    ('None', None),
    ('—', None),
    ('from 12.99', None),
    ('.a-section{color:#111}', None),
    ('$' * 10**6, None),
    ('9' * 190, None),
    (-1.0, None),
    (math.nan, None),
    (math.inf, None),
    (10**400, None),
    (True, None),
    (['$5'], None),
    ({'value': 5}, None),
  ],
)
def test_prices(value, price):
  assert parse_price(value) == price


@pytest.mark.parametrize(
  'junk', [7, 1.5, True, {'a': 1}, [1], [[]], [['x'], 'y', None], '', 'x' * 999]
)
@pytest.mark.parametrize(
  'key', ['category', 'categories', 'brand', 'store', 'price']
)
def test_junk_in_metadata_never_stops_a_run(tmp_path, key, junk):
  rows, log, rejected = metadata_table(
    tmp_path, [{'asin': ITEM, key: junk}, repr({'asin': OTHER_ITEM, key: junk})]
  )
  assert log.counts['items_in_metadata'] == 2
  assert rejected.height == 0
  # What is kept is the same however it was written.
  assert rows[ITEM] == rows[OTHER_ITEM]


@pytest.mark.parametrize(
  ('brand', 'expected'),
  [
    ('AT&amp;T', 'AT&T'),
    ('by\n    \n    Fender', 'Fender'),
    ('by Kilian', 'by Kilian'),
    ('</span></span></span>', None),
    ('<b>Fender</b>', None),
    ('I <3 Music', 'I <3 Music'),
  ],
)
def test_names_lose_what_scraping_left(tmp_path, brand, expected):
  rows, _, _ = metadata_table(tmp_path, [{'asin': ITEM, 'brand': brand}])
  assert rows[ITEM]['brand'] == expected


def test_surrogates_in_a_literal(tmp_path):
  line = (
    f"{{'asin': '{ITEM}', 'brand': '\\ud83d\\ude00\\ud800', "
    "'categories': [['\\ud83d\\ude00']]}"
  )
  rows, _, _ = metadata_table(tmp_path, [line])
  assert rows[ITEM]['brand'] == '\U0001f600\ufffd'
  assert rows[ITEM]['category'] == '\U0001f600'


# Literals.


SCALARS = (
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats(allow_nan=True)
  | st.text()
  | st.text(alphabet='\'"\\\t\n\r\x0b\x00\x7f\u2028\u00e9\U0001f600,:{}[] N1')
)
LITERALS = st.recursive(
  SCALARS,
  lambda inner: (
    st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=5), inner, max_size=4)
  ),
  max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(LITERALS)
@example({'a': 1e5, 'b': -1e-7, 'c': 1e22, 'd': -0.0, 'e': 10**30})
@example('True, None')
def test_a_literal_as_json_has_its_value(value):
  text = repr(value)
  translated = literal_to_json(text)
  is_odd = any(word in text for word in ('nan', 'inf', '\\ud', '\\U'))
  if translated is not None:
    assert json.loads(translated) == json.loads(json.dumps(value))
    # 1.0 equals 1 and True, so types are told by text.
    assert repr(json.loads(translated)) == text
  else:
    assert is_odd


# Pieces that together are often no literal at all.
PIECES = st.sampled_from(
  [
    *'{}[]:, \'"\\1-+e#b*\t\n\f\u2028', "'a'", '"b"', "'c': ", '.5', '5.', 'E3',
    '01', '1_0', '0x1', '1j', 'None', 'True', 'False', 'true', 'null', 'nan',
    '\\x41', '\\u00e9', '\\ud83d', '\\N{DASH}', '\\0', '\\d', '\\/', "'''",
    '()',
  ]
)  # fmt: skip


def strict_json(text):
  def refuse(constant):
    raise ValueError(constant)

  return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize('translate', [literal_to_json, requote_literal])
@settings(deadline=None, max_examples=1_500)
@given(text=st.lists(PIECES, max_size=9).map(''.join))
@example("'\\ud83d\\ude00'")
@example('\'a"b\' "c\'d"')
@example('["it\'s", \'"\']')
@example('\'""\'')
@example("b'a'")
@example("'\\/'")
@example('"a" "b"')
@example("{'a': true}")
@example('[1 2]')
@example("'''a'''")
@example('\u0661')
def test_what_becomes_json_is_what_python_reads(translate, text):
  translated = translate(text)
  if translated is None:
    return
  try:
    value = strict_json(translated)
  except ValueError:
    return  # The slow way decides.
  assert repr(ast.literal_eval(text.strip(' \t\n\r'))) == repr(value)


@settings(deadline=None, max_examples=300)
@given(LITERALS)
def test_requoting_is_for_what_needs_no_backslash(value):
  text = repr(value)
  translated = requote_literal(text)
  words = ('\\', 'null', 'true', 'false')
  assert (translated is None) == any(word in text for word in words)
  # Python's own words and numbers are left for another way.
  if not any(w in text for w in ('\\', 'None', 'True', 'False', 'nan', 'inf')):
    assert translated is None or json.loads(translated) == value


@settings(deadline=None, max_examples=500)
@given(st.lists(PIECES, max_size=9).map(''.join), st.sampled_from(['', '7']))
def test_metadata_is_the_same_without_requoting(text, asin):
  line = f"{{'asin': {asin or repr(ITEM)}, 'price': {text}}}".encode()

  def outcome():
    try:
      return repr(_decode_metadata(line))
    except ValueError as error:
      # Python says where the node is that it does not take.
      return re.sub('0x[0-9a-f]+', '', str(error))

  quick = outcome()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(amazon, 'requote_literal', lambda text: None)
    assert outcome() == quick


@pytest.mark.parametrize(
  ('text', 'value'),
  [
    (r"{'a': 'it\'s'}", {'a': "it's"}),
    ('{\'a\': "it\'s"}', {'a': "it's"}),
    (r"""{'a': 'say "x" \'y\''}""", {'a': 'say "x" \'y\''}),
    (r"{'a': 'tab\t nl\n \\ \x41 \xe9 \u2028'}",
     {'a': 'tab\t nl\n \\ A é \u2028'}),
    ("{'a': 'None, True: \t[1]', 'b': [None, True, False]}",
     {'a': 'None, True: \t[1]', 'b': [None, True, False]}),
    ("{'a': 1e5, 'b': -2.5E-3, 'c': []}", {'a': 1e5, 'b': -2.5e-3, 'c': []}),
    ("{'a': 1, 'a': 2}", {'a': 2}),
    ("{'a': '\u2028\U0001f600'}", {'a': '\u2028\U0001f600'}),
  ],
)  # fmt: skip
def test_literals_by_hand(text, value):
  translated = literal_to_json(text)
  assert translated is not None
  assert strict_json(translated) == value == ast.literal_eval(text)


def test_a_literal_that_json_has_no_word_for_still_counts(recwarn):
  # An unknown escape, a tuple, an octal escape, a trailing comma.
  line = (
    rb"""{'asin': 'B1', 'a': '\d', 'b': (1,), 'brand': '\101', 'c': [1,],}"""
  )
  record = _decode_metadata(line)
  assert (record.asin, record.brand) == ('B1', 'A')
  assert not recwarn.list


# Bad lines.


def test_a_key_that_stands_twice_has_its_last_value(tmp_path):
  line = json.dumps(review_2014(*EVENTS[0]))
  line = line.replace('"asin": ', '"asin": "B999999999", "asin": ')
  assert json.loads(line)['asin'] == ITEM
  log, _ = read_amazon([write(tmp_path / 'a', line)], [], STRICT)
  assert log.items.to_list() == [ITEM]


def test_a_header_is_no_line_of_data_and_keeps_its_number(tmp_path):
  good = content_of('ratings of 2014').splitlines()
  header = 'user_id,parent_asin,rating,timestamp'
  path = write(tmp_path / 'b', ['', header, *good, 'junk'])
  log, rejected = rejected_rows(path)
  assert rejected == [(8, '1 fields, expected 4')]
  assert log.counts['lines'] == len(good) + 1


@pytest.mark.parametrize('line', ['junk', '{"reviewerID": "A', '####'])
def test_a_broken_first_line_is_one_line(tmp_path, line):
  path = write(tmp_path / 'a', line + '\n' + content_of('amazon-2018-reviews'))
  log, rejected = rejected_rows(path)
  assert [number for number, _ in rejected] == [1]
  assert log.counts['events'] == 4


def test_too_many_rejected(tmp_path):
  good = [review_2014(USER, ITEM, 5.0, DAY * n) for n in range(999)]
  path = write(tmp_path / 'a', [*good[:500], 'bad', *good[500:]])
  log, _ = read_amazon([path], [], STRICT)  # 1 of 1,000 is 0.1 %.
  assert (log.counts['events'], log.counts['rejected']) == (999, 1)
  path = write(tmp_path / 'a', [*good[:500], 'bad', *good[501:]])
  message = refusal([path])
  assert f'{path}: 1 of 999 lines were rejected, the first in line 501: ' in (
    message
  )
  assert '--max_rejected' in message


def test_all_lines_rejected(tmp_path):
  path = write(tmp_path / 'a', [review_2014(USER, '', 5.0, 1)] * 3)
  said = f'{path}: all of its lines, 3, were rejected, the first in line 1: an '
  assert said in refusal([path])
  assert said in refusal([path], options=ReadOptions(max_rejected=1.0))


def test_seconds_among_milliseconds(tmp_path):
  events = [(USER, f'B{n:09}', 5.0, 1_500_000_000 + n) for n in range(9)]
  lines = [review_2023(*event) for event in events]
  lines[4]['timestamp'] = 1_500_000_000
  log, rejected = rejected_rows(write(tmp_path / 'a', lines))
  reason = 'the time 1500000000 is not in milliseconds as most of the file is'
  assert rejected == [(5, reason)]
  assert log.timestamp.tolist() == [
    1_500_000_000 + n for n in range(9) if n != 4
  ]


@fast
@given(st.data())
def test_mangled_lines_are_good_bad_or_blank(tmp_path, data):
  name = data.draw(st.sampled_from(list(FORMATS)))
  events = [(USER, f'B{n:09}', 5.0, 10**9 + n) for n in range(40)]
  header = FORMATS[name][1].encode()
  lines = content_of(name, events).encode().removeprefix(header).split(b'\n')
  for place in data.draw(st.sets(st.integers(1, 39), max_size=3)):
    begin = data.draw(st.integers(0, len(lines[place])))
    end = data.draw(st.integers(begin, len(lines[place])))
    junk = data.draw(st.binary(max_size=4)).replace(b'\n', b'')
    lines[place] = lines[place][:begin] + junk + lines[place][end:]
  content = header + b'\n'.join(lines)
  options = ReadOptions(max_rejected=1.0)
  logs = []
  for pack in (False, True):
    path = write(tmp_path / 'a', content, pack)
    log, rejected = read_amazon([path], [], options)
    check_counts(log)
    counts = log.counts
    assert rejected.height == counts['rejected']
    assert counts['lines'] + counts['blank'] == 40
    logs.append((as_rows(log), rejected.rows()))
  assert logs[0] == logs[1]


# What a block of lines may hold beside one object a line.
REVIEW = json.dumps(review_2014(*EVENTS[0]))
ODD_LINES = [
  *(json.dumps(review_2014(*event)) for event in EVENTS),
  REVIEW + REVIEW,
  f'{REVIEW} {REVIEW}',
  REVIEW.replace(', ', ',\n'),
  REVIEW.replace('}', '\n}'),
  REVIEW.replace('[0, 1]', '[{}\n{}]'),
  REVIEW.replace('[0, 1]', '{}\n,{}'),
  REVIEW.replace('good', '{}\n{'),
  REVIEW[: len(REVIEW) // 2],
  REVIEW.replace(USER, ''),
  REVIEW.replace(USER, 'a\ufffd'),
  REVIEW.replace('5.0', '1e7'),
  REVIEW.replace('5.0', '9' * 400),
  REVIEW.replace('1393545600', '0.5'),
  f' {REVIEW}',
  f'{REVIEW}\r',
  '{}',
  '',
]


@fast
@given(st.lists(st.sampled_from(ODD_LINES), max_size=12), st.booleans())
def test_blocks_of_lines_equal_lines_one_by_one(tmp_path, odd, is_ended):
  content = '\n'.join([REVIEW, *odd]) + '\n' * is_ended
  path = write(tmp_path / 'a', content)

  def outcome():
    log, rejected = read_amazon([path], [], ReadOptions(max_rejected=1.0))
    return as_rows(log), log.counts, rejected.rows()

  # Blocks of one line or so, many of them whole.
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(lines, 'BLOCK_BYTES', 4 * len(REVIEW))
    small = outcome()
  in_blocks = outcome()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(amazon, '_decode_lines', lambda decoder, text: None)
    assert small == in_blocks == outcome()


# Bad files.


@pytest.mark.parametrize(
  ('content', 'sentence'),
  [
    ('<!DOCTYPE html><html>', 'is an HTML or XML page'),
    ('', 'is empty'),
    ('\n\n', 'is empty: it holds no line'),
    (gzip.compress(b'', mtime=0), 'is empty'),
    (bytes(range(256)) * 9, 'holds binary data'),
    ('[\n{"asin": 1}]', 'line 1: a JSON array'),
    ('[{"reviewerID": "A", "asin": "B"}]', 'line 1: a JSON array'),
    ('{"user": 1, "item": 2}', 'its keys are item, user'),
    ('{"asin": "B1", ', 'line 1: neither a JSON object nor a Python literal'),
    ('hello world\n', "its first line is 'hello world'"),
    ('user;item;rating;time\n1;2;3;4\n', 'its first line is'),
    ('a,b,c,d\n', 'its first line is'),
    ('user_id,product,rating,timestamp\nu,i,1,1', 'no column for the item'),
    ('user_id,asin,stars,timestamp\nu,i,1,1', 'no column for the rating'),
    ('user_id,asin,rating,when\nu,i,1,1', 'no column for the time'),
    ('user_id,asin,asin,rating,time\nu,i,i,1,1', 'its header names asin twice'),
    ('user_id,parent_asin,rating,timestamp\n', 'holds no line of data'),
    ('u1,i1,5.0,1\nu2,i2,5.0,1\n', 'do not tell which'),
    ('B000000001,B000000002,5.0,1\n', 'do not tell which'),
  ],
)
def test_files_that_are_not_reviews(tmp_path, content, sentence):
  path = write(tmp_path / 'some file', content)
  message = refusal([path])
  assert sentence in message
  assert str(path) in message
  message = refusal(
    [write(tmp_path / 'r', content_of('ratings of 2014'))], [path]
  )
  assert str(path) in message


def test_ambiguous_ids_say_what_to_do(tmp_path):
  path = write(tmp_path / 'a', 'u1,i1,5.0,1\n')
  message = refusal([path])
  assert '0% and 0% of them look like ASINs' in message
  assert 'add a header such as user,item,rating,timestamp' in message
  # And what it says works.
  write(path, 'user,item,rating,timestamp\n' + path.read_text())
  assert as_rows(read_amazon([path], [], STRICT)[0]) == [('u1', 'i1', 5.0, 1)]


def test_paths_that_are_no_file(tmp_path):
  reviews = write(tmp_path / 'r', content_of('amazon-2014-reviews'))
  for path, sentence in [
    (tmp_path / 'missing', 'does not exist'),
    (tmp_path, 'is a folder'),
  ]:
    assert sentence in refusal([path])
    assert sentence in refusal([reviews], [path])


def test_reviews_and_metadata_in_each_other_s_place(tmp_path):
  reviews = write(tmp_path / 'r', content_of('amazon-2014-reviews'))
  ratings = write(tmp_path / 'c', content_of('ratings of 2018'))
  metadata = write(tmp_path / 'm', METADATA)
  assert refusal([metadata]) == (
    f'{metadata} is item metadata (amazon-2014-metadata), not reviews: give it '
    'as --metadata'
  )
  for path, said in [
    (reviews, 'amazon-2014-reviews'),
    (ratings, 'amazon-ratings-csv'),
  ]:
    assert refusal([reviews], [path]) == (
      f'{path} holds {said}, not item metadata: give it as --reviews'
    )


def test_metadata_of_other_items(tmp_path):
  reviews = write(tmp_path / 'r', content_of('amazon-2014-reviews'))
  metadata = write(tmp_path / 'm', [{'parent_asin': 'B0X', 'store': 'x'}])
  assert refusal([reviews], [metadata]) == (
    'not one of the 2 items of the reviews (r: amazon-2014-reviews) is in the '
    'metadata (m: amazon-2023-metadata): the files are of different categories '
    'or years'
  )


@pytest.mark.parametrize('name', FORMATS)
def test_truncated_and_damaged_gzip(tmp_path, name):
  events = [
    (f'A{n * 7919 % 10**12:012}', f'B{n:09}', 5.0, 10**9 + DAY * n)
    for n in range(1, 400)
  ]
  data = gzip.compress(content_of(name, events).encode())
  path = write(tmp_path / 'a', data[: len(data) * 2 // 3])
  message = refusal([path])
  log, rejected = read_amazon([path], [], ReadOptions(allow_truncated=True))
  num, num_header = log.counts['lines'], bool(FORMATS[name][1])
  assert 0 < num < 399
  assert f'ends within line {num + num_header + 1};' in message
  assert rejected.height == 0
  assert sorted(as_rows(log)) == sorted(events[:num])
  assert f'its {num} complete lines were kept' in str(log.notes)
  damaged = bytearray(data)
  damaged[-6] ^= 1
  assert 'is a damaged gzip file' in refusal([write(tmp_path / 'b', damaged)])


def test_every_release_is_told_by_its_keys(tmp_path):
  for keys, expected in [
    ({'asin': 'B1'}, 'amazon-2014-metadata'),
    ({'asin': 'B1', 'rank': []}, 'amazon-2018-metadata'),
    ({'parent_asin': 'B1'}, 'amazon-2023-metadata'),
  ]:
    for dump in (json.dumps, repr):
      path = write(tmp_path / 'reviews_2018.json', [dump(keys)])
      assert detect_format(path, STRICT) == expected


# Memory.

PEAK = """
import sys
from pathlib import Path
from eain_jax.benchmark.host import peak_rss_mb
from eain_jax.data.amazon import read_amazon
from eain_jax.data.lines import ReadOptions
log, _ = read_amazon([Path(sys.argv[1])], [], ReadOptions())
print(len(log.user), peak_rss_mb())
"""


def test_memory_hardly_grows_with_lines(tmp_path):
  """Of a line some 20 bytes are kept; a file need not fit into memory."""
  path, peaks = tmp_path / 'a', []
  with path.open('wb') as file:
    for num in (80_000, 320_000):
      for n in range(0 if not peaks else 80_000, num):
        file.write(
          b'{"reviewerID": "A%d", "asin": "B%d", "overall": 5.0, "reviewText": '
          b'"%s", "unixReviewTime": %d}\n'
          % (n % 9_000, n % 7_000, b'x' * 700, DAY * n)
        )
      file.flush()
      done = subprocess.run(
        [sys.executable, '-c', PEAK, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
      )
      events, peak = done.stdout.split()
      assert int(events) == num
      peaks.append(float(peak))
  # 190 MB more of text; 240,000 events of 20 bytes, and their sorting.
  assert path.stat().st_size > 240_000_000
  assert peaks[1] < 1.2 * peaks[0]


# Real files.


def real(*names):
  paths = [REAL / name for name in names]
  if not all(path.exists() for path in paths):
    pytest.skip(f'{names[0]} is not in shared/data')
  return paths


@pytest.mark.real_data
def test_real_musical_instruments():
  paths = real('amazon_2014_musical_instruments/Musical_Instruments_5.json.gz')
  log, rejected = read_amazon(paths, [], STRICT)
  check_counts(log)
  assert log.sources[0]['format'] == 'amazon-2014-reviews'
  names = ('lines', 'events', 'users', 'items', 'duplicates', 'rejected')
  assert [log.counts[name] for name in names] == [
    10_261,
    10_261,
    1_429,
    900,
    0,
    0,
  ]
  assert [int((log.rating == r).sum()) for r in range(1, 6)] == [
    217, 250, 772, 2_084, 6_938,
  ]  # fmt: skip
  assert rejected.height == 0


@pytest.mark.real_data
def test_real_gift_cards():
  reviews, metadata = real(
    'amazon_2018_gift_cards/Gift_Cards_5.json.gz',
    'amazon_2018_gift_cards/meta_Gift_Cards.json.gz',
  )
  log, _ = read_amazon([reviews], [metadata], STRICT)
  check_counts(log)
  names = ('lines', 'events', 'duplicates', 'users', 'items')
  assert [log.counts[name] for name in names] == [2_972, 2_969, 3, 458, 148]
  assert log.counts['metadata_lines'] == 1_547
  assert log.counts['items_in_metadata'] == 148
  assert [source['format'] for source in log.sources] == [
    'amazon-2018-reviews',
    'amazon-2018-metadata',
  ]
  with gzip.open(metadata) as file:
    prices = [json.loads(line)['price'] for line in file]
  read = [parse_price(price) for price in prices]
  assert prices.count('') == 1_185
  assert read[prices.index('$1,250.00')] == 1250.0
  assert (
    sum(p != '' and r is None for p, r in zip(prices, read, strict=True)) == 4
  )
  amp = log.item_attributes['category_path'].explode().str.contains('&amp;')
  assert not amp.any()


@pytest.mark.real_data
def test_real_digital_music_is_truncated(tmp_path):
  reviews, metadata = real(
    'amazon_2014_digital_music/reviews_Digital_Music_5.json.gz',
    'amazon_2014_digital_music/meta_Digital_Music.json.gz',
  )
  message = refusal([reviews], [metadata])
  assert message.startswith(
    f'{reviews} is a truncated gzip file: it ends within line 6909;'
  )
  log, rejected = read_amazon([reviews], [metadata], ReadOptions(True))
  check_counts(log)
  names = ('lines', 'events', 'users', 'items')
  assert [log.counts[name] for name in names] == [6_908, 6_908, 2_490, 382]
  assert log.counts['metadata_lines'] == 7_419
  assert log.counts['items_in_metadata'] == 382
  assert rejected.height == 0
  # Whole reviews, and the metadata is refused.
  events = [review_2014(*row) for row in as_rows(log)]
  message = refusal([write(tmp_path / 'whole', events)], [metadata])
  assert message.startswith(
    f'{metadata} is a truncated gzip file: it ends within line 7420;'
  )


@pytest.mark.real_data
def test_real_metadata_literals_equal_python_s():
  [path] = real('amazon_2014_digital_music/meta_Digital_Music.json.gz')
  found = []
  with gzip.open(path, 'rt') as file:
    try:
      for line in file:
        found.append(line)
    except EOFError:
      pass
  assert len(found) > 7_000
  num_requoted = 0
  for line in found[::7]:
    translated = literal_to_json(line)
    assert translated is not None
    value = ast.literal_eval(line)
    assert json.loads(translated) == value
    requoted = requote_literal(line)
    if requoted is not None and 'None' not in line and 'True' not in line:
      num_requoted += 1
      assert json.loads(requoted) == value
  assert num_requoted > len(found) // 10
