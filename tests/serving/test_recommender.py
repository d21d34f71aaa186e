"""The whole catalogue, ranked: against sorting all scores by numpy."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from eain_jax.data.lines import ReadOptions
from eain_jax.errors import InputError, Interrupted
from eain_jax.serving import recommend_file as module
from eain_jax.serving.candidates import CandidateFile
from eain_jax.serving.encoder import Asked, Encoder
from eain_jax.serving.recommend_file import recommend_file
from eain_jax.serving.recommender import NO_ITEM, Recommender, keep_best

TIME = 1_500_000_000


@pytest.fixture(scope='module')
def encoder(dataset):
  return Encoder(dataset)


def by_ids(params, stats, batch):
  """'Logits' of few values, so that many tie, that depend on user and item."""
  item = batch['items']['item'][batch['target']]
  return ((batch['user'][:, None] * 7 + item * item) % 11).astype(jnp.float32)


def expected_of(dataset, asked, k, leave_out_had):
  """By sorting all scores of each request, earlier items first."""
  items, logits = [], []
  for user, time in zip(asked.user, asked.timestamp, strict=True):
    user_id = int(dataset.user_ids[user]) if user >= 0 else 1
    score = (user_id * 7 + dataset.item_ids['item'].astype(int) ** 2) % 11.0
    if leave_out_had:
      is_had = (dataset.user == user) & (dataset.timestamp < time)
      score[dataset.item[is_had]] = -np.inf
    order = np.argsort(-score, kind='stable')[:k]
    is_left = np.isfinite(score[order])
    items.append(np.where(is_left, order, NO_ITEM))
    logits.append(score[order])
  return np.stack(items), np.stack(logits)


@pytest.mark.parametrize('leave_out_had', [True, False])
@pytest.mark.parametrize(
  ('k', 'slots', 'candidates'), [(3, 64, 16), (10, 7, 7), (80, 1000, 2048)]
)
def test_the_best_are_those_of_sorting(
  dataset, encoder, k, slots, candidates, leave_out_had
):
  asked = Asked(
    np.array([0, 3, -1, 199, 3], np.int32),
    np.zeros((5, 0), np.int32),
    np.array([TIME, TIME, TIME, TIME, int(dataset.timestamp.min())]),
    {'device': np.full(5, 2, np.int32)},
  )
  recommender = Recommender(
    encoder, by_ids, {}, {}, k, leave_out_had, slots, candidates
  )
  found = list(recommender.rank([asked, asked.rows(1, 2)]))
  items, logits = expected_of(dataset, asked, k, leave_out_had)
  assert np.array_equal(found[0].item, items)
  assert np.array_equal(found[0].logit, logits)
  assert np.array_equal(found[1].item, items[1:2])
  if k == dataset.num_items and leave_out_had:
    # Those that were had are no recommendation, not the last one.
    assert (found[0].item == NO_ITEM).sum() > 5


def test_of_equal_scores_the_earlier_item_stays():
  best = jnp.array([[2.0, 1.0]]), jnp.array([[5, 7]], jnp.int32)
  logit = jnp.array([[1.0, 2.0, 9.0]])
  is_out = jnp.array([[False, False, True]])
  found, item = keep_best(best, logit, is_out, jnp.int32(10))
  assert found.tolist() == [[2.0, 2.0]]
  assert item.tolist() == [[5, 11]]


def test_a_diverged_model_recommends_nothing(encoder):
  odd = lambda params, stats, batch: by_ids(params, stats, batch) * jnp.nan
  asked = Asked(
    np.array([0], np.int32),
    np.zeros((1, 0), np.int32),
    np.array([TIME]),
    {'device': np.full(1, 2, np.int32)},
  )
  with pytest.raises(InputError, match='the model has diverged'):
    list(Recommender(encoder, odd, {}, {}, 3).rank([asked]))


def recommend(
  encoder, output, path=None, time=TIME, report=print, score=by_ids
):
  # Without device: it is unknown.
  columns = {'user': 'user', 'timestamp': 'timestamp'}
  file = path and CandidateFile(path, columns, ['user'], ReadOptions(), time)
  recommender = Recommender(encoder, score, {}, {}, 4, num_slots=256)
  return recommend_file(
    encoder, recommender, file, time, output, {'k': 4}, report
  )


def test_all_users_of_the_dataset(dataset, encoder, tmp_path, monkeypatch):
  monkeypatch.setattr(module, 'USERS_A_PART', 64)
  output = tmp_path / 'best.parquet'
  told = []
  found = recommend(encoder, output, report=told.append)
  assert found['counts'] == {
    'users': 200,
    'unknown_users': 0,
    'without_history': 0,
    'rejected': 0,
  }
  assert told == [64, 128, 192, 200]
  table = pl.read_parquet(output)
  users = pl.read_parquet(dataset.path / 'users.parquet')['user']
  asked = Asked(
    np.arange(200, dtype=np.int32),
    np.zeros((200, 0), np.int32),
    np.full(200, TIME),
    {},
  )
  items, logits = expected_of(dataset, asked, 4, True)
  assert (
    table['user'].to_list() == users.gather(np.repeat(range(200), 4)).to_list()
  )
  assert table['recommended'].to_list() == dataset.raw_items(items.reshape(-1))
  assert np.array_equal(table['score'].to_numpy(), logits.reshape(-1))
  assert table['rank'].to_list() == [1, 2, 3, 4] * 200


def test_a_file_of_users_goes_on_where_it_stopped(
  encoder, tmp_path, monkeypatch
):
  monkeypatch.setattr(module, 'USERS_A_PART', 8)
  path = tmp_path / 'users.csv'
  lines = [f'u{n:03},phone' for n in (*range(30), 777)]
  path.write_text('\n'.join(['user,device', *lines]) + '\n')
  whole, output = tmp_path / 'whole.csv', tmp_path / 'out.csv'
  expected = recommend(encoder, whole, path)
  assert expected['counts']['users'] == 31
  assert expected['counts']['unknown_users'] == 1

  def stop(done):
    if done == 16:
      raise Interrupted('told to stop')

  with pytest.raises(Interrupted):
    recommend(encoder, output, path, report=stop)
  told = []
  assert recommend(encoder, output, path, report=told.append) == expected
  assert told == [8, 15]
  assert output.read_bytes() == whole.read_bytes()
  assert json.loads((tmp_path / 'out.csv.json').read_text())['k'] == 4
  assert not (tmp_path / 'out.csv.unfinished').exists()


def test_a_number_of_json_stays_a_number(encoder, tmp_path):
  path, output = tmp_path / 'users.jsonl', tmp_path / 'out.jsonl'
  lines = [{'user': 7, 'device': 'phone'}, {'user': 'u001', 'device': None}]
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  recommend(encoder, output, path)
  rows = [json.loads(line) for line in output.read_text().splitlines()]
  assert [row['user'] for row in rows] == [7] * 4 + ['u001'] * 4
  assert [row['rank'] for row in rows] == [1, 2, 3, 4] * 2


def test_an_interruption_of_the_join_loses_nothing(
  encoder, tmp_path, monkeypatch
):
  """Parts that are removed already are made again, each in its place."""
  monkeypatch.setattr(module, 'USERS_A_PART', 4)
  path, output = tmp_path / 'users.csv', tmp_path / 'out.csv'
  path.write_text(''.join(['user\n', *(f'u{n:03}\n' for n in range(32))]))
  recommend(encoder, output, path)
  expected = output.read_bytes()
  removed, unlink = [], Path.unlink

  def stop(self, *args, **settings):
    if self.name.startswith('part-'):
      if len(removed) == 3:
        raise Interrupted('told to stop')
      removed.append(self.name)
    unlink(self, *args, **settings)

  with monkeypatch.context() as patch:
    patch.setattr(Path, 'unlink', stop)
    with pytest.raises(Interrupted):
      recommend(encoder, output, path)
  recommend(encoder, output, path)
  assert output.read_bytes() == expected


def test_with_a_history_of_their_own(dataset, encoder):
  """What came with the request was had, and not what the log says."""
  from eain_jax.serving.encoder import Histories

  asked = Asked(
    np.array([0], np.int32),
    np.zeros((1, 0), np.int32),
    np.array([TIME]),
    {'device': np.full(1, 2, np.int32)},
  )
  given = dataclasses.replace(
    asked,
    histories=Histories(
      np.array([5, -1, 9], np.int32), np.array([1, 2, 3]), np.array([3])
    ),
  )
  [found] = Recommender(encoder, by_ids, {}, {}, 80).rank([given])
  assert set(range(80)) - set(found.item[0].tolist()) == {5, 9}
