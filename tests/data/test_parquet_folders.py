"""Folders of Parquet as Spark, BigQuery and Ray Data write them, by hand."""

import datetime
import os

import numpy as np
import polars as pl
import pytest

from eain_jax.data import parquet_log, spool
from eain_jax.data.lines import ReadOptions
from eain_jax.data.log_files import read_log
from eain_jax.errors import InputError

STRICT = ReadOptions()
COLUMNS = {'user': 'u', 'item': 'i', 'timestamp': 't'}


def read(path, columns=COLUMNS, options=STRICT):
  return read_log(str(path), columns, options)


def refusal(path, columns=COLUMNS, options=STRICT):
  with pytest.raises(InputError) as caught:
    read(path, columns, options)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def events(log, *names):
  """user, item, time and context of every event, in canonical order."""
  columns = [
    log.users.gather(log.user).to_list(),
    log.items.gather(log.item).to_list(),
    log.timestamp.tolist(),
  ]
  for name in names:
    values = [*log.context[name].values, None]
    columns.append([values[code] for code in log.context[name].codes])
  return list(zip(*columns, strict=True))


def part(path, codec='snappy', **columns):
  path.parent.mkdir(parents=True, exist_ok=True)
  pl.DataFrame(columns).write_parquet(path, compression=codec)
  return path


def spark_name(number, codec='snappy'):
  return (
    f'part-{number:05}-8f2b1c3a-7d44-4c1e-9a55-0d6f3f1f7a10.c000'
    f'.{codec}.parquet'
  )


def time_of(day, hour):
  return datetime.datetime(2024, 1, day, hour, tzinfo=datetime.UTC)


SECONDS = {day: 1_704_067_200 + 86_400 * (day - 1) for day in (1, 2, 3)}


@pytest.fixture
def spark(tmp_path):
  """Two days in three countries, with all that Spark leaves beside them.

  Eight rows, in the order of the paths:
    day 1, Costa Rica: (ann, p, 8 h), (ann, q, 9 h)
    day 1, DE:         (bob, p, 7 h), then in another file (ann, p, 8 h) again
    day 2, unknown:    (bob, r, 1 h)
    day 2, DE:         an empty file, then (ann, s, 5 h), (cid, q, 5 h),
                       (ann, q, 5 h)
  """
  base = tmp_path / 'clicks'
  columns = lambda rows: {
    'u': [row[0] for row in rows],
    'i': [row[1] for row in rows],
    't': pl.Series([time_of(*row[2:]) for row in rows]).cast(
      pl.Datetime('us', 'UTC')
    ),
  }
  one, two = base / 'dt=2024-01-01', base / 'dt=2024-01-02'
  # Written in another order than the paths'.
  rows = columns([('ann', 's', 2, 5), ('cid', 'q', 2, 5), ('ann', 'q', 2, 5)])
  part(two / 'country=DE' / spark_name(1, 'gz'), 'gzip', **rows)
  empty = {
    name: column[:0] for name, column in pl.DataFrame(rows).to_dict().items()
  }
  part(two / 'country=DE' / spark_name(0), **empty)
  rows = columns([('ann', 'p', 1, 8), ('ann', 'q', 1, 9)])
  part(one / 'country=Costa%20Rica' / spark_name(0, 'zstd'), 'zstd', **rows)
  # Another order of the columns, and one column more.
  rows = columns([('bob', 'r', 2, 1)])
  part(
    two / 'country=__HIVE_DEFAULT_PARTITION__' / spark_name(0),
    **{'t': rows['t'], 'device': ['tv'], 'i': rows['i'], 'u': rows['u']},
  )
  part(one / 'country=DE' / spark_name(0), **columns([('bob', 'p', 1, 7)]))
  part(one / 'country=DE' / spark_name(1), **columns([('ann', 'p', 1, 8)]))
  junk = {'u': ['junk'], 'i': ['junk'], 't': [time_of(3, 0)]}
  for hidden in (
    base / '_temporary' / '0' / 'task_00' / spark_name(0),
    base / '.spark-staging-1' / 'dt=2024-01-01' / spark_name(0),
    one / 'country=DE' / '_temporary' / spark_name(0),
    one / 'country=DE' / f'.{spark_name(0)}',
    base / '_metadata',
    base / '_common_metadata',
  ):
    part(hidden, **junk)
  (base / '_SUCCESS').touch()
  for beside in ('_started_42', '_committed_42', f'.{spark_name(0)}.crc'):
    (one / 'country=DE' / beside).write_bytes(b'junk')
  return base


def test_partitions_of_spark_by_hand(spark):
  columns = COLUMNS | {'country': 'country', 'day': 'dt'}
  log, rejected = read(spark, columns)
  # By user and time; of ann's two rows of day 1, 8 h, Costa Rica is read first.
  assert events(log, 'country', 'day') == [
    ('ann', 'p', SECONDS[1] + 8 * 3600, 'Costa Rica', '2024-01-01'),
    ('ann', 'q', SECONDS[1] + 9 * 3600, 'Costa Rica', '2024-01-01'),
    ('ann', 's', SECONDS[2] + 5 * 3600, 'DE', '2024-01-02'),
    ('ann', 'q', SECONDS[2] + 5 * 3600, 'DE', '2024-01-02'),
    ('bob', 'p', SECONDS[1] + 7 * 3600, 'DE', '2024-01-01'),
    ('bob', 'r', SECONDS[2] + 1 * 3600, None, '2024-01-02'),
    ('cid', 'q', SECONDS[2] + 5 * 3600, 'DE', '2024-01-02'),
  ]
  counts = log.counts
  assert (counts['lines'], counts['events'], counts['duplicates']) == (8, 7, 1)
  assert (counts['rejected'], rejected.height) == (0, 0)
  assert log.context['country'].values.to_list() == ['Costa Rica', 'DE']
  one, two = 'dt=2024-01-01', 'dt=2024-01-02'
  assert [(s['name'], s['lines'], s['format']) for s in log.sources] == [
    (f'{one}/country=Costa%20Rica/{spark_name(0, "zstd")}', 2, 'parquet'),
    (f'{one}/country=DE/{spark_name(0)}', 1, 'parquet'),
    (f'{one}/country=DE/{spark_name(1)}', 1, 'parquet'),
    (f'{two}/country=DE/{spark_name(0)}', 0, 'parquet'),
    (f'{two}/country=DE/{spark_name(1, "gz")}', 3, 'parquet'),
    (f'{two}/country=__HIVE_DEFAULT_PARTITION__/{spark_name(0)}', 1, 'parquet'),
  ]
  assert log.notes == ()


def test_the_order_of_a_listing_does_not_matter(spark, monkeypatch):
  columns = COLUMNS | {'country': 'country'}
  expected, _ = read(spark, columns)
  scandir = os.scandir

  class Backwards:
    """As an open folder is one: an iterator, and a context that closes it."""

    def __init__(self, path):
      entries = sorted(scandir(path), key=lambda entry: entry.name)
      self._entries = reversed(entries)

    def __iter__(self):
      return self._entries

    def __next__(self):
      return next(self._entries)

    def __enter__(self):
      return self

    def __exit__(self, *_):
      pass

  monkeypatch.setattr(os, 'scandir', Backwards)
  log, _ = read(spark, columns)
  assert events(log, 'country') == events(expected, 'country')
  assert log.sources == expected.sources


def test_a_column_that_only_some_files_have(spark):
  log, _ = read(spark, COLUMNS | {'device': 'device'})
  assert [row[3] for row in events(log, 'device')] == [
    *[None] * 5, 'tv', None,
  ]  # fmt: skip
  [note] = log.notes
  # The empty file has no events to lack it.
  assert note.startswith('4 of 5 files, the first dt=2024-01-01/country=Costa')
  assert note.endswith("no column 'device': their events have no device.")
  message = refusal(spark, COLUMNS | {'device': 'devise'})
  assert "has no column 'devise' for device; it has u, i, t, dt, country" in (
    message
  )
  # A label that is not there is no label.
  path = part(spark / 'dt=2024-01-03' / 'a.parquet', u=['a'], i=['b'], t=[1],
              c=[1])  # fmt: skip
  assert "has no column 'c' for label" in refusal(
    spark, COLUMNS | {'label': 'c'}
  )
  path.unlink()


@pytest.mark.parametrize('pattern', ['*', 'dt=*', '**/*.parquet', 'dt=*/*/*'])
def test_globs_have_the_partitions_below_their_first_star(spark, pattern):
  columns = COLUMNS | {'country': 'country'}
  expected, _ = read(spark, columns)
  log, _ = read(spark / pattern, columns)
  assert events(log, 'country') == events(expected, 'country')
  assert log.sources == expected.sources


def test_shards_of_bigquery(tmp_path):
  # A TIMESTAMP column, and an INT64 id; shards are numbered.
  for number, (users, days) in enumerate(
    [([2, 1], [1, 1]), ([1], [2]), ([], [])]
  ):
    part(
      tmp_path / 'export' / f'{number:012}.parquet',
      u=pl.Series(users, dtype=pl.Int64),
      i=pl.Series(['x'] * len(users), dtype=pl.String),
      t=pl.Series(
        [time_of(day, 0) for day in days], dtype=pl.Datetime('us', 'UTC')
      ),
    )
  log, _ = read(tmp_path / 'export')
  assert events(log) == [
    ('1', 'x', SECONDS[1]),
    ('1', 'x', SECONDS[2]),
    ('2', 'x', SECONDS[1]),
  ]
  assert [s['lines'] for s in log.sources] == [2, 1, 0]
  assert log.sources[0]['name'] == '000000000000.parquet'


def test_blocks_of_ray(tmp_path):
  # Ray names blocks by a run, a task and a block; empty ones have no columns,
  # and a block without one value has a column of no type.
  run = '23_000000'
  part(tmp_path / f'{run}_000001-0.parquet', t=['2024-01-01'], i=['y'], u=['a'],
       c=pl.Series([None]))  # fmt: skip
  part(tmp_path / f'{run}_000000-0.parquet', u=['a'], i=['x'], t=['2024-01-01'],
       c=['tv'])  # fmt: skip
  part(tmp_path / f'{run}_000002-0.parquet')
  part(tmp_path / f'{run}_000003-0.parquet', u=pl.Series([], dtype=pl.Int64))
  log, _ = read(tmp_path, COLUMNS | {'device': 'c'})
  # Both of one time: the order is that of the names.
  assert events(log, 'device') == [
    ('a', 'x', SECONDS[1], 'tv'),
    ('a', 'y', SECONDS[1], None),
  ]
  assert log.notes == ()


@pytest.mark.parametrize(
  'times',
  [
    [pl.Series([SECONDS[1]]), pl.Series([SECONDS[2]], dtype=pl.Int64)],
    [pl.Series([SECONDS[1]], dtype=pl.UInt32), pl.Series([float(SECONDS[2])])],
    [pl.Series(['2024-01-01']), pl.Series([str(SECONDS[2])])],
    [
      pl.Series([time_of(1, 0)]).cast(pl.Datetime('ns', 'UTC')),
      pl.Series([datetime.date(2024, 1, 2)]),
    ],
    # The unit is that of the whole source.
    [pl.Series([SECONDS[1] * 1000]), pl.Series([SECONDS[2] * 1000])],
  ],
)
def test_times_of_several_files(tmp_path, times):
  for number, time in enumerate(times):
    part(tmp_path / f'{number}.parquet', u=['a'], i=['x'], t=time)
  log, _ = read(tmp_path)
  assert log.timestamp.tolist() == [SECONDS[1], SECONDS[2]]


def test_a_partition_can_be_the_user_or_the_time(tmp_path):
  for user in ('a%2Fb', 'caf%C3%A9'):
    for day in ('01', '02'):
      part(tmp_path / f'who={user}' / f't=2024-01-{day}' / '0.parquet', i=['x'])
  log, _ = read(tmp_path, COLUMNS | {'user': 'who'})
  assert events(log) == [
    ('a/b', 'x', SECONDS[1]),
    ('a/b', 'x', SECONDS[2]),
    ('café', 'x', SECONDS[1]),
    ('café', 'x', SECONDS[2]),
  ]
  # A user of no name is refused like any other.
  nobody = tmp_path / 'who=__HIVE_DEFAULT_PARTITION__'
  part(nobody / 't=2024-01-01' / '0.parquet', i=['x'])
  _, rejected = read(
    tmp_path, COLUMNS | {'user': 'who'}, ReadOptions(max_rejected=0.5)
  )
  assert rejected.rows() == [
    ('who=__HIVE_DEFAULT_PARTITION__/t=2024-01-01/0.parquet', 1,
     'the user is missing', ''),
  ]  # fmt: skip


@pytest.mark.parametrize(
  ('value', 'inside'),
  [
    ('tv', ['tv', 'tv']),
    ('7', [7, 7]),
    ('07', [7, 7]),
    ('true', [True, True]),
    ('2024-01-02', [datetime.date(2024, 1, 2)] * 2),
    ('2024-01-02 05%3A00%3A00', [time_of(2, 5)] * 2),
    ('__HIVE_DEFAULT_PARTITION__', [None, None]),
  ],
)
def test_a_partition_that_stands_in_the_files_too(tmp_path, value, inside):
  path = part(
    tmp_path / f'd={value}' / '0.parquet', u=['a', 'b'], i=['x', 'x'], t=[1, 2],
    d=inside,
  )  # fmt: skip
  is_category = not isinstance(inside[0], datetime.date)
  name = 'device' if is_category else 'timestamp'
  num = 2
  if inside[0] is None:
    # A column of no value at all would be refused.
    part(tmp_path / 'd=x' / '0.parquet', u=['c'], i=['x'], t=[3])
    num = 3
  log, _ = read(tmp_path, COLUMNS | {name: 'd'})
  assert log.counts['events'] == num
  holds = 'null' if inside[0] is None else inside[0]
  for other in ('pc', '8', 'false', '2024-01-03'):
    path = path.parent.rename(tmp_path / f'd={other}') / '0.parquet'
    message = refusal(tmp_path, COLUMNS | {name: 'd'})
    assert message.startswith(f"{path}: the column 'd' is {holds} in row 1")
    assert f'but its folder says d={other}: rename one of the two' in message
  # It does not matter where it is not asked for.
  assert read(tmp_path)[0].counts['events'] == num


def test_the_first_row_that_contradicts_its_folder_is_named(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(parquet_log, 'ROWS_AT_ONCE', 2)
  part(tmp_path / 'd=tv' / '0.parquet', u=['a'] * 5, i=[*'vwxyz'], t=[1] * 5,
       d=['tv', 'tv', 'tv', None, 'pc'])  # fmt: skip
  message = refusal(tmp_path, COLUMNS | {'device': 'd'})
  assert "the column 'd' is null in row 4" in message


@pytest.mark.parametrize(
  ('name', 'one', 'other', 'sentence'),
  [
    ('user', [7], ['7'], "'d' for user is Int64 in a.parquet and String in b."),
    (
      'device',
      [True],
      ['x'],
      'is Boolean in a.parquet and String in b.parquet',
    ),
    ('timestamp', [7], [time_of(1, 0)], 'is Int64 in a.parquet and Datetime'),
    ('timestamp', ['7'], [7], 'is String in a.parquet and Int64 in b.parquet'),
    ('label', [1], ['1'], 'is Int64 in a.parquet and String in b.parquet'),
  ],
)
def test_files_that_differ_in_a_type(tmp_path, name, one, other, sentence):
  rows = {'u': ['a'], 'i': ['x'], 't': [1]}
  # Without a row, or a value, there is no type to differ.
  part(tmp_path / '0.parquet', **rows, d=pl.Series([None]))
  part(tmp_path / '1.parquet', **{k: pl.Series([]) for k in (*rows, 'd')})
  part(tmp_path / 'a.parquet', **rows, d=one)
  part(tmp_path / 'b.parquet', **rows, d=other)
  message = refusal(tmp_path, COLUMNS | {name: 'd'})
  assert message.startswith(f'{tmp_path}: its files differ in the types of')
  assert sentence in message
  assert message.endswith('; write them with one type')


def test_numbers_may_be_whole_in_one_file_and_not_in_another(tmp_path):
  rows = {'u': ['a'], 'i': ['x']}
  part(tmp_path / '0.parquet', **rows, t=[1], r=[4], c=[True])
  part(tmp_path / '1.parquet', **rows, t=[2], r=[2.5], c=[0])
  log, _ = read(tmp_path, COLUMNS | {'rating': 'r', 'label': 'c'})
  assert log.rating is not None
  assert log.rating.tolist() == [4.0, 2.5]
  assert log.label is not None
  assert log.label.tolist() == [1, 0]


def test_no_file_is_left_out_in_silence(tmp_path):
  rows = {'u': ['a'], 'i': ['x'], 't': [1]}
  part(tmp_path / 'dt=1' / 'a.parquet', **rows)
  bad = tmp_path / 'dt=2' / 'b.parquet'
  bad.parent.mkdir()
  again = '; copy or write it again, or leave it out'
  whole = (tmp_path / 'dt=1' / 'a.parquet').read_bytes()
  for content, reason in [
    (b'u,i,t\na,x,1\n', "it begins with b'u,i,', not with b'PAR1'"),
    (b'', "it begins with b'', not with b'PAR1'"),
    (whole[:-20], 'it is truncated: its last bytes are no footer'),
    (whole[:4], 'it is truncated: its last bytes are no footer'),
  ]:
    bad.write_bytes(content)
    assert (
      refusal(tmp_path) == f'{bad} cannot be read as Parquet: {reason}{again}'
    )
  bad.unlink()
  bad.symlink_to(tmp_path / 'gone')
  assert refusal(tmp_path) == (
    f'{bad} cannot be read as Parquet: No such file or directory{again}'
  )


def test_a_folder_that_cannot_be_listed(spark, monkeypatch):
  scandir = os.scandir

  def refuse(path):
    if str(path).endswith('dt=2024-01-02'):
      raise PermissionError(13, 'Permission denied', str(path))
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refuse)
  assert refusal(spark) == (
    f'{spark / "dt=2024-01-02"} cannot be read: Permission denied'
  )


def test_folders_without_a_parquet_file(spark):
  for file in spark.rglob('part-*.parquet'):
    file.unlink()
  assert refusal(spark) == (
    f'{spark} holds no Parquet file, *.parquet: name a folder of those, or one '
    'file'
  )
  (spark / 'dt=2024-01-01' / 'part-0.csv').touch()
  assert 'it holds dt=2024-01-01/part-0.csv: name' in refusal(spark)


@pytest.mark.parametrize('rows_at_once', [1, 7, 100])
@pytest.mark.parametrize('min_merged', [1, 50, 1 << 20])
@pytest.mark.parametrize('kind', ['text', 'integer', 'huge'])
def test_slices_give_what_the_whole_gives(
  tmp_path, monkeypatch, rows_at_once, min_merged, kind
):
  rng = np.random.default_rng(0)
  user, item = rng.integers(0, 40, 300), rng.integers(0, 90, 300)
  if kind == 'huge':
    # Some slices hold numbers beyond int64, some do not.
    ids = user.astype(np.uint64) + np.uint64(2**63 - 3)
    as_ids = [str(i) for i in ids.tolist()]
  else:
    ids = user if kind == 'integer' else [f'user {u}' for u in user]
    as_ids = [str(i) for i in ids]
  missing = rng.random(300) < 0.1
  items = [None if m else f'i{i}' for m, i in zip(missing, item, strict=True)]
  frame = pl.DataFrame({'u': ids, 'i': items, 't': np.arange(300)})
  for number in range(4):
    frame[100 * number : 100 * (number + 1)].write_parquet(
      tmp_path / f'{number}.parquet', row_group_size=30
    )
  monkeypatch.setattr(parquet_log, 'ROWS_AT_ONCE', rows_at_once)
  monkeypatch.setattr(spool, 'MERGED_AT_ONCE', min_merged)
  log, rejected = read(tmp_path, options=ReadOptions(max_rejected=0.5))
  expected = [
    (as_ids[row], items[row], row) for row in range(300) if not missing[row]
  ]
  assert sorted(events(log)) == sorted(expected)
  assert log.users.to_list() == sorted({row[0] for row in expected})
  assert rejected.rows() == [
    (f'{row // 100}.parquet', row % 100 + 1, 'the item is missing', '')
    for row in np.flatnonzero(missing).tolist()
  ]


def test_items_in_partitions(tmp_path):
  for brand, keys in [
    ('B%26O', ['x', 'z']),
    ('__HIVE_DEFAULT_PARTITION__', 'y'),
  ]:
    part(tmp_path / 'items' / f'brand={brand}' / '0.parquet', k=[*keys])
  part(tmp_path / 'e.parquet', u=['a'] * 3, i=[*'xyz'], t=[1, 2, 3])
  log, _ = read_log(
    tmp_path / 'e.parquet',
    COLUMNS,
    STRICT,
    items=tmp_path / 'items',
    item_key='k',
    item_attributes=['brand'],
  )
  assert log.item_attributes['brand'].to_list() == ['B&O', None, 'B&O']
