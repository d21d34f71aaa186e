"""Logs with named columns: text and Parquet, good and bad, made and real."""

import datetime
import gzip
import json
import math
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from eain_jax.data import parquet_process
from eain_jax.data.lines import ReadOptions
from eain_jax.data.log_files import read_log
from eain_jax.errors import InputError

REAL = Path(__file__).parents[2] / '..' / 'shared' / 'data'
STRICT = ReadOptions()
LENIENT = ReadOptions(max_rejected=0.99)
fast = settings(
  deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
COLUMNS = {'user': 'u', 'item': 'i', 'timestamp': 't'}
FULL = COLUMNS | {
  'rating': 'stars', 'label': 'click', 'request': 'list', 'position': 'rank',
  'device': 'dev', 'place': 'where',
}  # fmt: skip
HEADER = ['junk', 't', 'u', 'i', 'stars', 'click', 'list', 'rank', 'dev',
          'where']  # fmt: skip
# The third row ties with the first, the last repeats the second.
ROWS = [
  ['x', 30, 'v', 'B', 4.5, 1, 'p', 0, 'tv', ''],
  ['', 10, 'v', 'A', 1.0, 0, 'o', 3, '', 'Rome, Italy'],
  ['x', 30, 'v', 'A', 2.0, 0, 'p', 1, 'pc', 'Oslo'],
  ['x', 20, 'u', 'C', 3.0, 1, 'q', 0, 'tv', 'Oslo'],
  ['y', 10, 'v', 'A', 5.0, 0, 'o', 3, 'tv', 'Oslo'],
]


def quoted(value, delimiter):
  text = str(value)
  return f'"{text}"' if delimiter in text else text


def write_log(path, kind, rows=ROWS, header=HEADER, pack=False):
  if kind == 'json':
    lines = [json.dumps(dict(zip(header, row, strict=True))) for row in rows]
  else:
    delimiter = {'csv': ',', 'tsv': '\t'}[kind]
    lines = [
      delimiter.join(quoted(value, delimiter) for value in row)
      for row in [header, *rows]
    ]
  return write(path, '\n'.join(lines) + '\n', pack)


def write(path, content, pack=False):
  if isinstance(content, str):
    content = content.encode()
  path.write_bytes(gzip.compress(content) if pack else content)
  return path


def as_rows(log):
  """user, item, time of every event."""
  columns = [
    log.users.gather(log.user).to_list(),
    log.items.gather(log.item).to_list(),
    log.timestamp.tolist(),
  ]
  return list(zip(*columns, strict=True))


def check_counts(log, rejected):
  counts = log.counts
  assert counts['lines'] == (
    counts['events'] + counts['duplicates'] + counts['rejected']
  )
  assert counts['events'] == len(log.user)
  assert rejected.height == counts['rejected'] + counts.get(
    'item_lines_rejected', 0
  )


def read(path, columns=COLUMNS, options=STRICT, **items):
  log, rejected = read_log(path, columns, options, **items)
  check_counts(log, rejected)
  return log, rejected.select('line', 'reason').rows()


def refusal(path, columns=COLUMNS, options=STRICT, **items):
  """The sentence that a log is refused with."""
  with pytest.raises(InputError) as caught:
    read_log(path, columns, options, **items)
  message = str(caught.value)
  assert '\n' not in message
  assert len(message) < 800
  return message


def check_full(log):
  """The log of ROWS."""
  assert as_rows(log) == [
    ('u', 'C', 20),
    ('v', 'A', 10),
    ('v', 'B', 30),
    ('v', 'A', 30),
  ]
  assert log.rating.tolist() == [3.0, 1.0, 4.5, 2.0]
  assert log.label.tolist() == [1, 0, 1, 0]
  assert log.request.tolist() == [0, 1, 2, 2]
  assert log.position.tolist() == [0, 3, 0, 1]
  assert [str(a.dtype) for a in (log.rating, log.label, log.position)] == [
    'float32',
    'int8',
    'int32',
  ]
  device, place = log.context['device'], log.context['place']
  assert device.values.to_list() == ['pc', 'tv']
  assert device.codes.tolist() == [1, -1, 1, 0]
  assert place.values.to_list() == ['Oslo', 'Rome, Italy']
  assert place.codes.tolist() == [0, 1, -1, 0]
  assert log.counts == {
    'lines': 5, 'blank': 0, 'rejected': 0, 'events': 4, 'users': 2, 'items': 3,
    'duplicates': 1,
  }  # fmt: skip


# Text.


@pytest.mark.parametrize('pack', [False, True])
@pytest.mark.parametrize('kind', ['csv', 'tsv', 'json'])
def test_each_text_format_by_hand(tmp_path, kind, pack):
  path = write_log(tmp_path / 'no extension', kind, pack=pack)
  log, _ = read(path, FULL)
  check_full(log)
  [source] = log.sources
  assert source['format'] == {'json': 'json-lines'}.get(kind, kind)
  assert (source['lines'], source['rejected']) == (5, 0)
  assert source['bytes'] == path.stat().st_size


def test_only_the_required_columns(tmp_path):
  log, _ = read(write_log(tmp_path / 'a', 'csv'))
  assert log.rating is log.label is log.request is log.position is None
  assert log.context == {}
  # Without request and position as before: only (v, A, 10) repeats.
  assert log.counts['duplicates'] == 1


def test_one_column_under_several_names(tmp_path):
  columns = COLUMNS | {'timestamp': 'rank', 'request': 'list', 'shelf': 'list'}
  log, _ = read(write_log(tmp_path / 'a', 'tsv'), columns)
  # An order is kept as it is.
  assert log.timestamp.tolist() == [0, 0, 1, 3]
  assert log.request.tolist() == [0, 1, 1, 2]
  shelf = log.context['shelf']
  assert shelf.values.gather(shelf.codes).to_list() == ['q', 'p', 'p', 'o']


def test_integer_and_text_ids_are_text(tmp_path):
  rows = [[10, 'a', 1], [9, 'b', 2]]
  for kind in ('csv', 'json'):
    path = write_log(tmp_path / kind, kind, rows, ['u', 'i', 't'])
    log, _ = read(path)
    assert log.users.to_list() == ['10', '9']


def test_empty_fields_at_the_ends_of_a_row(tmp_path):
  text = 'd\tu\ti\tt\te\n\tx\ty\t1\t\nz\tx\ty\t2\tz\n'
  path = write(tmp_path / 'a', text)
  log, _ = read(path, COLUMNS | {'d': 'd', 'e': 'e'})
  assert as_rows(log) == [('x', 'y', 1), ('x', 'y', 2)]
  for name in 'de':
    assert log.context[name].codes.tolist() == [-1, 0]


def test_booleans_are_labels_and_categories_in_json(tmp_path):
  lines = [
    {'u': 'a', 'i': 'b', 't': n, 'l': bool(n), 'm': bool(n)} for n in (0, 1)
  ]
  path = write(tmp_path / 'a', '\n'.join(map(json.dumps, lines)))
  log, _ = read(path, COLUMNS | {'label': 'l', 'mobile': 'm'})
  assert log.label.tolist() == [0, 1]
  assert log.context['mobile'].values.to_list() == ['false', 'true']


@pytest.mark.parametrize(
  ('texts', 'seconds', 'note'),
  [
    (['0', '-5', '1e3', '7.9', ' 8 ', '+9'], [0, -5, 1000, 7, 8, 9], None),
    (['1525219200999', '1525219201000.0'], [1525219200, 1525219201], 'milli'),
    (['1525219200999999'], [1525219200], 'micro'),
    (
      ['1970-01-02', '1970-01-01T00:00:07Z', '1970-01-01 01:00:00+01:00',
       '1970-01-01T00:00:01.999', '1969-12-31T23:59:59.500'],
      [86_400, 7, 0, 1, -1],
      None,
    ),
  ],
)  # fmt: skip
@pytest.mark.parametrize('kind', ['csv', 'json'])
def test_times(tmp_path, kind, texts, seconds, note):
  rows = [[n, 'i', text] for n, text in enumerate(texts)]
  log, _ = read(write_log(tmp_path / 'a', kind, rows, ['u', 'i', 't']))
  assert log.timestamp.tolist() == seconds
  assert (f'times in {note}seconds were read as seconds' in str(log.notes)) == (
    note is not None
  )


def test_times_without_a_zone_are_utc_wherever_one_is(tmp_path, monkeypatch):
  monkeypatch.setenv('TZ', 'America/New_York')
  time.tzset()
  try:
    path = write(tmp_path / 'a', 'u,i,t\na,b,1970-01-01T00:00:05\n')
    assert read(path)[0].timestamp.tolist() == [5]
    table = tmp_path / 'b'
    frame = pl.DataFrame(
      {'u': 'a', 'i': 'b', 't': [datetime.datetime(1970, 1, 1, 0, 0, 5)]}
    )
    frame.write_parquet(table)
    assert read(table)[0].timestamp.tolist() == [5]
  finally:
    monkeypatch.undo()
    time.tzset()


def test_numbers_of_json_as_times(tmp_path):
  rows = [[n, 'i', t] for n, t in enumerate([3, 3.9, -0.5, 1e9])]
  log, _ = read(write_log(tmp_path / 'a', 'json', rows, ['u', 'i', 't']))
  assert log.timestamp.tolist() == [3, 3, -1, 10**9]


BAD = {
  'u': ['', '   ', 'a\0', 'a\ufffd'],
  'i': ['', ' '],
  't': ['', 'soon', 'nan', 'inf', '1e300', '2014-13-45', '9007199254740993',
        '1_000', '1_0e3', '\u0661'],
  'stars': ['', 'five', 'nan', '-inf', '1e39', '1_0', '\uff15'],
  'click': ['', '2', '-1', '0.5', 'yes', 'nan'],
  'list': ['', ' '],
  'rank': ['', '-1', '1.5', '2147483648', 'first', 'inf'],
}  # fmt: skip
BAD_JSON = {
  'u': [None, 1.5, True, [], {}, ['a']],
  'i': [None, 0.0, [1]],
  't': [None, True, [], {}, 10**400, 2**53, -(2**60)],
  'stars': [None, True, [], 10**400],
  'click': [None, 2, [1], 'x', 10**400],
  'list': [None, 1.0, []],
  'rank': [None, True, 1.5, 10**12, {}],
}


@pytest.mark.parametrize('kind', ['csv', 'json'])
def test_bad_values_are_rejected_with_their_line(tmp_path, kind):
  bad = [
    (name, value)
    for name, values in BAD.items()
    for value in [*values, *(BAD_JSON[name] if kind == 'json' else [])]
  ]
  rows = [ROWS[0]]
  for name, value in bad:
    rows.append(list(ROWS[1]))
    rows[-1][HEADER.index(name)] = value
  rows.append(ROWS[2])
  options = ReadOptions(max_rejected=0.99)
  log, rejected = read(write_log(tmp_path / 'a', kind, rows), FULL, options)
  first = 2 if kind == 'json' else 3
  assert [line for line, _ in rejected] == list(range(first, first + len(bad)))
  ours = {theirs: name for name, theirs in FULL.items()}
  for (_, reason), (name, value) in zip(rejected, bad, strict=True):
    assert f'the {ours[name]} ' in reason, value
  assert log.counts['events'] == 2
  assert log.users.to_list() == ['v']


def test_rejected_lines_keep_their_text(tmp_path):
  path = write(tmp_path / 'a.csv', 'u,i,t\nx,y,1\n"x",,2\nx,y\n')
  _, rejected = read_log(path, COLUMNS, LENIENT)
  assert rejected.rows() == [
    ('a.csv', 3, 'the item is empty', '"x",,2'),
    ('a.csv', 4, '2 fields, the header has 3', 'x,y'),
  ]
  path = write(tmp_path / 'a', '{"u":"x","i":"y","t":1}\n{"u": 7.5,  "i":"y"}')
  _, rejected = read_log(path, COLUMNS, LENIENT)
  assert rejected['text'].to_list() == ['{"u": 7.5,  "i":"y"}']


def test_a_quoted_field_may_hold_line_ends(tmp_path):
  text = (
    'u,note,i,t\n'
    'a,"one\n\ntwo, ""three""\n",x,1\n'
    'a,"",y,\n'
    'b,"q""",z,2\n'
    'b,5" wide,w,3\n'
  )
  log, rejected = read(write(tmp_path / 'a', text), options=LENIENT)
  assert as_rows(log) == [('a', 'x', 1), ('b', 'z', 2), ('b', 'w', 3)]
  assert rejected == [(6, 'the timestamp is missing')]
  assert (log.counts['lines'], log.counts['blank']) == (4, 0)


def test_a_stray_quote_costs_its_own_line_alone(tmp_path):
  rows = [f'u{n},i,{n}' for n in range(40)]
  rows[3] = '"u3,i,3'
  rows[9] = 'u9,"i"x,9'
  # Two would make one row between them, with three lines for its user; or
  # with too many fields.
  rows[20], rows[22] = '"u20,i,20', 'u22",i,22'
  rows[30], rows[32] = '"u30,i,30', 'u32",i,32,9'
  text = 'u,i,t\n' + '\n'.join(rows)
  log, rejected = read(write(tmp_path / 'a', text), options=LENIENT)
  assert [line for line, _ in rejected] == [5, 11, 22, 32, 34]
  assert sorted(log.timestamp.tolist()) == [
    n for n in range(40) if n not in (3, 9, 20, 30, 32)
  ]
  assert log.counts['lines'] == 40


def test_lines_after_a_stray_quote_keep_their_order(tmp_path):
  # Ties stand in the order of the source.
  text = 'u,i,t\n"a,1,5\na,4,5\na,2,5\na,3,5\na,0,"x\n'
  log, rejected = read(write(tmp_path / 'a', text), options=LENIENT)
  assert as_rows(log) == [('a', i, 5) for i in '423']
  assert [line for line, _ in rejected] == [2, 6]


def test_a_quote_to_the_end_of_a_long_file(tmp_path):
  rows = [f'u{n},i,{n}' for n in range(30_000)]
  rows[0] = 'u0,i,"0'
  path = write(tmp_path / 'a', 'u,i,t\n' + '\n'.join(rows))
  log, rejected = read(path)
  assert rejected == [(2, 'a quote is not closed')]
  assert log.counts['events'] == 29_999


@fast
@given(st.data())
def test_mangled_lines_are_good_bad_or_blank(tmp_path, data):
  kind = data.draw(st.sampled_from(['csv', 'tsv', 'json']))
  rows = [[f'u{n}', f'i{n}', 10**9 + n] for n in range(12)]
  path = write_log(tmp_path / 'a', kind, rows, ['u', 'i', 't'])
  lines = path.read_bytes().removesuffix(b'\n').split(b'\n')
  is_json = kind == 'json'
  mangled = data.draw(st.sets(st.integers(0 if is_json else 1, 11), max_size=4))
  for place in mangled:
    begin = data.draw(st.integers(0, len(lines[place])))
    end = data.draw(st.integers(begin, len(lines[place])))
    junk = data.draw(st.binary(max_size=3)).replace(b'\n', b'')
    junk += data.draw(st.sampled_from([b'', b'"', b',"', b'\t', b'\r', b' ']))
    lines[place] = lines[place][:begin] + junk + lines[place][end:]
  # The first line tells the format.
  assume(lines[0].startswith(b'{') == is_json)
  found = []
  for pack in (False, True):
    write(path, b'\n'.join(lines), pack)
    log, rejected = read_log(path, COLUMNS, ReadOptions(max_rejected=1.0))
    check_counts(log, rejected)
    found.append((as_rows(log), rejected.rows()))
    # A line that is as it was is never lost, whatever stands beside it.
    kept = {
      tuple(row) for n, row in enumerate(rows, not is_json) if n not in mangled
    }
    assert kept <= set(as_rows(log))
    num_lines = len(lines) - (not is_json)
    # What ends as a blank last line is none.
    num_lines -= lines[-1] == b''
    assert log.counts['lines'] + log.counts['blank'] == num_lines
  assert found[0] == found[1]


@fast
@given(st.permutations(range(8)), st.sampled_from(['csv', 'tsv', 'json']))
def test_order_of_lines_does_not_matter_where_times_differ(
  tmp_path, order, kind
):
  rows = [[f'u{n % 3}', f'i{n % 4}', n, f'd{n % 2}'] for n in range(8)]
  columns = COLUMNS | {'device': 'd'}
  logs = []
  for name, places in (('a', range(8)), ('b', order)):
    shuffled = [rows[n] for n in places]
    path = write_log(tmp_path / name, kind, shuffled, [*'uitd'])
    logs.append(read(path, columns)[0])
  assert as_rows(logs[0]) == as_rows(logs[1])
  for log in logs:
    values, codes = log.context['device'].values, log.context['device'].codes
    assert values.gather(codes).to_list() == [
      f'd{t % 2}' for t in log.timestamp.tolist()
    ]


# Parquet.

FRAME = pl.DataFrame(ROWS, schema=HEADER, orient='row').with_columns(
  pl.col('dev', 'where').replace('', None)
)


def test_one_parquet_file(tmp_path):
  path = tmp_path / 'no extension'
  FRAME.write_parquet(path)
  log, _ = read(path, FULL)
  check_full(log)
  [source] = log.sources
  assert source['format'] == 'parquet'
  assert source['bytes'] == path.stat().st_size


def write_parts(folder):
  """FRAME in three files, with what engines leave beside them."""
  for name, rows in [('b', FRAME[3:]), ('a', FRAME[:2]), ('aa', FRAME[2:3])]:
    rows.write_parquet(folder / f'{name}.parquet')
  write(folder / '_SUCCESS', '')
  write(folder / '.a.parquet.crc', 'junk')
  write(folder / '_metadata.parquet', 'junk')
  for hidden in ('_temporary', '.ipynb_checkpoints', '_delta_log'):
    (folder / hidden).mkdir()
    FRAME.write_parquet(folder / hidden / 'a.parquet')


@pytest.mark.parametrize('pattern', ['', '*.parquet', '*', '[ab]*', '**'])
def test_parquet_folder_and_glob(tmp_path, pattern):
  folder = tmp_path / 'log'
  folder.mkdir()
  write_parts(folder)
  log, _ = read(str(folder / pattern), FULL)
  check_full(log)
  assert [source['name'] for source in log.sources] == [
    'a.parquet',
    'aa.parquet',
    'b.parquet',
  ]
  assert [source['lines'] for source in log.sources] == [2, 1, 2]
  assert len({source['sha256'] for source in log.sources}) == 3


@pytest.mark.parametrize('pattern', ['log', 'log/where=*', 'lo*/*/*.parquet'])
def test_hive_partitions(tmp_path, pattern):
  # A folder above the log is none of its columns.
  folder = tmp_path / 'u=nobody'
  for (place,), rows in FRAME.partition_by('where', as_dict=True).items():
    name = {None: '__HIVE_DEFAULT_PARTITION__'}.get(place, place)
    part = folder / 'log' / f'where={name.replace(" ", "%20")}'
    part.mkdir(parents=True)
    # One part has a column more.
    extra = [pl.lit(1).alias('extra')] if place == 'Oslo' else []
    rows.drop('where').with_columns(extra).write_parquet(part / '0.parquet')
  log, _ = read(str(folder / pattern), FULL)
  assert set(as_rows(log)) == {
    ('u', 'C', 20),
    ('v', 'A', 10),
    ('v', 'B', 30),
    ('v', 'A', 30),
  }
  place = log.context['place']
  assert place.values.to_list() == ['Oslo', 'Rome, Italy']
  # (v, A, 10) stands in Rome and in Oslo; folders are read in their order.
  assert [place.codes[as_rows(log).index(row)] for row in [
    ('u', 'C', 20), ('v', 'B', 30), ('v', 'A', 30), ('v', 'A', 10),
  ]] == [0, -1, 0, 0]  # fmt: skip


@pytest.mark.parametrize(
  ('times', 'seconds', 'note'),
  [
    (pl.Series([5, -7], dtype=pl.Int32), [5, -7], None),
    (pl.Series([5, 7], dtype=pl.UInt64), [5, 7], None),
    (pl.Series([5.9, -0.5]), [5, -1], None),
    (pl.Series([1525219200999, 1525219201000]), [1525219200, 1525219201], 'mi'),
    (pl.Series(['1970-01-02', '7']), [86_400, 7], None),
    (pl.Series([datetime.date(1970, 1, 2), datetime.date(1969, 12, 31)]),
     [86_400, -86_400], None),
    *[
      (pl.Series([datetime.datetime(1970, 1, 1, 0, 0, 7, 900_000),
                  datetime.datetime(1969, 12, 31, 23, 59, 59, 500_000)],
                 dtype=pl.Datetime(unit)), [7, -1], None)
      for unit in ('ms', 'us', 'ns')
    ],
    (pl.Series(['1970-01-01T01:00:00', '1970-07-01T02:00:00']).str.to_datetime()
     .dt.replace_time_zone('Europe/Rome'), [0, 181 * 86_400], None),
  ],
)  # fmt: skip
def test_parquet_times(tmp_path, times, seconds, note):
  path = tmp_path / 'a'
  frame = pl.DataFrame({'u': ['a', 'b'], 'i': [1, 2], 't': times})
  frame.write_parquet(path)
  log, _ = read(path)
  assert log.timestamp.tolist() == seconds
  assert bool(log.notes) == (note is not None)
  assert log.items.to_list() == ['1', '2']


@pytest.mark.parametrize(
  'ids',
  [
    pl.Series([10, 9, 10], dtype=pl.UInt8),
    pl.Series(['10', '9', '10']),
    pl.Series(['10', '9', '10'], dtype=pl.Categorical),
    pl.Series(['10', '9', '10'], dtype=pl.Enum(['9', '10'])),
  ],
)
def test_parquet_ids(tmp_path, ids):
  path = tmp_path / 'a'
  pl.DataFrame({'u': ids, 'i': ids, 't': [3, 2, 1]}).write_parquet(path)
  log, _ = read(path)
  assert as_rows(log) == [('10', '10', 1), ('10', '10', 3), ('9', '9', 2)]


@pytest.mark.parametrize(
  'ids',
  [
    [3, -2, 3, None, 0],
    [10**6, -(10**6), 10**6, None, 9],
    [2**63 - 1, -(2**63), 2**63 - 1, None, 0],
    pl.Series([2**64 - 1, 0, 2**64 - 1, None, 7], dtype=pl.UInt64),
    pl.Series([2**100, -5, 2**100, None, 7], dtype=pl.Int128),
    pl.Series([100, -128, 100, None, 127], dtype=pl.Int8),
    ['x' * 40, 'é', 'x' * 40, None, 'y'],
    pl.Series(['b', 'a', 'b', None, 'c'], dtype=pl.Categorical),
    [True, False, True, None, True],
  ],
)
def test_parquet_ids_of_any_range(tmp_path, ids):
  path = tmp_path / 'a'
  ids = pl.Series(ids)
  # Other strings come first, and one that is no id.
  frame = pl.DataFrame(
    {'u': ['v', 'u', '\0', ' ', 'v'], 'i': ids, 't': range(5), 'c': ids}
  )
  frame.write_parquet(path)
  log, rejected = read(path, COLUMNS | {'device': 'c'}, LENIENT)
  texts = ids.cast(pl.String).to_list()
  assert as_rows(log) == [
    ('u', texts[1], 1),
    ('v', texts[0], 0),
    ('v', texts[4], 4),
  ]
  device = log.context['device']
  assert device.values.gather(device.codes).to_list() == (
    [texts[1], texts[0], texts[4]]
  )
  assert [row for row, _ in rejected] == [3, 4]


def test_bad_parquet_values_are_rejected_with_file_and_row(tmp_path):
  frame = pl.DataFrame(
    {
      'u': ['a', None, 'b', 'c', 'd', 'e', 'f', 'g', '', ' ', 'h\0', 'i', 'j'],
      'i': [1, 2, None] + [3] * 10,
      't': [1, 2, 3, None, 5, 6, 7, 8, 9, 10, 11, 2**60, -(2**60)],
      'stars': [1.0] * 4 + [math.nan, math.inf, None, 1e38] + [1.0] * 5,
      'click': [0, 1] * 6 + [0],
      'rank': [0] * 13,
    }
  )
  columns = COLUMNS | {'rating': 'stars', 'label': 'click', 'position': 'rank'}
  folder = tmp_path / 'log'
  folder.mkdir()
  frame[:5].write_parquet(folder / 'a.parquet')
  frame[5:].write_parquet(folder / 'b.parquet')
  log, rejected = read_log(folder, columns, LENIENT)
  check_counts(log, rejected)
  assert as_rows(log) == [('a', '1', 1)]
  user, item, rating = (
    'the user is missing',
    'the item is missing',
    'the rating is missing or not a valid number',
  )
  time = 'the timestamp is missing or out of range'
  assert rejected.drop('text').rows() == [
    ('a.parquet', 2, user),
    ('a.parquet', 3, item),
    ('a.parquet', 4, time),
    ('a.parquet', 5, rating),
    ('b.parquet', 1, rating),
    ('b.parquet', 2, rating),
    ('b.parquet', 3, rating),
    ('b.parquet', 4, user),
    ('b.parquet', 5, user),
    ('b.parquet', 6, user),
    ('b.parquet', 7, time),
    ('b.parquet', 8, time),
  ]
  message = refusal(folder, columns)
  assert '12 of 13 lines were rejected' in message


@pytest.mark.parametrize(
  ('name', 'values'),
  [('click', [0, 1, 2, None]), ('rank', [0, 1.0, 1.5, -1, 2.0**31, None])],
)
def test_bad_parquet_labels_and_positions(tmp_path, name, values):
  path = tmp_path / 'a'
  num = len(values)
  frame = pl.DataFrame(
    {'u': ['x'] * num, 'i': ['y'] * num, 't': range(num), name: values},
    strict=False,
  )
  frame.write_parquet(path)
  ours = {'click': 'label', 'rank': 'position'}[name]
  log, rejected = read(path, COLUMNS | {ours: name}, LENIENT)
  assert getattr(log, ours).tolist() == [0, 1]
  assert [row for row, _ in rejected] == list(range(3, num + 1))


def test_seconds_among_milliseconds(tmp_path):
  times = [1_500_000_000_000 + n for n in range(9)]
  times[4] = 1_500_000_000
  rows = [['u', f'i{n}', time] for n, time in enumerate(times)]
  text = write_log(tmp_path / 'text', 'csv', rows, [*'uit'])
  table = tmp_path / 'table'
  pl.DataFrame(rows, schema=[*'uit'], orient='row').write_parquet(table)
  reason = 'the time is not in milliseconds as most of the file is'
  for path, line in ((text, 6), (table, 5)):
    log, rejected = read(path, options=LENIENT)
    assert rejected == [(line, reason)]
    assert set(log.timestamp.tolist()) == {1_500_000_000}
  # Rows without a time say nothing of the unit.
  rows = [['u', 'i', None]] * 9 + [['u', 'i', 1_500_000_000_000]]
  pl.DataFrame(rows, schema=[*'uit'], orient='row').write_parquet(table)
  log, _ = read(table, options=LENIENT)
  assert log.timestamp.tolist() == [1_500_000_000]


def test_bad_parquet_files(tmp_path):
  path = tmp_path / 'log.parquet'
  FRAME.select('u', 'i', 't').write_parquet(path)
  whole = path.read_bytes()
  for content in (whole[:4], whole[:60], whole[:-9], whole[:-1]):
    write(path, content)
    assert f'{path} cannot be read as Parquet: ' in refusal(path)
  damaged = bytearray(whole)
  damaged[4:60] = bytes(byte ^ 255 for byte in damaged[4:60])
  write(path, damaged)
  assert f'{path} cannot be read as Parquet: ' in refusal(path)
  FRAME[:0].write_parquet(path)
  assert refusal(path) == f'{path} holds no line of data, so none for u, i, t'
  FRAME.drop('u').write_parquet(path)
  assert refusal(path).startswith(
    f"{path} has no column 'u' for user; it has junk, t, i, "
  )


def test_what_ends_the_process_that_decodes_is_one_sentence(
  tmp_path, monkeypatch
):
  path = tmp_path / 'log.parquet'
  FRAME.write_parquet(path)
  assert read(path)[0].counts['events'] == 4
  # As Polars does where damage asks for more memory than there is.
  parquet_process._child()._process.kill()
  assert refusal(path) == (
    f'{path} cannot be read as Parquet: it is damaged, and ended its reader '
    'with SIGKILL; copy or write it again, or leave it out'
  )
  # The next one is read again, from wherever we stand by then.
  assert read(path)[0].counts['events'] == 4
  monkeypatch.chdir(tmp_path)
  assert read('log.parquet')[0].counts['events'] == 4


def test_a_panic_of_polars_is_one_sentence(tmp_path, capfd):
  path = tmp_path / 'log.parquet'
  FRAME.write_parquet(path, compression='uncompressed')
  whole = path.read_bytes()
  length = int.from_bytes(whole[-8:-4], 'little')
  # One byte after the other of what says where the data is.
  reasons = set()
  for place in range(len(whole) - 8 - length, len(whole) - 8, 3):
    write(path, whole[:place] + b'\x7f' + whole[place + 1 :])
    try:
      read(path, options=LENIENT)
    except InputError as error:
      reasons.add(str(error))
  assert len(reasons) > 10
  assert all('\n' not in text and str(path) in text for text in reasons)
  assert 'panicked' not in capfd.readouterr().err


def test_parquet_that_says_it_has_more_rows_than_its_bytes_hold(tmp_path):
  path = tmp_path / 'log.parquet'
  rows = pl.DataFrame({'u': ['a'], 'i': ['b'], 't': [7]})
  pl.concat([rows] * 400_000).write_parquet(path)
  message = refusal(path)
  assert message.startswith(f'{path} says that its ')
  assert 'bytes hold 400,000 rows; no log packs so many' in message
  log, _ = read(path, options=ReadOptions(max_inflation=1e6))
  assert log.counts['duplicates'] == 399_999


def test_bad_parquet_folders(tmp_path):
  assert refusal(tmp_path) == (
    f'{tmp_path} holds no Parquet file, *.parquet: name a folder of those, or '
    'one file'
  )
  assert 'holds no Parquet file' in refusal(str(tmp_path / '*.parquet'))
  write(tmp_path / 'a.csv', 'u,i,t\n')
  assert 'no Parquet file, *.parquet; it holds a.csv:' in refusal(tmp_path)
  assert 'a.csv, which ' in refusal(str(tmp_path / '*'))
  # One bad part is named.
  FRAME.write_parquet(tmp_path / 'a.parquet')
  write(tmp_path / 'b.parquet', 'PAR1')
  assert f'{tmp_path / "b.parquet"} cannot be read as' in refusal(tmp_path)
  write(tmp_path / 'b.parquet', '')
  assert f'{tmp_path / "b.parquet"} cannot be read as' in refusal(tmp_path)
  FRAME.drop('t').write_parquet(tmp_path / 'b.parquet')
  assert f"{tmp_path / 'b.parquet'} has no column 't'" in refusal(tmp_path)
  FRAME.with_columns(t=pl.lit([1])).write_parquet(tmp_path / 'b.parquet')
  message = refusal(tmp_path)
  assert (
    f'{tmp_path}: its files differ in the types of their columns' in message
  )


@pytest.mark.parametrize(
  ('name', 'column', 'sentence'),
  [
    ('user', 'stars', "the column 'stars' is of type Float64; ids and"),
    ('item', 'tags', "the column 'tags' is of type List(String); ids and"),
    ('device', 'day', "the column 'day' is of type Date; ids and categories"),
    (
      'rating',
      'u',
      "the column 'u' for rating is of type String, not a number",
    ),
    (
      'label',
      'tags',
      "the column 'tags' for label is of type List(String), not",
    ),
    ('timestamp', 'tags', "the column 'tags' for timestamp is of type List"),
    ('timestamp', 'yes', "the column 'yes' for timestamp is of type Boolean"),
  ],
)
def test_parquet_columns_of_the_wrong_type(tmp_path, name, column, sentence):
  path = tmp_path / 'a'
  FRAME.with_columns(
    tags=pl.lit(['x']), day=pl.lit(datetime.date(2020, 1, 1)), yes=pl.lit(True)
  ).write_parquet(path)
  message = refusal(path, COLUMNS | {name: column})
  assert sentence in message
  assert str(path) in message


def test_names_with_glob_characters_are_files_first(tmp_path):
  FRAME.write_parquet(tmp_path / 'log[1].parquet')
  assert read(str(tmp_path / 'log[1].parquet'))[0].counts['events'] == 4
  write_log(tmp_path / 'log[1].csv', 'csv')
  assert read(str(tmp_path / 'log[1].csv'))[0].counts['events'] == 4


# Bad files.


@pytest.mark.parametrize(
  ('content', 'sentence'),
  [
    ('', 'is empty'),
    ('\n \n', 'is empty: it holds no line'),
    (gzip.compress(b'', mtime=0), 'is empty'),
    ('<!doctype html><html>', 'is an HTML or XML page'),
    (bytes(range(256)) * 9, 'holds binary data'),
    ('[{"u": 1, "i": 2, "t": 3}]', 'line 1: a JSON array'),
    ('u,i,t\n', 'holds no line of data'),
    ('u,i,time\na,b,1', "has no column 't' for timestamp; it has u, i, time: "),
    (
      'u;i;t\na;b;1',
      "has no column 'u' for user; it has u;i;t: mend --columns",
    ),
    ('{"u": 1, "i": 2}', "has no column 't' for timestamp; it has u, i: mend"),
    ('u,i,i,t\na,b,b,1', "has two columns of the name 'i'"),
    ('u,i,t\na,b,x\n', 'in line 2: the timestamp'),
    ('"u,i,t\n', 'has no column'),
    ('{\n', 'in line 1: '),
  ],
)
def test_files_that_are_no_log(tmp_path, content, sentence):
  path = write(tmp_path / 'some file', content)
  message = refusal(path)
  assert sentence in message
  assert str(path) in message


# What a source names has a value somewhere: a wrong column or a broken export
# is told, where all rows would be rejected or a feature left out.


def write_as(path, kind, rows, header):
  """The rows as text or Parquet, None where there is no value."""
  if kind == 'parquet':
    frame = pl.DataFrame(rows, schema=header, orient='row', strict=False)
    frame.write_parquet(path)
    return path
  if kind != 'json':
    rows = [['' if value is None else value for value in row] for row in rows]
  return write_log(path, kind, rows, header)


@pytest.mark.parametrize('name', FULL)
@pytest.mark.parametrize('kind', ['csv', 'tsv', 'json', 'parquet'])
@pytest.mark.parametrize('options', [STRICT, ReadOptions(max_rejected=1.0)])
def test_a_column_without_any_value_is_named(tmp_path, kind, name, options):
  place = HEADER.index(FULL[name])
  rows = [[*row[:place], None, *row[place + 1 :]] for row in ROWS]
  path = write_as(tmp_path / 'a', kind, rows, HEADER)
  assert refusal(path, FULL, options) == (
    f'{path}: the column {FULL[name]!r} for {name} holds no value in any row: '
    'name another one, or leave it out'
  )


@pytest.mark.parametrize('kind', ['csv', 'tsv', 'parquet'])
def test_a_table_without_rows_is_named_with_its_columns(tmp_path, kind):
  path = write_as(tmp_path / 'a', kind, [], HEADER)
  assert refusal(path, COLUMNS) == (
    f'{path} holds no line of data, so none for u, i, t'
  )
  events = write_log(tmp_path / 'events', 'csv')
  path = write_as(tmp_path / 'i', kind, [], ['id', 'b'])
  message = refusal(events, items=path, item_key='id', item_attributes=['b'])
  assert message == f'{path} holds no line of data, so none for id, b'


@pytest.mark.parametrize('kind', ['csv', 'json', 'parquet'])
def test_an_attribute_without_any_value_is_named(tmp_path, kind):
  events = write_log(tmp_path / 'events', 'csv')
  settings = {'item_key': 'id', 'item_attributes': ['b', 'c']}
  # Items of no event do not count: c of Z is never used.
  rows = [['A', 'x', None], ['B', None, None], ['Z', 'x', 'y']]
  path = write_as(tmp_path / 'i', kind, rows, ['id', 'b', 'c'])
  assert refusal(events, items=path, **settings) == (
    f"{path}, of the 2 items that the events have: the column 'c' for c holds "
    'no value in any row: name another one, or leave it out'
  )
  rows = [[None, 'x', 'y']] * 3
  path = write_as(tmp_path / 'i', kind, rows, ['id', 'b', 'c'])
  assert refusal(events, items=path, **settings) == (
    f"{path}: the column 'id' for --item_key holds no value in any row: name "
    'another one, or leave it out'
  )


def test_empty_lists_are_no_value(tmp_path):
  events = write_log(tmp_path / 'events', 'csv')
  path = write(tmp_path / 'i', '{"id": "A", "b": []}\n{"id": "B", "b": null}')
  message = refusal(events, items=path, item_key='id', item_attributes=['b'])
  assert "the column 'b' for b holds no value" in message


def test_paths_that_are_no_log(tmp_path):
  path = tmp_path / 'missing.csv'
  assert refusal(path) == f'{path} does not exist'
  with pytest.raises(InputError, match='--columns must name item, timestamp'):
    read_log(path, {'user': 'u'}, STRICT)


def test_column_that_only_some_lines_have(tmp_path):
  lines = [
    '{"u": "a", "i": "b", "t": 1}',
    '{"u": "a", "i": "b", "t": 2, "d": "x"}',
  ]
  path = write(tmp_path / 'a', '\n'.join(lines))
  log, _ = read(path, COLUMNS | {'device': 'd'})
  assert log.context['device'].codes.tolist() == [-1, 0]
  assert "has no column 'e' for device; it has u, i, t, d" in refusal(
    path, COLUMNS | {'device': 'e'}
  )


@pytest.mark.parametrize('kind', ['csv', 'tsv', 'json'])
def test_truncated_gzip(tmp_path, kind):
  rows = [[f'u{n * 7919 % 1009}', f'i{n}', n] for n in range(600)]
  path = write_log(tmp_path / 'a', kind, rows, [*'uit'], pack=True)
  data = path.read_bytes()
  write(path, data[: len(data) // 2])
  message = refusal(path)
  log, _ = read(path, options=ReadOptions(allow_truncated=True))
  num = log.counts['events']
  assert 0 < num < 600
  assert f'ends within line {num + 1 + (kind != "json")};' in message
  assert sorted(log.timestamp.tolist()) == list(range(num))
  assert log.notes == (
    f'a: a truncated gzip file; its {num} complete lines were kept.',
  )
  damaged = bytearray(data)
  damaged[-5] ^= 1
  assert 'is a damaged gzip file' in refusal(write(path, damaged))


# Items.

ITEM_ROWS = [
  {'id': 'C', 'brand': 'X', 'price': 1.5, 'size': 7, 'tags': ['a', 3],
   'new': True},
  {'id': 'A', 'brand': None, 'price': None, 'size': None, 'tags': None},
  {'id': 'A', 'brand': 'of a second line', 'tags': ['z']},
  {'id': 'Z', 'brand': 'of no event', 'price': 9.0},
]  # fmt: skip
ATTRIBUTES = ['brand', 'price', 'size', 'tags', 'new']


def read_items(tmp_path, path, key='id', attributes=ATTRIBUTES, options=STRICT):
  events = write_log(tmp_path / 'events', 'csv')
  return read(
    events, COLUMNS, options, items=path, item_key=key,
    item_attributes=attributes,
  )  # fmt: skip


@pytest.mark.parametrize('pack', [False, True])
def test_items_as_json_lines(tmp_path, pack):
  content = '\n'.join(map(json.dumps, ITEM_ROWS))
  log, _ = read_items(tmp_path, write(tmp_path / 'i', content, pack))
  assert log.items.to_list() == ['A', 'B', 'C']
  assert log.item_attributes.rows() == [
    (None, None, None, None, None),
    (None, None, None, None, None),
    ('X', 1.5, '7', ['a', '3'], 'True'),
  ]
  assert log.item_attributes.schema == {
    'brand': pl.String,
    'price': pl.Float64,
    'size': pl.String,
    'tags': pl.List(pl.String),
    'new': pl.String,
  }
  names = ('item_lines', 'item_lines_rejected', 'item_lines_repeated')
  assert [log.counts[name] for name in names] == [4, 0, 1]
  assert log.counts['items_with_attributes'] == 2
  assert log.sources[1]['format'] == 'items-json-lines'


@pytest.mark.parametrize('kind', ['csv', 'tsv'])
def test_items_as_text(tmp_path, kind):
  rows = [
    ['C', 'X', '1.5', '7'],
    ['A', '', '', ''],
    ['A', 'second', '2', '8'],
    ['B', 'nan', 'inf', '9'],
  ]
  path = write_log(tmp_path / 'i', kind, rows, ['id', 'brand', 'price', 'size'])
  log, _ = read_items(tmp_path, path, attributes=['brand', 'price', 'size'])
  assert log.item_attributes.rows() == [
    (None, None, None),
    ('nan', None, '9'),
    ('X', 1.5, '7'),
  ]
  assert [str(t) for t in log.item_attributes.dtypes] == [
    'String',
    'Float64',
    'String',
  ]
  assert log.sources[1]['format'] == f'items-{kind}'


def test_items_as_parquet(tmp_path):
  frame = pl.DataFrame(
    {
      'id': ['C', 'A', 'A', 'Z', None],
      'price': pl.Series([1.5, math.nan, 3.0, 4.0, 5.0], dtype=pl.Float32),
      'size': [7, None, 8, 9, 9],
      'tags': [[1, 2], [], [3], None, None],
    }
  )
  folder = tmp_path / 'items'
  folder.mkdir()
  frame[:2].write_parquet(folder / 'a.parquet')
  frame[2:].write_parquet(folder / 'b.parquet')
  for path in (folder, folder / '*.parquet'):
    log, rejected = read_items(
      tmp_path, path, attributes=['price', 'size', 'tags'], options=LENIENT
    )
    assert log.item_attributes.rows() == [
      (None, None, []),
      (None, None, None),
      (1.5, '7', ['1', '2']),
    ]
    assert rejected == [(3, 'the id is missing')]
    assert [source['name'] for source in log.sources[1:]] == [
      'a.parquet',
      'b.parquet',
    ]
    assert log.counts['item_lines_rejected'] == 1


def test_items_by_integer_keys(tmp_path):
  events = write(tmp_path / 'e', 'u,i,t\na,7,1\n')
  for name, content in [('j', '{"k": 7, "b": "x"}'), ('c', 'k,b\n7,x\n')]:
    path = write(tmp_path / name, content)
    log, _ = read(events, items=path, item_key='k', item_attributes=['b', 'k'])
    assert log.item_attributes.rows() == [('x', '7')]
  pl.DataFrame({'k': [7], 'b': ['x']}).write_parquet(tmp_path / 'p')
  log, _ = read(
    events, items=tmp_path / 'p', item_key='k', item_attributes=['b', 'k']
  )
  assert log.item_attributes.rows() == [('x', '7')]


def test_an_attribute_of_the_name_item(tmp_path):
  path = write(tmp_path / 'i', '{"id": "A", "item": "thing"}')
  log, _ = read_items(tmp_path, path, attributes=['item'])
  assert log.item_attributes.rows() == [('thing',), (None,), (None,)]


def test_numbers_beyond_float64_are_no_price(tmp_path):
  content = f'{{"id": "A", "p": {10**400}}}\n{{"id": "B", "p": 1.5}}'
  path = write(tmp_path / 'i', content)
  log, _ = read_items(tmp_path, path, attributes=['p'])
  assert log.item_attributes['p'].to_list() == [None, 1.5, None]


def test_bad_items(tmp_path):
  missing = tmp_path / 'missing'
  path = tmp_path / 'i'
  refuse = lambda content, **settings: refusal(
    write_log(tmp_path / 'events', 'csv'),
    items=write(path, content),
    **({'item_key': 'id', 'item_attributes': ['b']} | settings),
  )
  for content, sentence in [
    ('', 'is empty'),
    ('<html>', 'is an HTML or XML page'),
    ('id,c\nA,1\n', "has no column 'b' for b; it has id, c: mend --items"),
    ('{"b": 1}', "has no column 'id' for --item_key; it has b: mend --items"),
    ('id,b,b\nA,1,1\n', "has two columns of the name 'b'"),
    (
      'id,b\nQ,1\n',
      "not one of the 3 items of the events is in its column 'id'",
    ),
    ('id,b\nA,1\n,2\n', 'the first in line 3: the id is empty'),
    ('id,b\nA,1\nB\n', 'the first in line 3: 1 fields, the header has 2'),
    ('{"id": "A", "b": 1}\n{"id": 1.5}', 'in line 2: the id is 1.5, neither'),
    (gzip.compress(b'id,b\nA,1\n', mtime=0)[:-9], 'is a truncated gzip file'),
  ]:
    message = refuse(content)
    assert sentence in message
    assert str(path) in message
  events = write_log(tmp_path / 'events', 'csv')
  message = refusal(events, items=missing, item_key='id', item_attributes=['b'])
  assert message == f'{missing} does not exist'


# Real files.


def real(*names):
  paths = [REAL / name for name in names]
  if not all(path.exists() for path in paths):
    pytest.skip(f'{names[0]} is not in shared/data')
  return paths


@pytest.mark.real_data
def test_real_beauty():
  events, items = real(
    'amazon_2014_beauty/events.tsv.gz', 'amazon_2014_beauty/items.jsonl.gz'
  )
  log, _ = read(
    events,
    {'user': 'user_id', 'item': 'item_id', 'timestamp': 'time'},
    items=items,
    item_key='item_id',
    item_attributes=['attributes'],
  )
  names = ('events', 'users', 'items', 'duplicates', 'rejected')
  assert [log.counts[name] for name in names] == [198_502, 22_363, 12_101, 0, 0]
  assert log.counts['items_with_attributes'] == 12_101
  attributes = log.item_attributes['attributes']
  assert attributes.dtype == pl.List(pl.String)
  assert attributes.explode().n_unique() == 637
  lengths = attributes.list.len()
  assert (lengths.min(), lengths.max()) == (1, 6)
  days = log.timestamp.min(), log.timestamp.max()
  assert [
    str(datetime.datetime.fromtimestamp(int(day), datetime.UTC).date())
    for day in days
  ] == ['2002-06-12', '2014-07-23']
  # 39 % of the events share their day with an earlier one of their user.
  same = np.diff(log.timestamp) + np.diff(log.user) == 0
  same &= np.diff(log.user) == 0
  assert round(float(same.sum()) / len(log.user), 2) == 0.39


@pytest.mark.real_data
def test_real_ranked_clicks():
  [path] = real('ranked_clicks/events.tsv.gz')
  columns = {
    'user': 'session', 'item': 'document', 'timestamp': 'list',
    'request': 'list', 'position': 'position', 'label': 'click',
  }  # fmt: skip
  log, _ = read(path, columns)
  names = ('lines', 'events', 'duplicates', 'rejected')
  assert [log.counts[name] for name in names] == [28_720, 28_720, 0, 0]
  assert int(log.request.max()) + 1 == 2_872
  assert np.all(np.bincount(log.request) == 10)
  assert int(log.label.sum()) == 1_293
  assert (log.position.min(), log.position.max()) == (1, 10)
  shown = np.stack([log.request, log.item], 1)
  _, times = np.unique(shown, axis=0, return_counts=True)
  lists = {int(r) for r in np.unique(shown, axis=0)[times > 1, 0]}
  assert len(lists) == 79
