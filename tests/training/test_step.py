"""The training step: by hand for LR, and what must hold of every step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eain_jax.config import TrainConfig
from eain_jax.data.batches import make_eval_stream, make_train_stream
from eain_jax.evaluation import metrics
from eain_jax.evaluation.evaluator import score_part
from eain_jax.models import make_model
from eain_jax.training.optimizer import make_optimizer
from eain_jax.training.setup import set_up
from eain_jax.training.state import init_state
from eain_jax.training.step import (
  make_score_step,
  make_train_step,
  shuffle_within_batch,
)

BATCH_SIZE = 500  # 100 requests of 5; 1442 requests, so 42 in the last batch


def lr_loss_and_gradients(params, batch, features):
  """Mean BCE of logistic regression over weights, and its exact gradients."""
  tables, bias = params
  grads = {name: np.zeros_like(table) for name, table in tables.items()}
  of_kind = lambda kind: [f for f in features if f.kind == kind]
  num_requests, num_candidates = batch['label'].shape
  history = [
    batch['history'][batch['segment'] == r] for r in range(num_requests)
  ]
  total_weight, loss, bias_grad = batch['weight'].sum(), 0.0, 0.0

  def item_terms(item, share):
    for feature in of_kind('item'):
      ids = np.atleast_1d(batch['items'][feature.name][item])
      ids = ids[ids > 0]
      yield from ((feature.name, i, share / len(ids)) for i in ids)

  for r in range(num_requests):
    request_terms = [('user', batch['user'][r], 1.0)]
    for feature in of_kind('context'):
      context = batch['context'][feature.name][r]
      request_terms.append((feature.name, context, 1.0))
    for item in history[r]:
      request_terms += item_terms(item, 1 / len(history[r]))
    for c in range(num_candidates):
      weight, y = batch['weight'][r, c], batch['label'][r, c]
      if weight == 0:
        continue
      terms = [*request_terms, *item_terms(batch['target'][r, c], 1.0)]
      logit = bias + sum(x * tables[name][i, 0] for name, i, x in terms)
      p = 1 / (1 + np.exp(-logit))
      share = weight / total_weight
      loss -= share * (y * np.log(p) + (1 - y) * np.log(1 - p))
      bias_grad += share * (p - y)
      for name, i, x in terms:
        grads[name][i, 0] += share * (p - y) * x
  return loss, (grads, bias_grad)


def test_sgd_on_logistic_regression_is_the_closed_form(dataset, small_config):
  """Three steps, the last one on the uneven batch, with both penalties."""
  l2, table_l2, rate = 1e-3, 2e-3, 0.7
  config = TrainConfig(optimizer='sgd', learning_rate=rate, l2=l2, clip_norm=0)
  stream = make_train_stream(dataset, BATCH_SIZE, seed=0)
  batches = [stream.batch(number) for number in (0, 1, 14)]
  assert [batch['weight'].sum() for batch in batches] == [500, 500, 210]
  model = make_model('lr', small_config('lr', table_l2=table_l2))
  optimizer = make_optimizer(config, 1_000)
  state = init_state(
    model, dataset.features, optimizer, batches[0], jax.random.key(0)
  )
  step = make_train_step(model, dataset.features, optimizer, config)
  tables = {
    name: np.asarray(table, np.float64)
    for name, table in state.params['tables'].items()
  }
  bias, step = 0.0, jax.jit(step)
  for batch in batches:
    loss, (grads, bias_grad) = lr_loss_and_gradients(
      (tables, bias), batch, dataset.features
    )
    squares = sum(np.square(table).sum() for table in tables.values())
    total = loss + (l2 + table_l2) * squares + l2 * bias**2
    for name, table in tables.items():
      grads[name] += 2 * (l2 + table_l2) * table
      tables[name] = table - rate * grads[name]
    bias_grad += 2 * l2 * bias
    bias -= rate * bias_grad
    norm = np.sqrt(
      sum(np.square(grad).sum() for grad in grads.values()) + bias_grad**2
    )
    state, found = step(state, batch)
    assert float(found['loss']) == pytest.approx(loss, rel=1e-6)
    assert float(found['total_loss']) == pytest.approx(total, rel=1e-6)
    assert float(found['gradient_norm']) == pytest.approx(norm, rel=1e-5)
    for name, table in tables.items():
      np.testing.assert_allclose(state.params['tables'][name], table, atol=1e-6)
    assert float(state.params['net']['bias']) == pytest.approx(bias, abs=1e-6)
  assert int(state.step) == 3
  # Padding rows have moved nowhere; every real row of a used feature has.
  assert not tables['item'][0].any()
  assert not np.asarray(state.params['tables']['item'][0]).any()


@pytest.mark.parametrize('clip', [0.0, 1e-3, 1e3])
def test_clipping_scales_the_whole_gradient(dataset, small_config, clip):
  """SGD moves by the rate times the gradient, cut to the norm that is allowed.

  The norm counts the penalty's gradient too.
  """
  steps = []
  stream = make_train_stream(dataset, BATCH_SIZE, seed=0)
  model = make_model('lr', small_config('lr', table_l2=0.1))
  for clip_norm in (0.0, clip):
    config = TrainConfig(
      optimizer='sgd', learning_rate=1.0, clip_norm=clip_norm
    )
    optimizer = make_optimizer(config, 10)
    state = init_state(
      model, dataset.features, optimizer, stream.batch(0), jax.random.key(0)
    )
    step = make_train_step(model, dataset.features, optimizer, config)
    after, found = jax.jit(step)(state, stream.batch(0))
    moved = jax.tree.map(lambda a, b: a - b, after.params, state.params)
    steps.append((moved, float(found['gradient_norm'])))
  (free, norm), (clipped, same_norm) = steps
  assert same_norm == norm
  scale = min(1.0, clip / norm) if clip else 1.0
  assert (scale < 1) == (clip == 1e-3)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(b, scale * a, atol=1e-7),
    free,
    clipped,
  )


@pytest.fixture(scope='module')
def dnn(dataset, small_config, random_state):
  """A small DNN with dropout: its state, its step, its batches."""
  config = TrainConfig(learning_rate=0.01)
  stream = make_train_stream(dataset, BATCH_SIZE, seed=0)
  model = make_model('dnn', small_config('dnn', dropout=0.5, table_l2=0.01))
  optimizer = make_optimizer(config, 1_000)
  state = random_state(model, dataset, stream.batch(0), optimizer)
  step = make_train_step(model, dataset.features, optimizer, config)
  return state, jax.jit(step), stream


def assert_equal_states(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_step_is_a_pure_function(dnn):
  """The same state and batch give the same bits: resume depends on it."""
  state, step, stream = dnn
  first = step(state, stream.batch(3))
  again = step(state, stream.batch(3))
  assert_equal_states(first, again)


def test_examples_without_weight_change_nothing(dnn):
  """Whatever label they carry."""
  state, step, stream = dnn
  batch = stream.batch(0)
  weight = batch['weight'].copy()
  weight[:, 2], weight[7:9] = 0, 0
  label = batch['label'].copy()
  label[weight == 0] = 1 - label[weight == 0]
  a = step(state, batch | {'weight': weight})
  b = step(state, batch | {'weight': weight, 'label': label})
  assert_equal_states(a, b)
  # Doubling every weight leaves the mean as it is.
  c = step(state, batch | {'weight': 2 * weight})
  assert float(c[1]['loss']) == pytest.approx(float(a[1]['loss']), rel=1e-6)


def test_what_skip_above_drops_is_in_no_statistic(
  dataset, small_config, random_state
):
  """Of Dice: neither its mean and variance nor, through them, a gradient."""
  config = TrainConfig(optimizer='sgd', learning_rate=1.0, clip_norm=0.0)
  settings = small_config('din', attention_activation='dice', activation='dice')
  settings = dataclasses.replace(settings, dropout=0.0, table_l2=0.0)
  model = make_model('din', settings)
  optimizer = make_optimizer(config, 10)
  step = jax.jit(make_train_step(model, dataset.features, optimizer, config))
  batch = make_train_stream(dataset, BATCH_SIZE, seed=0).batch(0)
  state = random_state(model, dataset, batch, optimizer)
  weight, target = batch['weight'].copy(), batch['target'].copy()
  weight[:, 2:] = 0
  other = target.copy()
  other[:, 2:] = np.roll(target[:, 2:], 1, axis=0)
  assert (other != target).any()
  a = step(state, batch | {'weight': weight})
  b = step(state, batch | {'weight': weight, 'target': other})
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
    (a[0].params, a[0].stats),
    (b[0].params, b[0].stats),
  )
  c = step(state, batch | {'target': other})
  assert any(
    not np.allclose(x, y, rtol=1e-4, atol=1e-5)
    for x, y in zip(
      jax.tree.leaves(a[0].stats), jax.tree.leaves(c[0].stats), strict=True
    )
  )


def test_dropout_follows_the_step_and_the_seed(dnn):
  state, step, stream = dnn
  batch = stream.batch(0)
  losses = [
    float(step(state.replace(step=jnp.int32(s)), batch)[1]['loss'])
    for s in (0, 1, 2, 0)
  ]
  assert len(set(losses)) == 3
  assert losses[0] == losses[3]
  other = dataclasses.replace(stream, seed=2**32 - 1)
  bits = jax.random.key_data(jax.random.key(2**32 - 1))
  np.testing.assert_array_equal(other.key, bits)
  assert other.batch(0)['key'].tolist() != batch['key'].tolist()
  found = float(step(state, batch | {'key': other.key})[1]['loss'])
  assert found not in losses


def test_runs_of_all_seeds_are_one_program(dataset, small_config):
  """A seed is no constant of it: the cache has it for the next one."""
  settings, programs = small_config('dnn', dropout=0.5), set()
  batch = make_train_stream(dataset, BATCH_SIZE, seed=0).batch(0)
  for seed in (0, 1):
    made = set_up(dataset, 'dnn', settings, TrainConfig(seed=seed))
    lowered = made.train_step.lower(made.state_shapes, batch)
    programs.add(lowered.as_text())
  assert len(programs) == 1


def test_the_penalty_is_in_the_total_loss_alone(dnn):
  state, step, stream = dnn
  squares = sum(
    np.square(np.asarray(table, np.float64)).sum()
    for table in state.params['tables'].values()
  )
  _, found = step(state, stream.batch(0))
  difference = float(found['total_loss']) - float(found['loss'])
  assert difference == pytest.approx(0.01 * squares, rel=1e-5)


def test_shuffled_labels_stay_in_their_request():
  label = np.zeros((4_000, 5), np.float32)
  label[:, 0] = 1
  shuffled = np.asarray(shuffle_within_batch(jax.random.key(0), label))
  np.testing.assert_array_equal(shuffled.sum(1), 1)
  # The positive is anywhere, a fifth of the time each: within five errors.
  np.testing.assert_allclose(
    shuffled.mean(0), 0.2, atol=5 * np.sqrt(0.2 * 0.8 / 4_000)
  )


def test_labels_of_single_examples_are_shuffled_over_the_batch():
  label = np.zeros((4_000, 1), np.float32)
  label[:1_000] = 1
  shuffled = np.asarray(shuffle_within_batch(jax.random.key(0), label))
  assert shuffled.sum() == 1_000
  assert shuffled[:1_000].mean() == pytest.approx(0.25, abs=0.06)


def train_and_test(dataset, model, config, num_steps, make_state):
  """The losses of the steps, and the test AUC."""
  stream = make_train_stream(dataset, BATCH_SIZE, config.seed)
  optimizer = make_optimizer(config, num_steps)
  state = make_state(model, dataset, stream.batch(0), optimizer)
  step = make_train_step(model, dataset.features, optimizer, config)
  step = jax.jit(step, donate_argnums=0)
  losses = []
  for number in range(num_steps):
    state, found = step(state, stream.batch(number))
    losses.append(float(found['loss']))
  score = jax.jit(make_score_step(model, dataset.features))
  scored = score_part(
    lambda batch: score(state.params, state.stats, batch),
    make_eval_stream(dataset, 'test', 6_200),
  )
  return losses, metrics.auc(scored.label, scored.logit)


@pytest.mark.parametrize('name', ['dnn', 'din', 'deepfm', 'eain'])
def test_training_learns(dataset, small_config, random_state, name):
  """Users take 80 % of their items from their own quarter of them.

  So the best AUC is well above .8, and a model that knows no user by item
  stays at .5: one in five is positive, which has an entropy of .500.
  """
  config = TrainConfig(learning_rate=0.02)
  settings = {'dropout': 0.0, 'mlp': (32, 16), 'table_l2': 0.0}
  model = make_model(name, small_config(name, **settings))
  losses, auc = train_and_test(dataset, model, config, 120, random_state)
  assert np.mean(losses[-15:]) < 0.45
  assert auc > 0.7


@pytest.mark.parametrize('name', ['lr', 'mf'])
def test_the_linear_models_fit_what_they_can(
  dataset, small_config, random_state, name
):
  """LR has a weight an item; MF about ten events to learn a user from."""
  config = TrainConfig(learning_rate=0.02)
  model = make_model(name, small_config(name, table_l2=0.0))
  losses, _ = train_and_test(dataset, model, config, 60, random_state)
  assert np.mean(losses[-15:]) < 0.51
  assert losses[0] > 0.6


def test_shuffled_labels_teach_nothing(dataset, small_config, random_state):
  """The model and the steps that reach .7 above, told labels by chance."""
  config = TrainConfig(learning_rate=0.02, shuffle_labels=True)
  settings = {'dropout': 0.0, 'mlp': (32, 16), 'table_l2': 0.0}
  model = make_model('deepfm', small_config('deepfm', **settings))
  _, auc = train_and_test(dataset, model, config, 120, random_state)
  # What it learned by heart is noise, the same for many users: the error of
  # the AUC is several times that of 200 independent ones, .02.
  assert auc == pytest.approx(0.5, abs=0.08)
