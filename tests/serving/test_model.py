"""A loaded model against the binaries' own path, and what it refuses."""

import numpy as np
import pytest

import eain_jax
from eain_jax.config import DnnConfig, TrainConfig
from eain_jax.data.batches import make_eval_stream
from eain_jax.errors import InputError
from eain_jax.evaluation.evaluator import score_part
from eain_jax.training import loop


@pytest.fixture(scope='module')
def work_dir(dataset, tmp_path_factory):
  folder = tmp_path_factory.mktemp('loaded') / 'run'
  model = DnnConfig(embedding_dim=4, mlp=(8,))
  train = TrainConfig(epochs=1, batch_size=512)
  loop.fit(dataset, 'dnn', model, train, folder)
  return folder


@pytest.fixture(scope='module')
def model(work_dir):
  return eain_jax.load_model(work_dir)


def test_the_scores_are_those_of_the_evaluation(dataset, model):
  run, part = model.run, dataset.parts['test']
  step = run.score_step()
  expected = score_part(
    lambda batch: step(run.params, run.stats, batch),
    make_eval_stream(run.dataset, 'test', 4096),
  ).logit.reshape(len(part), -1)
  users = dataset.events_table()['user'].gather(part.event).to_list()
  device = dataset.context_ids['device'][part.event]
  value_of = dataset.values_of('device', device)
  for place in (0, 7):
    items = dataset.item[part.event]
    if place:
      items = part.candidates[:, place - 1]
    found = model.score(
      users,
      dataset.raw_items(items),
      dataset.timestamp[part.event].tolist(),
      {'device': [value_of[i] for i in device.tolist()]},
    )
    np.testing.assert_allclose(found, expected[:, place], atol=1e-6)
  for size in (1, 7):
    some = model.score(
      users[:size],
      dataset.raw_items(items[:size]),
      dataset.timestamp[part.event][:size],
      {'device': [value_of[i] for i in device.tolist()][:size]},
    )
    np.testing.assert_allclose(some, expected[:size, 7], atol=1e-6)


def test_recommendations_are_the_best_of_all_scores(dataset, model):
  items = dataset.raw_items(np.arange(dataset.num_items))
  users = ['u003', 'nobody']
  found = model.recommend(users, 5)
  had = dataset.events_table().filter(user='u003')['item'].to_list()
  for user, of_user in zip(users, found, strict=True):
    left = [i for i in items if user == 'nobody' or i not in had]
    scores = model.score([user] * len(left), left)
    best = np.argsort(-scores, kind='stable')[:5]
    assert [name for name, _ in of_user] == [left[i] for i in best]
    np.testing.assert_allclose(
      [logit for _, logit in of_user], scores[best], atol=1e-6
    )
  # As numpy has a number, and of sizes that share a program.
  assert model.recommend(users, np.int64(3)) == [of[:3] for of in found]
  [everything] = model.recommend(['u003'], 1000, leave_out_had=False)
  assert len(everything) == dataset.num_items
  [others] = model.recommend(['u003'], 1000)
  assert len(others) == dataset.num_items - len(set(had))


def test_arrays_of_numpy_are_what_they_hold(model):
  expected = model.score(
    ['u001', '2'], ['i01', 'i02'], [9, 9], {'device': [1, 'x']}
  )
  found = model.score(
    np.array(['u001', '2']),
    np.array(['i01', 'i02']),
    np.array([9, 9]),
    {'device': np.array([1, 'x'], object)},
  )
  np.testing.assert_array_equal(found, expected)
  numbers = {'device': np.array([1, 2])}
  model.score(['u001', 'u002'], ['i01', 'i02'], context=numbers)


def test_nothing_asked_is_nothing_answered(model):
  assert model.score([], []).shape == (0,)
  assert model.recommend([]) == []


def test_what_cannot_be_asked_is_a_sentence(model):
  for call, message in [
    (lambda: model.score(['u001'], []), '1 users, but 0 of items'),
    (lambda: model.score(['u001'], ['i01'], [1, 2]), '2 of timestamps'),
    (
      lambda: model.score(['u001'], ['i01'], context={'colour': ['red']}),
      "'colour' is no context of the model: device",
    ),
    (lambda: model.recommend(['u001'], 0), 'k=0 must be at least 1'),
    (
      lambda: model.recommend(['u001'], context={'device': []}),
      '0 of device',
    ),
  ]:
    with pytest.raises(InputError, match=message):
      call()


def test_the_package_has_no_other_names():
  with pytest.raises(AttributeError, match='no_such'):
    getattr(eain_jax, 'no_such')  # noqa: B009
