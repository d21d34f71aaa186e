"""Files of candidates: every format gives the same rows, or a sentence."""

import gzip
import json

import numpy as np
import polars as pl
import pytest

from eain_jax.data.lines import ReadOptions
from eain_jax.errors import InputError
from eain_jax.serving.candidates import CandidateFile, as_series

COLUMNS = {'user': 'who', 'item': 'what', 'timestamp': 'when', 'device': 'on'}
RECORDS = [
  {'who': 'u1', 'what': 'a', 'when': 10, 'on': 'phone', 'key': 7},
  {'who': 'u2', 'what': 'b,"c', 'when': 20, 'on': None, 'key': 8},
  {'who': 'u1', 'what': 'a', 'when': 30, 'on': 'tv', 'key': 9},
]


def write(folder, kind, records=RECORDS):
  """The records in a file of a format."""
  table = pl.DataFrame(records, strict=False, infer_schema_length=None)
  file = folder / f'candidates.{kind}'
  if kind == 'parquet':
    table.write_parquet(file)
  elif kind == 'folder':
    file.mkdir()
    for number, row in enumerate(table.iter_slices(1)):
      row.write_parquet(file / f'{number}.parquet')
  elif kind in ('csv', 'tsv'):
    table.write_csv(file, separator=',' if kind == 'csv' else '\t')
  else:
    text = ''.join(json.dumps(record) + '\n' for record in records).encode()
    file.write_bytes(gzip.compress(text) if kind == 'gz' else text)
  return file


def read(path, size=2, columns=COLUMNS, keep=('who', 'key'), **settings):
  options = {k: settings.pop(k) for k in list(settings) if k != 'time'}
  file = CandidateFile(path, columns, keep, ReadOptions(**options), **settings)
  return file, list(file.blocks(size))


@pytest.mark.parametrize(
  'kind', ['csv', 'tsv', 'jsonl', 'gz', 'parquet', 'folder']
)
def test_every_format_gives_the_same_rows(tmp_path, kind):
  file, blocks = read(write(tmp_path, kind))
  assert [len(block) for block in blocks] == [2, 1]
  joined = lambda of: [value for block in blocks for value in of(block)]
  assert joined(lambda b: b.user) == ['u1', 'u2', 'u1']
  assert joined(lambda b: b.item) == ['a', 'b,"c', 'a']
  assert joined(lambda b: b.timestamp) == [10, 20, 30]
  assert joined(lambda b: b.context['device']) == ['phone', None, 'tv']
  assert joined(lambda b: b.kept['who']) == ['u1', 'u2', 'u1']
  # What passes through stays as it was.
  expected = ['7', '8', '9'] if kind in ('csv', 'tsv') else [7, 8, 9]
  assert joined(lambda b: b.kept['key']) == expected
  assert sum(source['lines'] for source in file.sources()) == 3
  assert len(file.rejected()) == 0


def test_what_is_plain_is_read_as_what_is_not(tmp_path, monkeypatch):
  """A chunk with one odd row is read row by row, to the same values."""
  rng = np.random.default_rng(0)
  device = lambda i: [None, '', 'phone', 'tv'][i]
  records = [
    {
      'who': f'u{rng.integers(9)}',
      'what': int(rng.integers(9)),
      'when': f'{rng.integers(1, 99)}000000000000'[: int(rng.integers(8, 16))],
      'on': device(rng.integers(4)),
      'key': i,
    }
    for i in range(100)
  ]
  _, plain = read(write(tmp_path, 'jsonl', records), 30)
  monkeypatch.setattr(CandidateFile, '_add_plain', lambda *_: False)
  _, slow = read(write(tmp_path, 'jsonl', records), 30)
  assert plain == slow
  assert [len(rows) for rows in plain] == [30, 30, 30, 10]
  assert plain[0].item[0] == str(records[0]['what'])


def test_true_is_no_1_though_they_are_equal(tmp_path):
  records = [{**RECORDS[0], 'what': 1}, {**RECORDS[0], 'what': True}]
  with pytest.raises(InputError, match=r'line 2: the item is True, neither'):
    read(write(tmp_path, 'jsonl', records))


@pytest.mark.parametrize('kind', ['jsonl', 'parquet'])
def test_lists_are_histories_the_oldest_first(tmp_path, kind):
  records = [
    {'who': 'u', 'what': 'a', 'when': 99, 'h': ['x', 'y'], 't': [5, 3]},
    {'who': 'u', 'what': 'a', 'when': 99, 'h': [], 't': []},
  ]
  columns = {
    **{k: v for k, v in COLUMNS.items() if k != 'device'},
    'history': 'h',
    'history_timestamp': 't',
  }
  _, [rows] = read(write(tmp_path, kind, records), columns=columns, keep=())
  assert rows.history == [['y', 'x'], []]
  assert rows.history_timestamp == [[3, 5], []]


def test_a_history_in_csv_is_parted_by_bars(tmp_path):
  file = tmp_path / 'c.csv'
  file.write_text(
    'user,item,timestamp,h,t\n'
    'u,a,2021-01-01,x|y z,2020-01-02|2020-01-01\n'
    'u,a,99,,\n'
    'u,a,99,x|y,7\n'
    'u,a,99,x|,7|8\n'
  )
  columns = {
    'user': 'user',
    'item': 'item',
    'timestamp': 'timestamp',
    'history': 'h',
    'history_timestamp': 't',
  }
  read_file, [rows] = read(file, 9, columns, (), max_rejected=0.6)
  assert rows.history == [['y z', 'x'], []]
  assert rows.history_timestamp == [[1577836800, 1577923200], []]
  assert read_file.rejected()['line'].to_list() == [4, 5]
  assert read_file.rejected()['reason'].to_list() == [
    'the history has 2 items, and history_timestamp 1',
    'the history is empty',
  ]


def test_times_of_any_unit_are_seconds(tmp_path):
  times = [
    '1400000000',
    '1400000000999',
    '1400000000999999',
    '2014-05-13T16:53:20Z',
  ]
  file = tmp_path / 'c.csv'
  rows = ''.join(f'u,a,{time}\n' for time in times)
  file.write_text(f'user,item,timestamp\n{rows}')
  columns = {name: name for name in ('user', 'item', 'timestamp')}
  _, [rows] = read(file, 9, columns, ())
  assert rows.timestamp == [1_400_000_000] * 4
  table = pl.DataFrame(
    {'user': ['u'], 'item': [5], 'timestamp': ['2014-05-13']}
  )
  table = table.with_columns(pl.col('timestamp').str.to_datetime('%Y-%m-%d'))
  table.write_parquet(tmp_path / 'c.parquet')
  _, [rows] = read(tmp_path / 'c.parquet', 9, columns, ())
  assert (rows.item, rows.timestamp) == (['5'], [1399939200])


def test_one_time_for_all_needs_no_column(tmp_path):
  file = tmp_path / 'c.csv'
  file.write_text('user,item\nu,a\n')
  columns = {name: name for name in ('user', 'item', 'timestamp')}
  _, [rows] = read(file, 9, columns, (), time=12)
  assert rows.timestamp == [12]
  with pytest.raises(InputError, match="no column 'timestamp' for timestamp"):
    read(file, 9, columns, ())


@pytest.mark.parametrize(
  ('line', 'reason'),
  [
    ('u,,5', 'the item is empty'),
    (',a,5', 'the user is empty'),
    ('u,a,', 'the timestamp is missing'),
    ('u,a,soon', "'soon' is neither a number nor an ISO 8601 date"),
    ('u,a', '2 fields, the header has 3'),
    ('u,a,1e99', 'out of range'),
  ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, line, reason):
  file = tmp_path / 'c.csv'
  file.write_text(f'user,item,timestamp\nu,a,1\n{line}\nu,b,2\n')
  columns = {name: name for name in ('user', 'item', 'timestamp')}
  read_file, [rows] = read(file, 9, columns, (), max_rejected=0.5)
  assert rows.item == ['a', 'b']
  [found] = read_file.rejected().rows(named=True)
  assert found['line'] == 3
  assert reason in found['reason']
  with pytest.raises(InputError, match=r'1 of 3 lines were rejected.* line 3'):
    read(file, 9, columns, ())


def test_json_that_passes_to_a_table_becomes_text():
  series = as_series('key', ['a', 1, 1.5, True, None, {'b': [2]}], None)
  assert series.to_list() == ['a', '1', '1.5', 'true', None, '{"b":[2]}']
  assert as_series('key', [1, 2], pl.Int32()).dtype == pl.Int32
  with pytest.raises(InputError, match="column 'key' is not Int32 in all"):
    as_series('key', ['x'], pl.Int32())


def test_what_passes_through_stays_to_the_last_digit(tmp_path):
  times = pl.Series('t', [1_234_567_891, None], pl.Int64)
  table = pl.DataFrame(
    {
      'user': ['u', 'v'],
      'item': ['a', 'b'],
      'timestamp': [1, 2],
      't': times.cast(pl.Datetime('ns')),
      'd': times.cast(pl.Duration('ns')),
      'q': [None, None],
    }
  )
  folder = tmp_path / 'in'
  folder.mkdir()
  table.write_parquet(folder / '0.parquet')
  more = table.with_columns(q=pl.Series([5, 6]))
  more.write_parquet(folder / '1.parquet')
  columns = {name: name for name in ('user', 'item', 'timestamp')}
  file = CandidateFile(folder, columns, ('t', 'd', 'q'), ReadOptions())
  [rows] = file.blocks(9)
  for name in ('t', 'd'):
    found = as_series(name, rows.kept[name], file.kept[name])
    assert found.dtype == table[name].dtype
    assert found.to_list() == [*table[name], *table[name]]
    assert found.to_physical()[0] == 1_234_567_891
  # A file of nulls alone says nothing of the type.
  assert as_series('q', rows.kept['q'], file.kept['q']).to_list() == [
    None,
    None,
    5,
    6,
  ]
  file.check_kept('parquet', ('score',))
  with pytest.raises(InputError, match=r"'d' .* is Duration"):
    file.check_kept('csv', ('score',))
  with pytest.raises(InputError, match=r"'q' .* has a name of the output"):
    file.check_kept('parquet', ('q',))


def test_a_history_ends_before_its_row(tmp_path):
  records = [
    {'user': 'u', 'item': 'a', 'timestamp': 5, 'h': [*'xyz'], 't': [6, 5, 4]}
  ]
  columns = {
    **{name: name for name in ('user', 'item', 'timestamp')},
    'history': 'h',
    'history_timestamp': 't',
  }
  _, [rows] = read(write(tmp_path, 'jsonl', records), columns=columns, keep=())
  assert rows.history == [['z']]
  assert rows.history_timestamp == [[4]]


def test_a_text_that_passes_through_may_have_lines(tmp_path):
  file = tmp_path / 'c.csv'
  file.write_text('user,item,timestamp,title\nu,a,1,"two\nlines"\nv,b,2,one\n')
  columns = {name: name for name in ('user', 'item', 'timestamp')}
  _, [rows] = read(file, 9, columns, ('title',))
  assert rows.kept['title'] == ['two\nlines', 'one']


def test_files_are_told_by_size_and_date(tmp_path):
  path = write(tmp_path, 'folder')
  first, _ = read(path)
  again, _ = read(path)
  assert first.identity() == again.identity()
  pl.DataFrame(RECORDS[:1], strict=False).write_parquet(path / '9.parquet')
  other, _ = read(path, columns={**COLUMNS, 'device': 'on'})
  assert other.identity() != first.identity()
