"""What must hold of every model: its scores, its parameters, its gradients."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eain_jax.config import TrainConfig
from eain_jax.data.batches import make_eval_stream, make_train_stream
from eain_jax.errors import InputError
from eain_jax.layers.embedding import embed_batch
from eain_jax.models import MODELS, make_model
from eain_jax.training.optimizer import make_optimizer
from eain_jax.training.state import init_state
from eain_jax.training.step import make_score_step

NUM_CANDIDATES = 31


@dataclasses.dataclass(frozen=True)
class Case:
  """A small model with parameters of order one.

  Attributes:
    score: batch -> logits [R, C].
    train_gradients: batch -> (loss, gradients), in training mode.
  """

  score: Callable
  train_gradients: Callable


@pytest.fixture(scope='module')
def cases(dataset, small_config, state_shapes, randomized):
  """A Case by model name; each function compiles when it is first called."""
  batch = make_eval_stream(dataset, 'test', 3 * NUM_CANDIDATES).batch(0)

  def make(number, name):
    model = make_model(name, small_config(name))
    state = state_shapes(model, dataset, batch)
    params, stats = randomized(state, number)
    score = jax.jit(make_score_step(model, dataset.features))
    read = model.reads(dataset.features)

    def loss(params, batch):
      inputs = embed_batch(params['tables'], batch, read)
      logit, _ = model.apply(
        {'params': params['net'], 'stats': stats},
        inputs,
        train=True,
        rngs={'dropout': jax.random.key(0)},
        mutable=['stats'],
      )
      return jnp.square(logit - batch['label']).mean()

    gradients = jax.jit(jax.value_and_grad(loss))
    return Case(
      lambda batch: score(params, stats, batch),
      lambda batch: gradients(params, batch),
    )

  return {name: make(number, name) for number, name in enumerate(MODELS)}


def widened(batch, extra_events, extra_items):
  """The batch with more padding along N and U."""
  num_requests = len(batch['user'])
  pad = lambda x, n, value=0: np.concatenate(
    [x, np.full((n, *x.shape[1:]), value, x.dtype)]
  )
  return batch | {
    'items': {k: pad(v, extra_items) for k, v in batch['items'].items()},
    'history': pad(batch['history'], extra_events),
    'segment': pad(batch['segment'], extra_events, num_requests),
    'age': pad(batch['age'], extra_events),
  }


def assert_same_scores(found, expected):
  """Equal to 1e-6, of the largest logit where that is above one."""
  largest = max(1.0, float(np.abs(expected).max()))
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * largest)


@pytest.mark.parametrize('name', MODELS)
def test_scores_do_not_depend_on_padding(dataset, cases, name):
  score = cases[name].score
  batch = make_eval_stream(dataset, 'test', 3 * NUM_CANDIDATES).batch(1)
  expected = score(batch)
  assert expected.dtype == jnp.float32
  assert np.std(expected) > 0.1
  found = score(widened(batch, 777, 501))
  assert_same_scores(found, expected)


@pytest.mark.parametrize('name', MODELS)
def test_scores_do_not_depend_on_batch_size_or_neighbours(dataset, cases, name):
  score, results = cases[name].score, []
  for num_requests in (3, 200):
    stream = make_eval_stream(dataset, 'test', num_requests * NUM_CANDIDATES)
    scores = [
      score(stream.batch(number)) for number in range(-(-24 // num_requests))
    ]
    results.append(np.concatenate(scores)[:24])
  assert_same_scores(*results)
  # The same requests among others, in another order.
  packer = make_eval_stream(dataset, 'test', 3 * NUM_CANDIDATES).packer
  part = packer.part
  rows = np.array([17, 150, 4])
  items = np.concatenate(
    [dataset.item[part.event[rows]][:, None], part.candidates[rows]], axis=1
  )
  ones = np.ones(items.shape, np.float32)
  mixed = score(packer.pack(rows, items, ones, ones, 0))
  for place, row in ((0, 17), (2, 4)):
    assert_same_scores(mixed[place], results[0][row])


@pytest.mark.parametrize('name', MODELS)
def test_empty_histories_have_finite_scores_and_gradients(dataset, cases, name):
  """Of one request, and of all of a batch."""
  batch = make_train_stream(dataset, 500, seed=0).batch(0)
  segment = batch['segment']
  for empty in (segment == 2, segment >= 0):
    emptied = batch | {'segment': np.where(empty, 100, segment)}
    for leaf in jax.tree.leaves(cases[name].train_gradients(emptied)):
      assert np.isfinite(leaf).all()


# Parameters that no gradient can reach, with the reason. A softmax does not
# feel a shift of all scores.
UNREACHED = {'din': {"['net']['attention']['dense_2']['bias']"}}


@pytest.mark.parametrize('name', MODELS)
def test_a_gradient_reaches_every_parameter(dataset, cases, name):
  batch = make_train_stream(dataset, 500, seed=0).batch(0)
  _, grads = cases[name].train_gradients(batch)
  largest = {
    jax.tree_util.keystr(path): float(np.abs(leaf).max())
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
  }
  unreached = {path for path, value in largest.items() if value < 1e-8}
  assert unreached == UNREACHED.get(name, set())


ITEM, CONTEXT = (
  ['item', 'brand', 'tags'],
  ['hour', 'weekday', 'month', 'gap', 'device'],
)


@pytest.mark.parametrize(
  ('name', 'settings', 'expected'),
  [
    *((name, {}, ['user', *ITEM, *CONTEXT]) for name in MODELS if name != 'mf'),
    *(
      (name, {'use_user': False}, [*ITEM, *CONTEXT])
      for name in MODELS
      if name != 'mf'
    ),
    ('eain', {'use_context': False}, ['user', *ITEM]),
    ('mf', {}, ['user', 'item']),
    ('mf', {'use_user': False}, ['user', 'item']),
  ],
)
def test_a_table_for_each_feature_that_is_read_and_no_other(
  dataset, small_config, state_shapes, name, settings, expected
):
  batch = make_train_stream(dataset, 500, seed=0).batch(0)
  model = make_model(name, small_config(name, **settings))
  state = state_shapes(model, dataset, batch)
  assert sorted(state.params['tables']) == sorted(expected)
  # Once more, of those that are read.
  read = model.reads(dataset.features)
  assert [f.name for f in read] == expected
  assert model.reads(read) == read


@pytest.mark.parametrize(
  ('name', 'settings'),
  [
    *((name, {}) for name in ('dnn', 'din', 'deepfm', 'eain')),
    ('eain', {'match_dim': 6}),
  ],
)
def test_bfloat16_scores_stay_near(
  dataset, small_config, state_shapes, randomized, name, settings
):
  batch = make_eval_stream(dataset, 'test', 5 * NUM_CANDIDATES).batch(0)
  scores = []
  for dtype in ('float32', 'bfloat16'):
    model = make_model(
      name, small_config(name, compute_dtype=dtype, **settings)
    )
    params, stats = randomized(state_shapes(model, dataset, batch))
    score = jax.jit(make_score_step(model, dataset.features))
    scores.append(score(params, stats, batch))
    assert scores[-1].dtype == jnp.float32
  exact, found = np.asarray(scores)
  # A number keeps eight bits; the order of candidates survives.
  assert np.sqrt(np.mean((found - exact) ** 2)) < 0.05 * np.std(exact)


def test_an_unknown_model_is_a_sentence():
  with pytest.raises(InputError, match="model 'dnn2' is unknown: lr, mf, dnn"):
    make_model('dnn2')


def test_default_settings_are_those_of_the_model():
  for name, module in MODELS.items():
    model = make_model(name)
    assert type(model) is module
    assert model.axis_name is None


def describe(tree):
  """Name, shape and initial value of every leaf, a line each.

  The initial value is its constant, or ~ and its standard deviation.
  """
  lines = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = '/'.join(str(key.key) for key in path)
    leaf = np.asarray(leaf)
    constant = leaf.min() == leaf.max()
    start = f'{leaf.min():g}' if constant else f'~{leaf.std():.2f}'
    lines.append(f'{name} {"x".join(map(str, leaf.shape)) or "-"} {start}')
  return lines


# fields: user + 3 of the target + 3 of h_u + 5 of the context = 12; 66 pairs.
# 12 x 8 = 96; the head of EAIN: 96 + 66 x 8 + 6 + 4 = 634.
GOLDEN = """
lr: tables 1 wide
net/bias - 0
mf: tables 9 wide
net/bias - 0
dnn: tables 8 wide
net/mlp/dense_0/bias 16 0
net/mlp/dense_0/kernel 96x16 ~0.10
net/mlp/dense_1/bias 8 0
net/mlp/dense_1/kernel 16x8 ~0.25
net/mlp/logit/bias 1 0
net/mlp/logit/kernel 8x1 ~0.30
din: tables 8 wide
net/attention/activation_0/alpha 12 0
net/attention/activation_1/alpha 6 0
net/attention/bias 12 0
net/attention/dense_1/bias 6 0
net/attention/dense_1/kernel 12x6 ~0.28
net/attention/dense_2/bias 1 0
net/attention/dense_2/kernel 6x1 ~0.45
net/attention/kernel 96x12 ~0.14
net/mlp/dense_0/bias 16 0
net/mlp/dense_0/kernel 96x16 ~0.10
net/mlp/dense_1/bias 8 0
net/mlp/dense_1/kernel 16x8 ~0.25
net/mlp/logit/bias 1 0
net/mlp/logit/kernel 8x1 ~0.30
stats/attention/activation_0/count - 0
stats/attention/activation_0/mean 12 0
stats/attention/activation_0/variance 12 1
stats/attention/activation_1/count - 0
stats/attention/activation_1/mean 6 0
stats/attention/activation_1/variance 6 1
deepfm: tables 9 wide
net/mlp/dense_0/bias 16 0
net/mlp/dense_0/kernel 96x16 ~0.10
net/mlp/dense_1/bias 8 0
net/mlp/dense_1/kernel 16x8 ~0.25
net/mlp/logit/bias 1 0
net/mlp/logit/kernel 8x1 ~0.30
eain: tables 9 wide
net/attention/age 11x10 ~0.05
net/attention/rank 64x10 ~0.05
net/attention/v 10 ~0.11
net/attention/w1 24x10 ~0.25
net/attention/w2 24x10 ~0.25
net/attention/w3 24x10 ~0.25
net/mask_block/aggregation/bias 20 0
net/mask_block/aggregation/kernel 96x20 ~0.10
net/mask_block/norm/bias 8 0
net/mask_block/norm/scale 8 1
net/mask_block/projection/bias 528 1
net/mask_block/projection/kernel 20x528 ~0.22
net/mlp/dense_0/bias 16 0
net/mlp/dense_0/kernel 634x16 ~0.04
net/mlp/dense_1/bias 8 0
net/mlp/dense_1/kernel 16x8 ~0.25
net/mlp/logit/bias 1 0
net/mlp/logit/kernel 8x1 ~0.30
net/position_cross/kernel_0 6x6x6 ~0.19
net/position_cross/kernel_1 6x6x6 ~0.17
net/position_cross/norm_0/bias 6 0
net/position_cross/norm_0/scale 6 1
net/position_cross/norm_1/bias 6 0
net/position_cross/norm_1/scale 6 1
net/position_cross/projection/bias 6 0
net/position_cross/projection/kernel 24x6 ~0.21
net/squeeze_excitation/fc1/bias 4 0
net/squeeze_excitation/fc1/kernel 12x4 ~0.29
net/squeeze_excitation/fc2/bias 12 0
net/squeeze_excitation/fc2/kernel 4x12 ~0.51
"""


def test_parameters_are_those_that_checkpoints_hold(dataset, small_config):
  """Names, shapes, initial values of every model."""
  batch = make_eval_stream(dataset, 'test', 2 * NUM_CANDIDATES).batch(0)
  optimizer = make_optimizer(TrainConfig(), 1)

  @jax.jit
  def init_nets():
    nets = {}
    for name in MODELS:
      model = make_model(name, small_config(name))
      state = init_state(
        model, dataset.features, optimizer, batch, jax.random.key(0)
      )
      nets[name] = {'net': state.params['net'], 'stats': state.stats}
    return nets

  nets, text = init_nets(), []
  for name in MODELS:
    width = make_model(name, small_config(name)).table_width
    text += [f'{name}: tables {width} wide', *describe(nets[name])]
  assert '\n'.join(text) == GOLDEN.strip(), (
    'The parameters of a model have changed: older checkpoints cannot be '
    'restored, and measured tables no longer hold. If that was intended, put '
    'the new text here, raise ARITHMETIC_VERSION of training/run_folder.py, '
    'and say so in the commit.'
  )


@pytest.fixture(scope='module')
def eain_tree(dataset, small_config, state_shapes):
  """eain_tree(**settings): the model, and its shapes by name."""
  batch = make_eval_stream(dataset, 'test', 2 * NUM_CANDIDATES).batch(0)

  def make(**settings):
    model = make_model('eain', small_config('eain', **settings))
    net = state_shapes(model, dataset, batch).params['net']
    return model, {
      '/'.join(key.key for key in path): leaf.shape
      for path, leaf in jax.tree_util.tree_leaves_with_path(net)
    }

  return make


# Settings, modules or parameters that go and that come, the width of the head.
SWITCHES = {
  'no_attention': ({'use_attention': False}, ['attention'], [], 634),
  'no_softmax': ({'use_softmax': False}, [], [], 634),
  # 7 fields, 21 pairs.
  'no_context': ({'use_context': False}, [], [], 7 * 8 + 21 * 8 + 10),
  'no_product': ({'attention_product': False}, ['attention/w3'], [], 634),
  'no_recency': (
    {'attention_recency': 'none'},
    ['attention/age', 'attention/rank'],
    [],
    634,
  ),
  'rank_alone': ({'attention_recency': 'rank'}, ['attention/age'], [], 634),
  'no_se': ({'use_se': False}, ['squeeze_excitation'], [], 634),
  'no_mask': ({'use_mask_block': False}, ['mask_block'], [], 106),
  'no_mask_norm': ({'mask_norm': False}, ['mask_block/norm'], [], 634),
  'no_paim': ({'use_paim': False}, ['position_cross'], [], 624),
  'no_paim_norm': (
    {'paim_norm': False},
    ['position_cross/norm_0', 'position_cross/norm_1'],
    [],
    634,
  ),
  # f^(0) is h_u itself, 3 x 8 wide.
  'paim_as_printed': (
    {'paim_dim': 0},
    ['position_cross/projection'],
    [],
    624 + 24 + 4,
  ),
  'one_layer': (
    {'paim_layers': 1},
    ['position_cross/kernel_1', 'position_cross/norm_1'],
    [],
    634,
  ),
  'learned': (
    {'position': 'learned'},
    [],
    ['position_cross/position'],
    634,
  ),
  'no_position': ({'position': 'none'}, [], [], 630),
  # Added after the MLP, so the head stays.
  'match': ({'match_dim': 4}, [], ['user_match'], 634),
  'no_user': ({'use_user': False}, [], [], 11 * 8 + 55 * 8 + 10),
  'all_off': (
    {
      'use_attention': False,
      'use_se': False,
      'use_mask_block': False,
      'use_paim': False,
    },
    ['attention', 'squeeze_excitation', 'mask_block', 'position_cross'],
    [],
    96,
  ),
}


@pytest.mark.parametrize('switch', list(SWITCHES))
def test_a_switch_of_eain_moves_its_parameters_alone(eain_tree, switch):
  settings, gone, come, head = SWITCHES[switch]
  _, whole = eain_tree()
  _, found = eain_tree(**settings)
  under = lambda path, names: any(
    path == name or path.startswith(name + '/') for name in names
  )
  assert all(any(under(path, [name]) for path in whole) for name in gone)
  assert all(any(under(path, [name]) for path in found) for name in come)
  assert {p for p in found if not under(p, come)} == {
    p for p in whole if not under(p, gone)
  }
  assert found['mlp/dense_0/kernel'] == (head, 16)


def test_the_match_has_a_hidden_layer_twice_its_width(eain_tree):
  _, tree = eain_tree(match_dim=4)
  found = {k: v for k, v in tree.items() if k.startswith('user_match/')}
  # An event is 3 x 8 wide, and the context 5 x 8.
  assert found == {
    'user_match/hidden/kernel': (3 * 8 + 5 * 8, 8),
    'user_match/hidden/bias': (8,),
    'user_match/user/kernel': (8, 4),
    'user_match/user/bias': (4,),
    'user_match/target/kernel': (3 * 8, 4),
  }


def test_the_linear_term_is_a_column_of_the_tables(eain_tree):
  with_linear, tree = eain_tree()
  without, other = eain_tree(use_linear=False)
  assert (with_linear.table_width, without.table_width) == (9, 8)
  assert tree == other


def test_every_setting_of_eain_is_in_a_switch_or_is_a_size():
  """A new setting must come with its case."""
  sizes = {
    *('embedding_dim', 'attention_dim', 'mask_hidden_dim', 'position_dim'),
    *('se_reduction', 'mlp', 'activation', 'dropout', 'compute_dtype'),
    *('table_stddev', 'table_l2', 'paim_input', 'use_linear'),
  }
  tested = {name for settings, *_ in SWITCHES.values() for name in settings}
  config = make_model('eain').config
  names = {field.name for field in dataclasses.fields(config)}
  assert names == sizes | tested
