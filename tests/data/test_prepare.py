"""Whole preparations: counts by hand, tasks, and datasets that were touched."""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from eain_jax.config import PrepareConfig
from eain_jax.data import columns, survey
from eain_jax.data.dataset import open_dataset
from eain_jax.data.events import k_core
from eain_jax.data.lines import ReadOptions
from eain_jax.data.log_files import read_log
from eain_jax.data.prepare import prepare
from eain_jax.errors import InputError

COLUMNS = ('user=u', 'item=i', 'timestamp=t')
DAY = 86_400


def write_log(path, rows, header='u,i,t'):
  path.write_text('\n'.join([header, *rows]) + '\n')
  return str(path)


def make(folder, rows, header='u,i,t', columns=COLUMNS, **settings):
  settings = {'negatives': 1, 'eval_negatives': 1} | settings
  events = write_log(folder / 'log.csv', rows, header)
  config = PrepareConfig(events=events, columns=columns, **settings)
  return prepare(config, folder / 'dataset'), folder / 'dataset'


# Three users with 4, 3 and 2 events, days apart; items a to e.
ROWS = [
  f'x,a,{1 * DAY}',
  f'x,b,{2 * DAY}',
  f'x,c,{3 * DAY}',
  f'x,d,{9 * DAY}',
  f'y,a,{1 * DAY}',
  f'y,e,{5 * DAY}',
  f'y,b,{6 * DAY}',
  f'z,c,{4 * DAY}',
  f'z,a,{7 * DAY}',
]


def test_counts_by_hand(tmp_path):
  manifest, folder = make(tmp_path, ROWS)
  counts = manifest['counts']
  assert (counts['lines'], counts['events']) == (9, 9)
  assert (counts['users'], counts['items']) == (3, 5)
  sizes = lambda part: [
    counts[part][name]
    for name in ('positives', 'examples', 'requests', 'dropped_short_history')
  ]
  # Train targets: x b; x a, y a have no history. Valid: x c, y e; z c has none.
  assert sizes('train') == [1, 2, 1, 2]
  assert sizes('valid') == [2, 4, 2, 1]
  assert sizes('test') == [3, 6, 3, 0]
  dataset = open_dataset(folder)
  # Training events are x a, x b, y a, so c, d and e are unknown items.
  items = pl.read_parquet(folder / 'items.parquet')
  assert items['item'].to_list() == ['a', 'b', 'c', 'd', 'e']
  assert items['item_id'].to_list() == [2, 3, 1, 1, 1]
  vocabulary = pl.read_csv(folder / 'vocabularies' / 'item.csv')
  assert vocabulary.rows() == [(2, 'a', 2), (3, 'b', 1)]
  # z has no training event.
  assert dataset.user_ids.tolist() == [2, 3, 1]
  assert dataset.events_table().select('user', 'item').rows()[:2] == [
    ('x', 'a'),
    ('x', 'b'),
  ]


def test_min_history_of_zero_keeps_first_events(tmp_path):
  manifest, _ = make(tmp_path, ROWS, min_history=0)
  counts = manifest['counts']
  assert [counts[p]['positives'] for p in ('train', 'valid', 'test')] == [
    3,
    3,
    3,
  ]


def test_the_published_protocol_is_named(tmp_path):
  manifest, folder = make(tmp_path, ROWS, split='last_out_no_validation')
  assert manifest['counts']['train']['positives'] == 3
  assert manifest['counts']['valid'] == manifest['counts']['test']
  assert any('selected on the test part' in n for n in manifest['notes'])
  parts = open_dataset(folder).parts
  np.testing.assert_array_equal(
    parts['valid'].candidates, parts['test'].candidates
  )


def test_ties_in_time_keep_the_order_of_the_source(tmp_path):
  rows = [f'x,{item},{DAY}' for item in 'dacb']
  _, folder = make(tmp_path, [*rows, *ROWS[4:]])
  table = open_dataset(folder).events_table()
  assert table.filter(pl.col('user') == 'x')['item'].to_list() == list('dacb')


def test_rating_makes_requests_of_days_and_histories_before_them(tmp_path):
  rows = [
    f'x,a,{1 * DAY},5',
    f'x,b,{1 * DAY + 60},2',
    f'x,c,{2 * DAY},4',
    f'x,d,{2 * DAY + 5},1',
    f'x,e,{3 * DAY},3',
    f'x,a,{4 * DAY},5',
  ]
  manifest, folder = make(
    tmp_path,
    rows,
    'u,i,t,r',
    (*COLUMNS, 'rating=r'),
    task='rating',
    min_history=0,
    split='last_out_no_validation',
  )
  part = open_dataset(folder).parts['train']
  assert part.label.tolist() == [1, 0, 1, 0, 0]
  assert part.request.tolist() == [0, 0, 1, 1, 2]
  # Events of the same day are not in each other's history.
  assert part.history_end.tolist() == [0, 0, 2, 2, 4]
  assert manifest['counts']['train']['requests'] == 3
  assert manifest['counts']['test']['positives'] == 1


LOG_ROWS = [
  # user, item, time, request, position, click
  'x,a,1,r1,1,0',
  'x,b,1,r1,2,1',
  'x,c,1,r1,3,0',
  'x,d,2,r2,1,1',
  'x,e,2,r2,2,1',
  'x,a,3,r3,1,0',
  'x,b,3,r3,2,0',
  'x,c,4,r4,1,0',
  'x,e,4,r4,2,1',
  'y,a,5,r5,1,1',
]
LOG_COLUMNS = (*COLUMNS, 'request=q', 'position=p', 'label=c')


def make_log(tmp_path, time_fractions, **settings):
  return make(
    tmp_path,
    LOG_ROWS,
    'u,i,t,q,p,c',
    LOG_COLUMNS,
    time_fractions=time_fractions,
    **settings,
  )


def test_logged_histories_are_earlier_positives(tmp_path):
  _, folder = make_log(tmp_path, (0.6, 0.2, 0.2))
  dataset = open_dataset(folder)
  assert dataset.task == 'logged'
  train, valid, test = (dataset.parts[p] for p in ('train', 'valid', 'test'))
  assert [len(train), len(valid), len(test)] == [7, 2, 1]
  assert train.label.tolist() == [0, 1, 0, 1, 1, 0, 0]
  items = np.array(list('abcde'))

  def history(part, row):
    start = dataset.history_start[dataset.user[part.event[row]]]
    rows = dataset.history_event[start : part.history_end[row]]
    return ''.join(items[dataset.item[rows]])

  assert [history(train, row) for row in range(7)] == [
    '',
    '',
    '',
    'b',
    'b',
    'bde',
    'bde',
  ]
  assert [history(valid, row) for row in range(2)] == ['bde', 'bde']
  # The first example of user y has no history, and is kept.
  assert history(test, 0) == ''


def test_logged_skip_above(tmp_path):
  manifest, folder = make_log(tmp_path, (0.6, 0.2, 0.2), skip_above=True)
  train = open_dataset(folder).parts['train']
  # r1 loses c below its last click; r3 has no click and goes whole.
  assert train.label.tolist() == [0, 1, 1, 1]
  assert manifest['counts']['train']['dropped_by_skip_above'] == 3


def test_what_is_evaluated_loses_nothing_to_skip_above(tmp_path):
  manifest, folder = make_log(tmp_path, (0.5, 0.4, 0.1), skip_above=True)
  # r3 has no click and would go whole; training loses c of r1.
  assert open_dataset(folder).parts['valid'].label.tolist() == [0, 0, 0, 1]
  assert manifest['counts']['valid']['dropped_by_skip_above'] == 0
  assert manifest['counts']['train']['dropped_by_skip_above'] == 1
  assert any('training part alone' in note for note in manifest['notes'])


def test_the_gap_does_not_tell_what_was_taken(tmp_path):
  """Each request lists the taken item first, some days after the last one."""
  rows = [
    f'u{user},i{(user + 3 * day + place) % 9},{day * DAY},r{user}-{day},'
    f'{place},{int(place == 0)}'
    for user in range(20)
    for day in range(0, 18, 3)
    for place in range(4)
  ]
  _, folder = make(tmp_path, rows, 'u,i,t,q,p,c', LOG_COLUMNS)
  dataset = open_dataset(folder)
  for part in dataset.parts.values():
    gap = dataset.context_ids['gap'][part.event]
    for request in np.unique(part.request):
      assert len(set(gap[part.request == request].tolist())) == 1


def test_what_was_shown_and_then_taken_is_taken(tmp_path):
  rows = [
    row
    for user in range(8)
    for time in range(8)
    for row in (
      f'u{user},i{(user + time) % 9},{time * DAY},r{user}-{time},1,0',
      f'u{user},i{(user + time) % 9},{time * DAY},r{user}-{time},1,1',
      f'u{user},i{(user + time + 1) % 9},{time * DAY},r{user}-{time},2,0',
    )
  ]
  manifest, folder = make(tmp_path, rows, 'u,i,t,q,p,c', LOG_COLUMNS)
  assert manifest['counts']['duplicates'] == 64
  parts = open_dataset(folder).parts.values()
  assert sum(int(part.label.sum()) for part in parts) == 64
  assert sum(len(part) for part in parts) == 128


def test_simulated_skip_above_says_so_and_counts(tmp_path):
  rng = np.random.default_rng(0)
  rows = [
    f'u{user},i{item},{time}'
    for user in range(60)
    for time, item in enumerate(rng.permutation(40)[:10])
  ]
  manifest, folder = make(tmp_path, rows, skip_above=True, negatives=4)
  part = open_dataset(folder).parts['train']
  counts = manifest['counts']['train']
  assert counts['positives'] == 60 * 7
  assert counts['examples'] == 420 + part.kept_negatives.sum()
  assert counts['examples'] + counts['dropped_by_skip_above'] == 420 * 5
  assert any('simulated order' in note for note in manifest['notes'])


def test_the_same_twice_is_byte_identical(tmp_path):
  for name in ('one', 'two'):
    (tmp_path / name).mkdir()
  first, _ = make(tmp_path / 'one', ROWS)
  second, _ = make(tmp_path / 'two', ROWS)
  assert first['files'] == second['files']


@pytest.mark.parametrize(
  'settings',
  [
    {'synthetic': True},
    {'synthetic': True, 'split': 'time', 'skip_above': True},
    {'task': 'rating', 'skip_above': True},
    {'task': 'rating', 'split': 'time'},
    {'task': 'logged', 'skip_above': True},
    {'task': 'logged', 'split': 'last_out', 'min_history': 1},
  ],
)
def test_a_dataset_does_not_depend_on_its_blocks(
  tmp_path, monkeypatch, settings
):
  if settings.get('synthetic'):
    settings = settings | {'num_events': 3000, 'eval_negatives': 9}
  else:
    rng = np.random.default_rng(0)
    rows = [
      f'u{user},i{rng.integers(30)},{day * DAY},{3 * day + rng.integers(3)},'
      f'{rng.integers(9)},{rng.integers(2)},{rng.integers(1, 6)},d{user % 3}'
      for user, day in rng.integers(0, [40, 9], (900, 2))
    ]
    settings = settings | {
      'events': write_log(tmp_path / 'log.csv', rows, 'u,i,t,q,p,c,r,d'),
      'columns': (*LOG_COLUMNS, 'rating=r', 'dev=d'),
    }
  made = []
  # All users in one block, a few in each, and one alone.
  for size in (1 << 19, 100, 1):
    monkeypatch.setattr(columns, 'BLOCK_ROWS', size)
    monkeypatch.setattr(survey, 'BLOCK_ROWS', size)
    folder = tmp_path / f'blocks{size}'
    made.append(prepare(PrepareConfig(**settings), folder))
    assert {p.name for p in folder.iterdir()} == {
      'columns', 'vocabularies', 'items.parquet', 'users.parquet',
      'rejected.jsonl', 'manifest.json',
    }  # fmt: skip
  assert made[0]['counts']['train']['examples'] > 100
  assert made[0] == made[1] == made[2]


PEAK = """
import sys
from eain_jax.benchmark.host import peak_rss_mb
from eain_jax.config import PrepareConfig
from eain_jax.data.prepare import prepare
prepare(PrepareConfig(synthetic=True, num_events=int(sys.argv[1])), sys.argv[2])
print(peak_rss_mb())
"""


@pytest.mark.slow
def test_memory_grows_slowly_with_events(tmp_path):
  peaks = []
  for num_events in (600_000, 2_400_000):
    folder = str(tmp_path / str(num_events))
    done = subprocess.run(
      [sys.executable, '-c', PEAK, str(num_events), folder],
      capture_output=True,
      text=True,
      check=True,
    )
    peaks.append(float(done.stdout))
    shutil.rmtree(folder)
  # 1.8 million events more, of 120,000 users more. On the disk they are 36
  # bytes an event, and 199 numbers of 4 bytes for each of the two evaluated
  # events of a user: 244 MiB. What is kept of them is a byte an event, and of
  # a user some 200 bytes of name and counts: 25 MiB.
  assert peaks[1] - peaks[0] < 100


@pytest.mark.parametrize(
  ('settings', 'least'),
  [
    # 16 bytes an event, and 8 for each candidate of the two last of a user.
    ({'num_events': 1_500_000}, '0.2 GB'),
    ({'num_events': 1_500_000, 'eval_negatives': 999}, '1.6 GB'),
    ({'num_events': 1_500_000, 'split': 'time'}, '0.0 GB'),
  ],
)
def test_a_small_disk_is_refused_before_anything_is_drawn(
  tmp_path, monkeypatch, settings, least
):
  free = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: free)
  config = PrepareConfig(synthetic=True, **settings)
  with pytest.raises(
    InputError, match=f'{least}, and its disk has 0.0 GB left'
  ):
    prepare(config, tmp_path / 'deep' / 'dataset')
  assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_is_one_sentence(tmp_path, monkeypatch):
  def append(writer, rows):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(columns.ColumnWriter, 'append', append)
  with pytest.raises(InputError, match='the disk is full'):
    make(tmp_path, ROWS)
  assert [file.name for file in tmp_path.iterdir()] == ['log.csv']


def touch_bytes(file):
  data = bytearray(file.read_bytes())
  data[-1] ^= 1
  file.write_bytes(bytes(data))


def test_every_file_of_a_dataset_is_checked(tmp_path):
  manifest, folder = make(tmp_path, ROWS)
  for name in manifest['files']:
    file = folder / name
    if not file.stat().st_size:
      continue
    before = file.read_bytes()
    touch_bytes(file)
    with pytest.raises(InputError, match='was changed after it was written'):
      open_dataset(folder)
    file.unlink()
    with pytest.raises(InputError, match='is missing'):
      open_dataset(folder)
    file.write_bytes(before)
  open_dataset(folder)


def test_a_quick_look_checks_presence_and_size(tmp_path):
  manifest, folder = make(tmp_path, ROWS)
  for name in manifest['files']:
    file = folder / name
    before = file.read_bytes()
    for changed in (before + b'x', before[:-1]):
      if changed != before:
        file.write_bytes(changed)
        sizes = f'it has {len(changed)} bytes of {len(before)}'
        with pytest.raises(InputError, match=f'{name} .*{sizes}'):
          open_dataset(folder, verify='quick')
    file.unlink()
    with pytest.raises(InputError, match=f'{name} is missing'):
      open_dataset(folder, verify='quick')
    file.write_bytes(before)
  # What is of its size is believed; only a full look reads it.
  touch_bytes(folder / 'columns' / 'events.item.npy')
  assert (
    open_dataset(folder, verify='quick').fingerprint
    == (manifest['fingerprint'])
  )
  with pytest.raises(InputError, match='sha256 differs'):
    open_dataset(folder)
  with pytest.raises(ValueError, match="verify is 'none'"):
    open_dataset(folder, verify='none')


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_a_quick_look_reads_no_column(tmp_path, monkeypatch):
  folder = tmp_path / 'dataset'
  prepare(PrepareConfig(synthetic=True, num_events=200_000), folder)
  opened = []
  monkeypatch.setattr(
    'eain_jax.artifacts.hash_file', lambda file: opened.append(file)
  )
  dataset = open_dataset(folder, verify='quick')
  assert not opened
  mapped = resident = 0
  is_ours = False
  for line in Path('/proc/self/smaps').read_text().splitlines():
    name, *fields = line.split()
    if not name.endswith(':'):
      is_ours = fields[-1].startswith(str(folder))
    elif is_ours and name == 'Size:':
      mapped += int(fields[0])
    elif is_ours and name == 'Rss:':
      resident += int(fields[0])
  # In kB: 36 bytes an event, 199 x 4 bytes each of two events a user.
  assert mapped > 27_000
  assert resident == 0
  # The whole can be read through it all the same.
  assert int(dataset.item_train_count.sum()) == int(
    np.sum(np.diff(dataset.user_start) - 2)
  )


@pytest.mark.parametrize('verify', ['full', 'quick'])
@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda m: m['counts'].update(events=8), 'was changed after'),
    (lambda m: m.update(format_version=99), 'format version 99'),
    (lambda m: m.pop('fingerprint'), 'is damaged'),
  ],
)
def test_a_changed_manifest_is_refused(tmp_path, change, message, verify):
  _, folder = make(tmp_path, ROWS)
  file = folder / 'manifest.json'
  manifest = json.loads(file.read_text())
  change(manifest)
  file.write_text(json.dumps(manifest))
  with pytest.raises(InputError, match=message):
    open_dataset(folder, verify=verify)


def test_not_a_dataset(tmp_path):
  with pytest.raises(InputError, match='is not a prepared dataset'):
    open_dataset(tmp_path)


def test_an_output_that_holds_something_is_left_alone(tmp_path):
  (tmp_path / 'dataset').mkdir()
  (tmp_path / 'dataset' / 'mine.txt').write_text('mine')
  with pytest.raises(InputError, match='already holds something'):
    make(tmp_path, ROWS)
  assert (tmp_path / 'dataset' / 'mine.txt').read_text() == 'mine'


@pytest.mark.parametrize(
  ('rows', 'settings', 'message'),
  [
    ([*ROWS[:2], ROWS[7]], {}, 'too few for --split=last_out'),
    (ROWS, {'task': 'rating'}, 'needs ratings'),
    (ROWS, {'task': 'logged'}, 'needs labels'),
    (ROWS, {'eval_negatives': 4}, 'has had nearly all'),
    (ROWS, {'k_core': 5}, 'lower --k_core'),
    (ROWS, {'reviews': ('r.json',)}, 'exactly one source'),
    (ROWS, {'metadata': ('m.json',)}, '--metadata goes with --reviews'),
    (ROWS, {'item_attributes': ('a',)}, 'goes with --items or --metadata'),
    (
      [row + ',1,0' for row in ROWS],
      {'columns': (*COLUMNS, 'label=c'), 'task': 'next_item'},
      '9 of 9 have label 0',
    ),
    (
      [row + ',1,1' for row in ROWS],
      {'columns': (*COLUMNS, 'label=c'), 'skip_above': True},
      '--skip_above of --task=logged needs the positions',
    ),
    (
      [row + ',5,0' for row in ROWS],
      {'columns': (*COLUMNS, 'rating=r'), 'task': 'rating', 'skip_above': True},
      '--skip_above of --task=rating needs the positions',
    ),
    (
      [f'{row[:4]}2014013{place % 2}' for place, row in enumerate(ROWS)],
      {},
      'dates written as numbers, such as 20230115',
    ),
    (
      [f'{row[:4]}2014013{place % 2}235959' for place, row in enumerate(ROWS)],
      {},
      'dates written as numbers',
    ),
    (
      [f'{row[:4]}2014013{place % 2}2359' for place, row in enumerate(ROWS)],
      {},
      'dates written as numbers',
    ),
    (ROWS, {'columns': ('user=u',)}, 'must name item, timestamp'),
    (ROWS, {'columns': (*COLUMNS, 'user=v')}, 'names user twice'),
    (ROWS, {'columns': ('user',)}, 'write it as name=column'),
    (ROWS, {'columns': (*COLUMNS, 'hour=i')}, 'name of a time feature'),
    (ROWS, {'columns': (*COLUMNS, 'a/b=i')}, 'cannot name a feature'),
  ],
)
def test_what_cannot_be_prepared_is_one_sentence(
  tmp_path, rows, settings, message
):
  header = 'u,i,t,r,c' if rows[0].count(',') == 4 else 'u,i,t'
  with pytest.raises(InputError, match=message) as caught:
    make(tmp_path, rows, header, **settings)
  assert '\n' not in str(caught.value)
  assert [file.name for file in tmp_path.iterdir()] == ['log.csv']


def test_attributes_of_metadata_are_those_that_it_has(tmp_path):
  for attributes, message in (
    (('brand', 'colour'), 'attributes=colour is none of those'),
    (('brand', 'price', 'brand'), 'names brand twice'),
  ):
    config = PrepareConfig(
      reviews=('r.json',), metadata=('m.json',), item_attributes=attributes
    )
    with pytest.raises(InputError, match=message):
      prepare(config, tmp_path / 'dataset')


def test_an_attribute_that_was_named_does_not_get_lost(tmp_path):
  """Only an item that --k_core drops has a brand."""
  items = tmp_path / 'items.csv'
  items.write_text('i,brand\na,\nb,\nz,acme\n')
  rows = [f'u{u},{i},{t}' for u in range(3) for t, i in enumerate('ababab')]
  with pytest.raises(
    InputError, match='brand: no item that is left has a value'
  ):
    make(
      tmp_path,
      [*rows, 'u0,z,9'],
      items=str(items),
      item_key='i',
      item_attributes=('brand',),
      k_core=2,
    )


def test_k_core_is_iterated(tmp_path):
  # Item c goes first; that leaves r with one event, so r goes too.
  rows = ['p,a,1', 'p,b,2', 'q,a,1', 'q,b,2', 'r,a,1', 'r,c,2']
  columns = {'user': 'u', 'item': 'i', 'timestamp': 't'}
  log, _ = read_log(
    write_log(tmp_path / 'log.csv', rows), columns, ReadOptions()
  )
  core = k_core(log, 2)
  assert core.users.to_list() == ['p', 'q']
  assert core.items.to_list() == ['a', 'b']
  assert core.user.tolist() == [0, 0, 1, 1]
  assert core.item.tolist() == [0, 1, 0, 1]
  assert core.counts['k_core_dropped'] == 2
  assert core.counts['events'] == 4


def test_values_come_back_as_the_source_has_them(tmp_path):
  brands = ['007', 'a"b', 'x,y', '1e3', 'z' * 50]
  with (tmp_path / 'items.jsonl').open('w') as file:
    for number, brand in enumerate(brands):
      line = {'item': f'0{number}', 'brand': brand}
      file.write(json.dumps(line) + '\n')
  lines = ['user,item,timestamp']
  lines += [
    f'u{user},0{(user + time) % 5},{1_400_000_000 + 90_000 * time}'
    for user in range(5)
    for time in range(4)
  ]
  (tmp_path / 'events.csv').write_text('\n'.join(lines) + '\n')
  config = PrepareConfig(
    events=str(tmp_path / 'events.csv'),
    columns=('user=user', 'item=item', 'timestamp=timestamp'),
    items=str(tmp_path / 'items.jsonl'),
    item_key='item',
    item_attributes=('brand',),
    negatives=1,
    eval_negatives=1,
  )
  folder = tmp_path / 'data[set]*'  # A name is no pattern.
  prepare(config, folder)
  dataset = open_dataset(folder)
  items = dataset.raw_items(np.array([3, 0, 3]))
  assert items == ['03', '00', '03']
  ids = dataset.item_ids['brand']
  values = dataset.values_of('brand', np.append(ids, [0, 1]))
  assert [values[number] for number in ids] == brands
  assert set(values) == set(ids.tolist())
  assert dataset.values_of('brand', ids[:1]) == {int(ids[0]): '007'}
