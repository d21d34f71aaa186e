"""Every model again in numpy, one example at a time, from its definition."""

import jax
import numpy as np
import pytest

from eain_jax.data.batches import make_eval_stream
from eain_jax.models import make_model
from eain_jax.models.deepfm import fm_second_order
from eain_jax.training.step import make_score_step

NUM_REQUESTS, NUM_CANDIDATES = 6, 4


@pytest.fixture(scope='module')
def batch(dataset):
  """Six requests of four candidates; the second has no history."""
  batch = make_eval_stream(
    dataset, 'test', NUM_REQUESTS * NUM_CANDIDATES, NUM_CANDIDATES - 1
  ).batch(3)
  assert batch['target'].shape == (NUM_REQUESTS, NUM_CANDIDATES)
  segment = batch['segment']
  return batch | {'segment': np.where(segment == 1, NUM_REQUESTS, segment)}


def vector(tables, feature, value):
  """The mean of the rows of the values that there are; else zeros."""
  table = np.asarray(tables[feature.name], np.float64)
  rows = [table[v] for v in np.atleast_1d(value) if v != 0]
  return np.mean(rows, axis=0) if rows else np.zeros(table.shape[1])


def examples(tables, batch, features):
  """(user, target parts, history of parts, context parts, t, ages).

  Of what has no table there are none: the user is None, context is empty.
  """
  features = [f for f in features if f.name in tables]
  of_kind = lambda kind: [f for f in features if f.kind == kind]
  parts = lambda item: [
    vector(tables, f, batch['items'][f.name][item]) for f in of_kind('item')
  ]
  for r in range(NUM_REQUESTS):
    user = None
    for feature in of_kind('user'):
      user = vector(tables, feature, batch['user'][r])
    context = [
      vector(tables, f, batch['context'][f.name][r]) for f in of_kind('context')
    ]
    history = [
      parts(batch['history'][n]) for n in np.flatnonzero(batch['segment'] == r)
    ]
    ages = batch['age'][batch['segment'] == r]
    for c in range(NUM_CANDIDATES):
      target = parts(batch['target'][r, c])
      yield user, target, history, context, batch['position'][r], ages


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def dense(params, x):
  return x @ params['kernel'].astype(np.float64) + params['bias']


def layer_norm(params, x):
  x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
  return x * params['scale'] + params['bias']


def relu(x):
  return np.maximum(x, 0)


def run_mlp(params, x):
  x = relu(dense(params['dense_0'], x))
  x = relu(dense(params['dense_1'], x))
  return dense(params['logit'], x)[0]


def mean_of_parts(history, num_parts, width):
  if not history:
    return [np.zeros(width)] * num_parts
  return [np.mean([e[a] for e in history], axis=0) for a in range(num_parts)]


def with_user(config, user, fields):
  return [user, *fields] if config.use_user else fields


def first_order(config, user, target, history, context, column):
  pooled = mean_of_parts(history, len(target), len(target[0]))
  fields = with_user(config, user, [*target, *pooled, *context])
  return sum(v[column] for v in fields)


def cut(example, dim):
  """The example without the column of first-order weights."""
  user, target, history, context, t, ages = example
  return (
    None if user is None else user[:dim],
    [v[:dim] for v in target],
    [[v[:dim] for v in event] for event in history],
    [v[:dim] for v in context],
    t,
    ages,
  )


def lr_logit(config, params, stats, example):
  user, target, history, context, *_ = example
  return params['bias'] + first_order(config, user, target, history, context, 0)


def mf_logit(config, params, stats, example):
  p_u, q_i = example[0], example[1][0]
  return params['bias'] + p_u[-1] + q_i[-1] + p_u[:-1] @ q_i[:-1]


def dnn_logit(config, params, stats, example):
  user, target, history, context, *_ = example
  pooled = mean_of_parts(history, len(target), len(target[0]))
  return run_mlp(
    params['mlp'],
    np.concatenate(with_user(config, user, [*target, *pooled, *context])),
  )


def deepfm_logit(config, params, stats, example):
  user, target, history, context, *_ = cut(example, config.embedding_dim)
  pooled = mean_of_parts(history, len(target), len(target[0]))
  fields = with_user(config, user, [*target, *pooled, *context])
  second = sum(
    fields[i] @ fields[j]
    for i in range(len(fields))
    for j in range(i + 1, len(fields))
  )
  first = first_order(config, *example[:4], config.embedding_dim)
  return first + second + run_mlp(params['mlp'], np.concatenate(fields))


def softmax(scores):
  weights = np.exp(np.array(scores) - max(scores))
  return weights / weights.sum()


def pool(scores, history, target):
  """h_u in the parts of an event, from the scores of the events."""
  width = len(np.concatenate(target))
  h_u = np.zeros(width)
  for score, event in zip(scores, history, strict=True):
    h_u += score * np.concatenate(event)
  return h_u, np.split(h_u, len(target))


def din_logit(config, params, stats, example):
  user, target, history, context, *_ = example
  unit, unit_stats = params['attention'], stats['attention']

  def dice(number, x):
    stat, name = unit_stats[f'activation_{number}'], f'activation_{number}'
    p = sigmoid((x - stat['mean']) / np.sqrt(stat['variance'] + 1e-8))
    return p * x + (1 - p) * unit[name]['alpha'] * x

  q, scores = np.concatenate(target), []
  for event in history:
    k = np.concatenate(event)
    x = np.concatenate([q, k, q - k, q * k]) @ unit['kernel']
    x = dice(0, x + unit['bias'])
    x = dice(1, dense(unit['dense_1'], x))
    scores.append(dense(unit['dense_2'], x)[0])
  if history and config.attention_softmax:
    scores = softmax(scores)
  _, h_parts = pool(scores, history, target)
  return run_mlp(
    params['mlp'],
    np.concatenate(with_user(config, user, [*target, *h_parts, *context])),
  )


def eain_logit(config, params, stats, example):
  dim = config.embedding_dim
  if not config.use_context:
    example = (*example[:3], [], *example[4:])
  user, target, history, context, t, ages = cut(example, dim)
  # (1) to (3).
  attention, x_star = params['attention'], np.concatenate(target)
  scores = []
  for place, event in enumerate(history):
    x_t = np.concatenate(event)
    inside = x_t @ attention['w1'] + x_star @ attention['w2']
    if config.attention_product:
      inside = inside + (x_t * x_star) @ attention['w3']
    if 'rank' in config.attention_recency:
      inside = inside + attention['rank'][len(history) - 1 - place]
    if 'age' in config.attention_recency:
      inside = inside + attention['age'][ages[place]]
    scores.append(np.tanh(inside) @ attention['v'])
  if history and config.use_softmax:
    scores = softmax(scores)
  h_u, h_parts = pool(scores, history, target)
  fields = np.stack(with_user(config, user, [*target, *h_parts, *context]))
  raw = fields.reshape(-1)
  # (5) and (6).
  se = params['squeeze_excitation']
  gate = dense(se['fc2'], relu(dense(se['fc1'], fields.mean(axis=1))))
  fields = sigmoid(gate)[:, None] * fields
  # (4).
  block = params['mask_block']
  mask = dense(block['projection'], relu(dense(block['aggregation'], raw)))
  pairs = []
  for i in range(len(fields)):
    for j in range(i + 1, len(fields)):
      m_ij = mask[len(pairs) * dim : (len(pairs) + 1) * dim]
      pair = fields[i] * m_ij * fields[j]
      if config.mask_norm:
        pair = layer_norm(block['norm'], pair)
      pairs.append(pair)
  # (7) to (12).
  paim = params['position_cross']
  f = h_u
  if config.paim_input == 'history_and_target':
    f = np.concatenate([h_u, x_star])
  if config.paim_dim:
    f = dense(paim['projection'], f)
  for layer in range(config.paim_layers):
    outer = np.outer(f, f)
    kernel = paim[f'kernel_{layer}']
    f = relu(np.array([np.sum(w * outer) for w in kernel]))
    if config.paim_norm:
      f = layer_norm(paim[f'norm_{layer}'], f)
  width = config.position_dim
  angles = [t / 10_000 ** (2 * i / width) for i in range(width)]
  if config.position == 'sinusoidal':
    p_t = [np.cos(a) if i % 2 else np.sin(a) for i, a in enumerate(angles)]
  elif config.position == 'learned':
    p_t = paim['position'][t]
  else:
    p_t = []
  logit = run_mlp(
    params['mlp'], np.concatenate([fields.reshape(-1), *pairs, f, p_t])
  )
  if config.match_dim:
    match = params['user_match']
    q = sum((np.concatenate(event) for event in history), np.zeros(len(x_star)))
    q = q / max(1, len(history)) ** 0.5
    x = dense(match['hidden'], 4 * np.concatenate([q, *context]))
    u = dense(match['user'], relu(x))
    logit += 3 * u @ (x_star @ match['target']['kernel'])
  if config.use_linear:
    logit += first_order(config, *example[:4], dim)
  return logit


LOGITS = {
  'lr': lr_logit,
  'mf': mf_logit,
  'dnn': dnn_logit,
  'deepfm': deepfm_logit,
  'din': din_logit,
  'eain': eain_logit,
}
AS_PRINTED = {
  'attention_product': False,
  'attention_recency': 'none',
  'mask_norm': False,
  'paim_norm': False,
  'paim_dim': 0,
  'use_linear': False,
  'use_user': False,
}
CASES = {
  **{name: (name, {}) for name in LOGITS},
  **{
    f'{name}_no_user': (name, {'use_user': False})
    for name in LOGITS
    if name != 'eain'
  },
  'din_raw_scores': ('din', {'attention_softmax': False}),
  'eain_as_printed': ('eain', AS_PRINTED),
  'eain_learned': (
    'eain',
    {'paim_input': 'history_and_target', 'position': 'learned'},
  ),
  'eain_raw_scores': ('eain', {'use_softmax': False}),
  'eain_rank': ('eain', {'attention_recency': 'rank'}),
  'eain_no_context': ('eain', {'use_context': False}),
  'eain_match': ('eain', {'match_dim': 5}),
  'eain_match_no_context': ('eain', {'match_dim': 5, 'use_context': False}),
  'eain_no_position': ('eain', {'position': 'none', 'paim_layers': 3}),
}


@pytest.mark.parametrize('case', list(CASES))
def test_logits_are_those_of_the_definition(
  dataset, batch, small_config, state_shapes, randomized, case
):
  name, settings = CASES[case]
  config = small_config(name, **settings)
  model = make_model(name, config)
  params, stats = randomized(state_shapes(model, dataset, batch))
  found = jax.jit(make_score_step(model, dataset.features))(
    params, stats, batch
  )
  expected = [
    LOGITS[name](config, params['net'], stats, example)
    for example in examples(params['tables'], batch, dataset.features)
  ]
  expected = np.reshape(expected, (NUM_REQUESTS, NUM_CANDIDATES))
  assert expected.std() > 0.1  # else anything near 0 would pass
  np.testing.assert_allclose(found, expected, rtol=5e-5, atol=5e-5)


def test_fm_term_is_the_sum_over_pairs():
  fields = np.random.default_rng(0).normal(size=(7, 5, 3)).astype(np.float32)
  expected = [
    sum(f[i] @ f[j] for i in range(5) for j in range(i + 1, 5))
    for f in fields.astype(np.float64)
  ]
  np.testing.assert_allclose(fm_second_order(fields), expected, atol=1e-5)
