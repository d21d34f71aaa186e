"""A dataset is a function of its events, not of how they lie in files.

Where times differ, lines may be shuffled, packed, cut into files or written in
another format, and threads be many or few: all bytes stay the same. Where times
tie, the rows of the source decide, and nothing else does.
"""

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from eain_jax.config import PrepareConfig
from eain_jax.data import columns as data_columns
from eain_jax.data import events as data_events
from eain_jax.data import lines as data_lines
from eain_jax.data import parquet_log, spool, survey
from eain_jax.data.amazon import read_amazon
from eain_jax.data.lines import ReadOptions
from eain_jax.data.log_files import read_log
from eain_jax.data.prepare import prepare

ROOT = Path(__file__).parents[2]
NAMES = ('user', 'item', 'time', 'stars', 'click', 'list', 'rank', 'page')
COLUMNS = (
  'user=user', 'item=item', 'timestamp=time', 'rating=stars', 'label=click',
  'request=list', 'position=rank', 'page=page',
)  # fmt: skip


def make_rows(num=600, seed=3):
  """Rows of a log, no two at one time: ids of several lengths and scripts."""
  rng = random.Random(seed)
  users = [f'u{n}' for n in range(25)] + ['\u00e9', 'Z', '10', '9']
  items = [f'i{n * 37 % 101}' for n in range(60)] + ['\u4e2d', 'a b']
  times = rng.sample(range(10**9, 10**9 + 10**7), num)
  return [
    (
      rng.choice(users), rng.choice(items), time, rng.randrange(1, 11) / 2,
      rng.randrange(2), f'q{n // 6}', n % 6, rng.choice(['tv', 'pc', 'x-y']),
    )
    for n, time in enumerate(times)
  ]  # fmt: skip


def as_csv(rows):
  lines = [','.join(NAMES), *(','.join(map(str, row)) for row in rows)]
  return '\n'.join(lines).encode()


def as_json(rows):
  records = (dict(zip(NAMES, row, strict=True)) for row in rows)
  return '\n'.join(map(json.dumps, records)).encode()


def write_own(path, rows, kind):
  if kind == 'parquet':
    frame = pl.DataFrame(rows, schema=NAMES, orient='row')
    frame.write_parquet(path, row_group_size=100)
    return
  content = as_json(rows) if kind.startswith('json') else as_csv(rows)
  if kind.startswith('tsv'):
    content = content.replace(b',', b'\t')
  path.write_bytes(gzip.compress(content) if kind.endswith('gz') else content)


def contents(folder):
  """The bytes of every file, and the manifest without what names sources."""
  files = {
    path.relative_to(folder).as_posix(): path.read_bytes()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }
  manifest = json.loads(files.pop('manifest.json'))
  for key in ('sources', 'config', 'notes', 'fingerprint'):
    del manifest[key]
  return manifest, files


def own_dataset(tmp_path, name, rows, kind='csv'):
  path = tmp_path / f'{name}.log'
  write_own(path, rows, kind)
  settings = {'eval_negatives': 5, 'min_count': 2}
  prepare(
    PrepareConfig(events=str(path), columns=COLUMNS, **settings),
    tmp_path / name,
  )
  return contents(tmp_path / name)


def test_a_log_in_any_order_and_format_is_one_dataset(tmp_path):
  rows = make_rows()
  # Requests are numbered along the users' events, positions as they are.
  expected = own_dataset(tmp_path, 'expected', rows)
  assert len(expected[1]) > 20
  for seed, kind in enumerate(
    ['csv', 'csv.gz', 'tsv', 'json', 'json.gz', 'parquet']
  ):
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert own_dataset(tmp_path, kind, shuffled, kind) == expected, kind
  other = [*rows[:-1], (*rows[-1][:2], rows[-1][2] + 1, *rows[-1][3:])]
  assert own_dataset(tmp_path, 'other', other) != expected


def review_files(rows):
  return [
    json.dumps(
      {
        'reviewerID': user, 'asin': item, 'overall': stars,
        'unixReviewTime': time, 'reviewText': 'x' * (time % 50),
      }
    ).encode()
    for user, item, time, stars, *_ in rows
  ]  # fmt: skip


def amazon_dataset(tmp_path, name, parts, metadata, pack=bytes):
  paths = [tmp_path / f'{name}{n}.json' for n in range(len(parts))]
  for path, lines in zip(paths, parts, strict=True):
    path.write_bytes(pack(b'\n'.join(lines) + b'\n'))
  meta = tmp_path / f'{name}-meta.json'
  meta.write_bytes(b'\n'.join(metadata))
  config = PrepareConfig(
    reviews=tuple(map(str, paths)), metadata=(str(meta),), eval_negatives=5
  )
  prepare(config, tmp_path / name)
  return contents(tmp_path / name)


def test_reviews_in_any_order_and_number_of_files_are_one_dataset(tmp_path):
  rows = make_rows()
  metadata = [
    repr(
      {
        'asin': item, 'brand': f'b{n % 7}', 'price': float(n % 13),
        'categories': [['c', f'd{n % 5}'], ['e']],
      }
    ).encode()
    for n, item in enumerate(sorted({row[1] for row in rows}))
  ]  # fmt: skip
  lines = review_files(rows)
  expected = amazon_dataset(tmp_path, 'expected', [lines], metadata)
  rng = random.Random(0)
  for name, num_parts, pack in (
    ('shuffled', 1, bytes),
    ('packed', 1, gzip.compress),
    ('parts', 4, bytes),
    ('packed parts', 3, gzip.compress),
  ):
    shuffled = rng.sample(lines, len(lines))
    parts = [shuffled[n::num_parts] for n in range(num_parts)]
    items = rng.sample(metadata, len(metadata))
    found = amazon_dataset(tmp_path, name, parts, items, pack)
    assert found == expected, name


@pytest.mark.parametrize('kind', ['csv', 'json', 'parquet', 'amazon'])
def test_how_much_is_kept_in_memory_changes_no_byte(
  tmp_path, monkeypatch, kind
):
  rows = make_rows()

  def make(name):
    if kind == 'amazon':
      metadata = [repr({'asin': 'i37', 'brand': 'b'}).encode()]
      return amazon_dataset(tmp_path, name, [review_files(rows)], metadata)
    return own_dataset(tmp_path, name, rows, kind)

  expected = make('expected')
  for module, name, value in (
    (spool, 'BUFFERED_ROWS', 20),
    (spool, 'MAX_LOOKED_UP', 3),
    (spool, 'MERGED_AT_ONCE', 64),
    (spool, 'SAMPLED', 4),
    (spool, 'BATCH_ROWS', 5),
    (parquet_log, 'ROWS_AT_ONCE', 31),
    (data_lines, 'BLOCK_BYTES', 1 << 12),
    (data_columns, 'BLOCK_ROWS', 50),
    (data_events, 'BLOCK_ROWS', 50),
    (survey, 'BLOCK_ROWS', 50),
  ):
    monkeypatch.setattr(module, name, value)
  assert make('pieces') == expected


@pytest.mark.parametrize('kind', ['json', 'parquet'])
def test_any_number_of_threads_gives_one_dataset(tmp_path, kind):
  path = tmp_path / 'log'
  write_own(path, make_rows(3_000), kind)
  found = []
  for threads in (1, 2, 4):
    folder = tmp_path / str(threads)
    subprocess.run(
      [
        *(sys.executable, '-m', 'experiments.prepare_data'),
        f'--output_dir={folder}',
        f'--events={path}',
        f'--columns={",".join(COLUMNS)}',
        '--eval_negatives=5',
      ],
      cwd=ROOT,
      env={**os.environ, 'POLARS_MAX_THREADS': str(threads)},
      check=True,
      capture_output=True,
    )
    found.append((contents(folder), (folder / 'manifest.json').read_bytes()))
  assert found[0] == found[1] == found[2]


def in_order(rows):
  """The rule for ties: user, time, then row; the first of repeats stays."""
  first = {}
  for row in rows:
    first.setdefault(row[:3], row)
  return sorted(first.values(), key=lambda row: (row[0], row[2]))


def tied(rng):
  """Reviews of a few days, of which most share theirs; some are repeats."""
  return [
    (f'u{rng.randrange(3)}', f'i{rng.randrange(4)}', 86_400 * rng.randrange(3),
     float(rng.randrange(5)))
    for _ in range(40)
  ]  # fmt: skip


@pytest.mark.parametrize('seed', range(5))
def test_where_times_tie_rows_decide_and_nothing_else(tmp_path, seed):
  rng = random.Random(seed)
  rows = tied(rng)
  orders = set()
  for _ in range(3):
    rng.shuffle(rows)
    expected = in_order(rows)
    orders.add(tuple(row[1] for row in expected))
    path = tmp_path / 'a'
    path.write_bytes(b'\n'.join(review_files(rows)))
    halves = []
    for name, part in (('b', rows[:17]), ('c', rows[17:])):
      halves.append(tmp_path / name)
      halves[-1].write_bytes(b'\n'.join(review_files(part)))
    own = tmp_path / 'd'
    own.write_bytes(as_csv(rows).replace(b'stars,click,list,rank,page', b'r'))
    table = tmp_path / 'e'
    pl.DataFrame(
      rows, ['user', 'item', 'time', 'r'], orient='row'
    ).write_parquet(table, row_group_size=7)
    columns = {
      'user': 'user',
      'item': 'item',
      'timestamp': 'time',
      'rating': 'r',
    }
    options = ReadOptions()
    for log, _ in (
      read_amazon([path], [], options),
      # Files follow each other as they are named.
      read_amazon(halves, [], options),
      read_log(own, columns, options),
      read_log(table, columns, options),
    ):
      found = zip(
        log.users.gather(log.user), log.items.gather(log.item),
        log.timestamp.tolist(), log.rating.tolist(), strict=True,
      )  # fmt: skip
      assert list(found) == expected
  assert len(orders) > 1
