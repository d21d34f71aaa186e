"""Scores where they belong, in every format, and after any interruption."""

import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from eain_jax.data.lines import ReadOptions
from eain_jax.errors import InputError, Interrupted
from eain_jax.serving import score_file as module
from eain_jax.serving.candidates import CandidateFile, Rows
from eain_jax.serving.encoder import Encoder
from eain_jax.serving.parts import FORMATS, output_format
from eain_jax.serving.score_file import score_file
from eain_jax.serving.scorer import Scorer, ask_rows

COLUMNS = {n: n for n in ('user', 'item', 'timestamp', 'device')}
PLAN = {'model': 'by hand'}


@pytest.fixture(scope='module')
def encoder(dataset):
  return Encoder(dataset)


def by_ids(batch):
  """'Logits' that tell who and what was scored: user + item / 1000."""
  item = batch['items']['item'][batch['target']]
  return (batch['user'][:, None] + item / 1000).astype(np.float32)


@pytest.fixture
def rows():
  """Runs of 1 to 9 candidates, some of them unknown."""
  rng = np.random.default_rng(3)
  table = []
  for user in rng.integers(0, 230, 60):
    for item in rng.integers(0, 90, rng.integers(1, 10)):
      table.append((f'u{user:03}', f'i{item:02}', 1_500_000_000, 'phone'))
  return pl.DataFrame(table, schema=list(COLUMNS), orient='row')


def expected_of(dataset, rows):
  id_of = lambda name, key: dict(
    pl.read_parquet(dataset.path / f'{name}.parquet')
    .select(key, f'{key}_id')
    .iter_rows()
  )
  users, items = id_of('users', 'user'), id_of('items', 'item')
  return np.array(
    [
      users.get(user, 1) + items.get(item, 1) / 1000
      for user, item in rows[['user', 'item']].iter_rows()
    ],
    np.float32,
  )


def run(encoder, path, output, score=by_ids, keep=('user', 'item'), slots=16):
  file = CandidateFile(path, COLUMNS, keep, ReadOptions())
  told = []
  found = score_file(
    Scorer(encoder, score, slots), file, output, PLAN, told.append
  )
  return found, told


def read(path):
  readers = {
    '.csv': pl.read_csv,
    '.tsv': lambda file: pl.read_csv(file, separator='\t'),
    '.jsonl': pl.read_ndjson,
    '.parquet': pl.read_parquet,
  }
  return readers[path.suffix](path)


@pytest.mark.parametrize('to', FORMATS)
@pytest.mark.parametrize('of', ['csv', 'jsonl', 'parquet'])
@pytest.mark.parametrize('part', [7, 1 << 16])
def test_scores_in_the_order_of_the_rows(
  dataset, encoder, rows, tmp_path, monkeypatch, of, to, part
):
  monkeypatch.setattr(module, 'ROWS_A_PART', part)
  path, output = tmp_path / f'in.{of}', tmp_path / f'out.{to}'
  write = {
    'csv': 'write_csv',
    'jsonl': 'write_ndjson',
    'parquet': 'write_parquet',
  }
  getattr(rows, write[of])(path)
  found, told = run(encoder, path, output)
  table = read(output)
  assert table.columns == ['user', 'item', 'score', 'probability']
  assert table[['user', 'item']].equals(rows[['user', 'item']])
  expected = expected_of(dataset, rows)
  np.testing.assert_allclose(table['score'].to_numpy(), expected, rtol=1e-6)
  np.testing.assert_allclose(
    table['probability'].to_numpy(), 1 / (1 + np.exp(-expected)), rtol=1e-5
  )
  assert found['counts'] == {
    'rows': len(rows),
    'unknown_users': int((rows['user'] > 'u199').sum()),
    'unknown_items': int((rows['item'] > 'i79').sum()),
    'without_history': int((rows['user'] > 'u199').sum()),
    'rejected': 0,
  }
  assert told[-1].rows == len(rows)
  beside = json.loads((tmp_path / f'out.{to}.json').read_text())
  assert beside == {**PLAN, 'input': beside['input'], **found}
  assert {p.name for p in tmp_path.iterdir()} == {
    path.name,
    output.name,
    f'{output.name}.json',
  }


def test_a_number_of_json_stays_a_number(encoder, tmp_path):
  row = {'user': 'u000', 'item': 'i00', 'timestamp': 5, 'device': 'phone'}
  lines = [{**row, 'key': 1}, {**row, 'key': 'x'}, {**row, 'key': [1, None]}]
  path, output = tmp_path / 'in.jsonl', tmp_path / 'out.jsonl'
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  run(encoder, path, output, keep=('key',))
  kept = [json.loads(line)['key'] for line in output.read_text().splitlines()]
  assert kept == [1, 'x', [1, None]]


@pytest.mark.parametrize('to', ['csv', 'parquet'])
def test_an_interruption_costs_a_part(encoder, rows, tmp_path, monkeypatch, to):
  monkeypatch.setattr(module, 'ROWS_A_PART', 32)
  path = tmp_path / 'in.csv'
  rows.write_csv(path)
  whole, output = tmp_path / f'whole.{to}', tmp_path / f'out.{to}'
  calls = []

  def score(batch):
    calls.append(len(batch['user']))
    return by_ids(batch)

  run(encoder, path, whole, score)
  all_calls = len(calls)

  def interrupted(batch):
    if len(calls) == all_calls // 2:
      raise Interrupted('told to stop')
    return score(batch)

  calls.clear()
  with pytest.raises(Interrupted):
    run(encoder, path, output, interrupted)
  folder = tmp_path / f'out.{to}.unfinished'
  parts = sorted(folder.glob('part-*'))
  assert parts
  assert not output.exists()
  kept = {part: part.read_bytes() for part in parts}
  # Another input's scores do not go on from there.
  file = CandidateFile(path, COLUMNS, ('user',), ReadOptions())
  other = Scorer(encoder, by_ids)
  with pytest.raises(InputError, match='the beginning of something else'):
    score_file(other, file, output, {'model': 'other'}, print)
  assert kept == {part: part.read_bytes() for part in parts}
  calls.clear()
  found, _ = run(encoder, path, output, score)
  assert 0 < len(calls) <= all_calls - all_calls // 2 + 3
  assert output.read_bytes() == whole.read_bytes()
  assert found['counts']['rows'] == len(rows)
  assert not folder.exists()


def test_rows_with_histories_of_their_own(encoder, tmp_path):
  """Each is a request by itself, and sees what it came with."""
  row = {'user': 'u000', 'item': 'i00', 'timestamp': 90, 'device': 'phone'}
  lines = [
    {**row, 'h': [f'i{place:02}' for place in range(n)], 't': [1] * n}
    for n in (3, 0, 5, 1, 2)
  ]
  path, output = tmp_path / 'in.jsonl', tmp_path / 'out.csv'
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  columns = {**COLUMNS, 'history': 'h', 'history_timestamp': 't'}
  file = CandidateFile(path, columns, ['user'], ReadOptions())

  def lengths(batch):
    return batch['position'][:, None].astype(np.float32)

  found = score_file(Scorer(encoder, lengths, 4), file, output, PLAN, print)
  assert read(output)['score'].to_list() == [3, 0, 5, 1, 2]
  assert found['counts']['without_history'] == 1


def test_shared_histories_are_looked_up_once(encoder):
  """Rows that share one list, equal lists, other times, and none."""
  first, second, none = ['i01', 'i02'], ['i03'], []
  times, later, no_time = [10, 20], [30, 40], []
  given = [
    (first, times),
    (second, [50]),
    (none, no_time),
    (first, times),
    (first, later),
    (none, no_time),
    (['i01', 'i02'], [10, 20]),
  ]
  rows = Rows(
    ['u000'] * 7,
    ['i00'] * 7,
    [90] * 7,
    {'device': [None] * 7},
    [history for history, _ in given],
    [time for _, time in given],
    {},
  )
  asked = []
  find = encoder.items.find
  spy = SimpleNamespace(
    users=encoder.users,
    items=SimpleNamespace(find=lambda ids: asked.append(len(ids)) or find(ids)),
    categories=encoder.categories,
  )
  found = ask_rows(spy, rows).histories
  number = {name: int(find([name])[0]) for name in ('i01', 'i02', 'i03')}
  assert found.item.tolist() == [
    number[name] for history, _ in given for name in history
  ]
  assert found.timestamp.tolist() == [t for _, times in given for t in times]
  assert found.end.tolist() == [2, 3, 3, 5, 7, 7, 9]
  # Two, one, two at other times, two that are equal only; the rows' own items.
  assert sorted(asked) == [7, 7]


def test_each_block_has_the_width_that_suits_it(encoder):
  """A hundred candidates of a user, then a hundred users, and again."""
  block = lambda users, items: Rows(
    users,
    items,
    [1_500_000_000] * len(users),
    {'device': ['phone'] * len(users)},
    None,
    None,
    {},
  )
  users = [f'u{n:03}' for n in range(100)]
  items = [f'i{n % 80:02}' for n in range(100)]
  wide, narrow = block(['u000'] * 100, items), block(users, ['i05'] * 100)
  shapes = []

  def score(batch):
    shapes.append((batch['target'].shape, len(batch['history'])))
    return by_ids(batch)

  found = Scorer(encoder, score, 128).score([wide, narrow, wide, narrow])
  logits = [logits for _, logits, _ in found]
  assert [shape for shape, _ in shapes] == [(1, 100), (128, 1)] * 2
  # What many users need is no measure for one.
  assert shapes[2] == shapes[0]
  assert shapes[2][1] < shapes[1][1]
  np.testing.assert_array_equal(logits[0], logits[2])
  np.testing.assert_array_equal(logits[1], logits[3])


def test_a_score_that_is_no_number_is_an_error(encoder, rows, tmp_path):
  path, output = tmp_path / 'in.csv', tmp_path / 'out.csv'
  rows.write_csv(path)
  diverged = lambda batch: by_ids(batch) * np.nan
  with pytest.raises(InputError, match='is nan: the model has diverged'):
    run(encoder, path, output, diverged)
  assert [p.name for p in tmp_path.iterdir()] == ['in.csv']


def test_rejected_rows_are_beside_the_scores(encoder, rows, tmp_path):
  path, output = tmp_path / 'in.csv', tmp_path / 'out.csv'
  text = rows.write_csv()
  path.write_text(f'{text}u000,,5,phone\n')
  file = CandidateFile(path, COLUMNS, ('user',), ReadOptions(max_rejected=0.1))
  found = score_file(Scorer(encoder, by_ids), file, output, PLAN, print)
  assert found['counts']['rejected'] == 1
  assert found['counts']['rows'] == len(rows) == len(read(output))
  [line] = (tmp_path / 'out.csv.rejected.jsonl').read_text().splitlines()
  assert json.loads(line)['reason'] == 'the item is empty'


def test_an_output_that_is_its_own_input_column_is_refused(
  encoder, rows, tmp_path
):
  path = tmp_path / 'in.csv'
  rows.with_columns(score=pl.lit(7)).write_csv(path)
  with pytest.raises(InputError, match=r"'score' .* has a name of the output"):
    run(encoder, path, tmp_path / 'out.jsonl', keep=('score',))
  assert [p.name for p in tmp_path.iterdir()] == ['in.csv']


def test_no_old_list_of_rejected_rows_stays(encoder, rows, tmp_path):
  path, output = tmp_path / 'in.csv', tmp_path / 'out.csv'
  rows.write_csv(path)
  (tmp_path / 'out.csv.rejected.jsonl').write_text('old')
  run(encoder, path, output)
  assert not (tmp_path / 'out.csv.rejected.jsonl').exists()


def test_the_ending_of_the_name_is_the_format(tmp_path):
  assert output_format(tmp_path / 'a.b.parquet') == 'parquet'
  for name in ('a', 'a.txt', 'a.csv.gz'):
    with pytest.raises(InputError, match=r'must end in one of \.csv, '):
      output_format(tmp_path / name)
