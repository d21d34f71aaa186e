"""Equations (1) to (3) and DIN's unit against loops over padded histories."""

import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from eain_jax.layers import attention
from eain_jax.layers.attention import ActivationUnit, AdditiveAttention

B, T, C, E, H = 5, 6, 3, 4, 7
LENGTHS = (6, 0, 1, 3, 2)


def softmax(scores):
  weights = [np.exp(e - max(scores)) for e in scores]
  return [w / sum(weights) for w in weights]


def random_inputs(seed=0, scale=1.0):
  """history [B, T, E], mask [B, T] with LENGTHS, target [B, C, E], weights."""
  rng = np.random.default_rng(seed)
  history_BTE = rng.normal(size=(B, T, E)) * scale
  target_BCE = rng.normal(size=(B, C, E)) * scale
  mask_BT = np.zeros((B, T), bool)
  for b, length in enumerate(LENGTHS):
    # Real events stand anywhere in the row.
    mask_BT[b, rng.permutation(T)[:length]] = True
  params = {
    'w1': rng.normal(size=(E, H)),
    'w2': rng.normal(size=(E, H)),
    'v': rng.normal(size=H),
    'w3': rng.normal(size=(E, H)),
  }
  return history_BTE, mask_BT, target_BCE, params


def reference(history_BTE, mask_BT, target_BCE, score):
  """(1) and (3), one example at a time; score(x_t, x*) is (2)."""
  h_u_BCE = np.zeros((B, C, E))
  for b in range(B):
    events = [history_BTE[b, t] for t in range(T) if mask_BT[b, t]]
    for c in range(C if events else 0):
      scores = [score(x_t, target_BCE[b, c]) for x_t in events]
      for alpha_t, x_t in zip(softmax(scores), events, strict=True):
        h_u_BCE[b, c] += alpha_t * x_t
  return h_u_BCE


def additive(params, use_product=False):
  def score(x_t, x, bias=0.0):
    inside = params['w1'].T @ x_t + params['w2'].T @ x + bias
    if use_product:
      inside = inside + params['w3'].T @ (x_t * x)
    return params['v'] @ np.tanh(inside)

  return score


def packed(history_BTE, mask_BT, extra=0, order=1):
  """Only the real events, in one row, then `extra` padding events of junk.

  `order` -1 turns each history around.
  """
  events, segments = [], []
  for b in range(len(history_BTE)):
    events += list(history_BTE[b][mask_BT[b]][::order])
    segments += [b] * int(mask_BT[b].sum())
  junk = np.full((extra, history_BTE.shape[-1]), 1e3)
  segments += [len(history_BTE)] * extra
  return np.array([*events, *junk]), np.array(segments, np.int32)


def test_pack_histories_keeps_every_event_with_its_example():
  history_BTE, mask_BT, _, _ = random_inputs()
  history_NE, segment_N = attention.pack_histories(
    jnp.asarray(history_BTE), jnp.asarray(mask_BT)
  )
  assert segment_N.dtype == jnp.int32
  events, segments = packed(history_BTE, mask_BT)
  count = len(segments)
  np.testing.assert_allclose(history_NE[:count], events, rtol=1e-6)
  np.testing.assert_array_equal(segment_N[:count], segments)
  # Padding comes last: the layers rely on an order of segments.
  assert len(segment_N) == B * T
  assert (segment_N[count:] == B).all()


def test_segment_softmax_is_equation_1():
  scores = np.array([[1.0, -3], [0.5, 2], [7, 7], [-1, 0], [2, 2]])
  segment = np.array([0, 0, 3, 0, 4], np.int32)
  with jax.enable_x64():
    found = attention.segment_softmax(jnp.asarray(scores), segment, 4)
  expected = np.zeros((5, 2))
  for c in range(2):
    expected[[0, 1, 3], c] = softmax(scores[[0, 1, 3], c])
  expected[2] = 1.0
  np.testing.assert_allclose(found, expected, atol=1e-15)


def test_segment_softmax_of_extreme_scores():
  """No overflow, and a shift of all scores changes nothing."""
  scores = jnp.array([[3e38], [3e38], [-3e38], [-1e30], [-1e30]])
  segment = jnp.array([0, 0, 0, 1, 1])
  found = attention.segment_softmax(scores, segment, 2)
  np.testing.assert_allclose(found[:, 0], [0.5, 0.5, 0, 0.5, 0.5])


def test_segment_softmax_is_float32_from_bfloat16():
  scores = jnp.array([[1.0], [1.01], [3.0]], jnp.bfloat16)
  found = attention.segment_softmax(scores, jnp.zeros(3, jnp.int32), 1)
  assert found.dtype == jnp.float32
  assert float(found.sum()) == pytest.approx(1.0, abs=1e-6)


def test_mean_history_is_the_plain_mean():
  history_BTE, mask_BT, _, _ = random_inputs()
  history_NE, segment_N = packed(history_BTE, mask_BT, extra=4)
  with jax.enable_x64():
    found = attention.mean_history(jnp.asarray(history_NE), segment_N, B)
  for b, length in enumerate(LENGTHS):
    expected = history_BTE[b][mask_BT[b]].sum(0) / max(length, 1)
    np.testing.assert_allclose(found[b], expected, atol=1e-15)


def test_additive_score_is_equation_2():
  history_BTE, mask_BT, target_BCE, params = random_inputs()
  history_NE, segment_N = packed(history_BTE, mask_BT)
  with jax.enable_x64():
    found = attention.additive_score(
      jnp.asarray(history_NE),
      jnp.asarray(target_BCE),
      segment_N,
      *(jnp.asarray(params[name]) for name in ('w1', 'w2', 'v')),
    )
  score = additive(params)
  for n, b in enumerate(segment_N):
    for c in range(C):
      expected = score(history_NE[n], target_BCE[b, c])
      assert found[n, c] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('use_product', [False, True])
def test_additive_attention_is_equations_1_to_3(use_product):
  history_BTE, mask_BT, target_BCE, params = random_inputs()
  expected = reference(
    history_BTE, mask_BT, target_BCE, additive(params, use_product)
  )
  if not use_product:
    del params['w3']
  with jax.enable_x64():
    module = AdditiveAttention(H, use_product, jnp.float64)
    apply = jax.jit(
      lambda *args: module.apply(*args, mutable=['intermediates'])
    )
    for history_NE, segment_N in (
      packed(history_BTE, mask_BT, extra=9),
      attention.pack_histories(jnp.asarray(history_BTE), jnp.asarray(mask_BT)),
    ):
      found, sown = apply(
        {'params': params},
        jnp.asarray(history_NE),
        jnp.asarray(target_BCE),
        jnp.asarray(segment_N),
      )
      np.testing.assert_allclose(found, expected, atol=1e-10)
      (weight_NC,) = sown['intermediates']['attention_weight']
      total_RC = np.zeros((B + 1, C))
      np.add.at(total_RC, np.asarray(segment_N), np.asarray(weight_NC))
      exists = np.array([*LENGTHS, 0])[:, None] > 0
      np.testing.assert_allclose(
        total_RC, np.broadcast_to(exists, (B + 1, C)), atol=1e-12
      )


def test_rank_counts_from_the_newest():
  segment_N = np.array([0, 0, 0, 2, 3, 3, 4, 4], np.int32)
  found = attention.rank_from_end(segment_N, 4)
  np.testing.assert_array_equal(found[:6], [2, 1, 0, 0, 1, 0])


@pytest.mark.parametrize('recency', ['rank', 'age', 'rank_and_age'])
def test_recency_stands_inside_the_tanh(recency, monkeypatch):
  """One example at a time; beyond the last rank all events share its bias."""
  monkeypatch.setattr(attention, 'NUM_RANKS', 4)
  history_BTE, mask_BT, target_BCE, params = random_inputs()
  rng = np.random.default_rng(3)
  rank_VH, age_VH = rng.normal(size=(4, H)), rng.normal(size=(11, H))
  age_BT = rng.integers(0, 11, (B, T))
  score = additive(params, use_product=True)
  expected = np.zeros((B, C, E))
  for b in range(B):
    events = np.flatnonzero(mask_BT[b])
    for c in range(C if len(events) else 0):
      scores = []
      for t in events:
        bias = np.zeros(H)
        if 'rank' in recency:
          bias += rank_VH[min(int(np.sum(events > t)), 3)]
        if 'age' in recency:
          bias += age_VH[age_BT[b, t]]
        scores.append(score(history_BTE[b, t], target_BCE[b, c], bias))
      for alpha_t, t in zip(softmax(scores), events, strict=True):
        expected[b, c] += alpha_t * history_BTE[b, t]
  history_NE, segment_N = packed(history_BTE, mask_BT, extra=3)
  age_N = np.concatenate([age_BT[mask_BT], [0, 0, 0]])
  if 'rank' in recency:
    params['rank'] = rank_VH
  if 'age' in recency:
    params['age'] = age_VH
  with jax.enable_x64():
    module = AdditiveAttention(H, True, jnp.float64, recency=recency)
    found = module.apply(
      {'params': params}, history_NE, target_BCE, segment_N, age_N
    )
    np.testing.assert_allclose(found, expected, atol=1e-10)
    if 'age' in recency:
      with pytest.raises(ValueError, match='needs age_N'):
        module.apply({'params': params}, history_NE, target_BCE, segment_N)


@pytest.mark.parametrize('extra', [0, 9])
def test_without_softmax_the_scores_weigh_as_they_are(extra):
  """h_u = sum_t e_t x_t, one pair at a time; padding of junk adds nothing."""
  history_BTE, mask_BT, target_BCE, params = random_inputs()
  score = additive(params, use_product=True)
  expected = np.zeros((B, C, E))
  for b in range(B):
    for t in np.flatnonzero(mask_BT[b]):
      for c in range(C):
        e_t = score(history_BTE[b, t], target_BCE[b, c])
        expected[b, c] += e_t * history_BTE[b, t]
  history_NE, segment_N = packed(history_BTE, mask_BT, extra)
  with jax.enable_x64():
    module = AdditiveAttention(H, True, jnp.float64, use_softmax=False)
    found = module.apply({'params': params}, history_NE, target_BCE, segment_N)
  np.testing.assert_allclose(found, expected, atol=1e-12)


def test_one_event_is_the_whole_of_h_u():
  history_BTE, mask_BT, target_BCE, params = random_inputs()
  history_NE, segment_N = packed(history_BTE, mask_BT)
  with jax.enable_x64():
    found = AdditiveAttention(H, True, jnp.float64).apply(
      {'params': params}, history_NE, target_BCE, segment_N
    )
  for c in range(C):
    np.testing.assert_allclose(
      found[2, c], history_BTE[2][mask_BT[2]][0], rtol=1e-14
    )


def make_module(kind):
  if kind == 'additive':
    return AdditiveAttention(H, use_product=True)
  if kind == 'additive_raw':
    return AdditiveAttention(H, use_product=True, use_softmax=False)
  return ActivationUnit((H, 5), 'dice', use_softmax=kind == 'unit_softmax')


KINDS = ['additive', 'additive_raw', 'unit_softmax', 'unit_raw']


def as_float32(*arrays):
  return [
    jnp.asarray(a, jnp.float32 if a.dtype == np.float64 else None)
    for a in arrays
  ]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('train', [False, True])
def test_padding_and_order_change_nothing(kind, train):
  """Any amount of padding, with any content; Dice's statistics included."""
  history_BTE, mask_BT, target_BCE, _ = random_inputs()
  module = make_module(kind)
  (target,) = as_float32(target_BCE)
  kwargs = {} if kind.startswith('additive') else {'train': train}
  variables = jax.jit(module.init)(
    jax.random.key(0),
    *as_float32(packed(history_BTE, mask_BT)[0]),
    target,
    packed(history_BTE, mask_BT)[1],
  )
  apply = jax.jit(
    lambda *args: module.apply(*args, **kwargs, mutable=['stats'])
  )
  results = []
  for extra, order in ((0, 1), (1, 1), (300, -1)):
    history_NE, segment_N = packed(history_BTE, mask_BT, extra, order)
    results.append(apply(variables, *as_float32(history_NE), target, segment_N))
  for other in results[1:]:
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6),
      results[0],
      other,
    )


@pytest.mark.parametrize('kind', KINDS)
def test_all_padding_gives_zeros_and_zero_gradients(kind):
  module = make_module(kind)
  history = jnp.ones((4, E))
  target = jnp.ones((2, C, E))
  segment = jnp.full(4, 2, jnp.int32)
  kwargs = {} if kind.startswith('additive') else {'train': True}
  variables = jax.jit(module.init)(jax.random.key(0), history, target, segment)
  stats = {k: v for k, v in variables.items() if k == 'stats'}

  def total(params, history, target):
    out, _ = module.apply(
      {'params': params, **stats},
      history,
      target,
      segment,
      **kwargs,
      mutable=['stats'],
    )
    return (out + jnp.square(out)).sum(), out

  grads, out = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(
    variables['params'], history, target
  )
  np.testing.assert_array_equal(out, 0.0)
  for leaf in jax.tree.leaves(grads):
    np.testing.assert_array_equal(leaf, 0.0)


@pytest.mark.parametrize('use_product', [False, True])
def test_gradients_of_additive_attention(use_product):
  """Reverse and forward against finite differences, empty history included."""
  history_BTE, mask_BT, target_BCE, params = random_inputs()
  if not use_product:
    del params['w3']
  history_NE, segment_N = packed(history_BTE, mask_BT, extra=2)
  history_NE[-2:] = 0.0
  with jax.enable_x64():
    module = AdditiveAttention(H, use_product, jnp.float64)
    jax.test_util.check_grads(
      jax.jit(lambda p, x, t: module.apply({'params': p}, x, t, segment_N)),
      jax.tree.map(jnp.asarray, (params, history_NE, target_BCE)),
      order=1,
      atol=1e-6,
      rtol=1e-6,
    )


def test_factored_first_layer_of_din_is_the_concatenation():
  """W [q, k, q - k, q * k], and its gradients, to 1e-10 in float64."""
  history_BTE, mask_BT, target_BCE, _ = random_inputs()
  history_NE, segment_N = packed(history_BTE, mask_BT)
  rng = np.random.default_rng(1)
  kernel = rng.normal(size=(4 * E, H))
  cotangent = rng.normal(size=(len(segment_N) * C, H))

  def concatenated(history_NE, target_RCE, kernel_4EH):
    q_NCE = target_RCE[segment_N]
    k_NCE = jnp.broadcast_to(history_NE[:, None], q_NCE.shape)
    both = [q_NCE, k_NCE, q_NCE - k_NCE, q_NCE * k_NCE]
    hidden_NCH = jnp.concatenate(both, axis=-1) @ kernel_4EH
    return hidden_NCH.reshape(-1, H)

  def factored(history_NE, target_RCE, kernel_4EH):
    return attention.activation_unit_hidden(
      history_NE, target_RCE, segment_N, kernel_4EH
    )

  with jax.enable_x64():
    args = jax.tree.map(jnp.asarray, (history_NE, target_BCE, kernel))
    results = []
    for function in (factored, concatenated):
      out, vjp = jax.vjp(jax.jit(function), *args)
      results.append((out, *vjp(jnp.asarray(cotangent))))
  for ours, theirs in zip(*results, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-10)


ACTIVATIONS = {
  'relu': lambda x, p, s: np.maximum(x, 0),
  'sigmoid': lambda x, p, s: 1 / (1 + np.exp(-x)),
  'prelu': lambda x, p, s: np.where(x > 0, x, p['alpha'] * x),
  'dice': lambda x, p, s: (
    x
    * (
      (gate := 1 / (1 + np.exp(-(x - s['mean']) / np.sqrt(s['variance']))))
      + (1 - gate) * p['alpha']
    )
  ),
}


@pytest.mark.parametrize('activation', list(ACTIVATIONS))
@pytest.mark.parametrize('use_softmax', [False, True])
def test_activation_unit_is_an_mlp_over_the_concatenation(
  activation, use_softmax
):
  history_BTE, mask_BT, target_BCE, _ = random_inputs()
  history_NE, segment_N = packed(history_BTE, mask_BT, extra=5)
  module = ActivationUnit((H, 5), activation, use_softmax)
  history, target = as_float32(history_NE, target_BCE)
  variables = jax.jit(module.init)(
    jax.random.key(0), history, target, segment_N
  )
  rng = np.random.default_rng(2)
  variables = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), variables
  )
  params, stats = variables['params'], variables.get('stats', {})
  for statistic in stats.values():
    statistic['variance'] = np.square(statistic['variance']) + 0.1
  act = lambda number, x: ACTIVATIONS[activation](
    x, params.get(f'activation_{number}'), stats.get(f'activation_{number}')
  )

  def score(k, q):
    x = np.concatenate([q, k, q - k, q * k]) @ params['kernel'].astype('f8')
    x = act(0, x + params['bias'])
    x = act(1, x @ params['dense_1']['kernel'] + params['dense_1']['bias'])
    return (x @ params['dense_2']['kernel'] + params['dense_2']['bias'])[0]

  if use_softmax:
    expected = reference(history_BTE, mask_BT, target_BCE, score)
  else:
    expected = np.zeros((B, C, E))
    for b in range(B):
      for x_t in history_BTE[b][mask_BT[b]]:
        for c in range(C):
          expected[b, c] += score(x_t, target_BCE[b, c]) * x_t
  found = jax.jit(module.apply)(variables, history, target, segment_N)
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_bfloat16_stays_finite_and_near(kind):
  history_BTE, mask_BT, target_BCE, _ = random_inputs()
  history_NE, segment_N = packed(history_BTE, mask_BT, extra=3)
  history_NE[-3:] = 0.0
  module = make_module(kind)
  history, target = as_float32(history_NE, target_BCE)
  variables = jax.jit(module.init)(
    jax.random.key(0), history, target, segment_N
  )
  exact = jax.jit(module.apply)(variables, history, target, segment_N)
  found = jax.jit(module.clone(compute_dtype=jnp.bfloat16).apply)(
    variables,
    history.astype(jnp.bfloat16),
    target.astype(jnp.bfloat16),
    segment_N,
  )
  assert found.dtype == jnp.bfloat16
  # bfloat16 keeps 8 bits: 2^-8 a rounding, over a few of them.
  np.testing.assert_allclose(
    found.astype(jnp.float32), exact, atol=0.05 * np.abs(exact).max()
  )


@pytest.mark.parametrize('kind', KINDS)
def test_packed_is_padded_with_its_gradients(kind):
  """Real events alone, and [B * T] with padding: to 1e-6."""
  history_BTE, mask_BT, target_BCE, _ = random_inputs()
  module = make_module(kind)
  kwargs = {} if kind.startswith('additive') else {'train': True}
  history, target = as_float32(history_BTE, target_BCE)
  padded = attention.pack_histories(history, jnp.asarray(mask_BT))
  count = int(mask_BT.sum())
  variables = jax.jit(module.init)(
    jax.random.key(0), padded[0], target, padded[1]
  )
  stats = {k: v for k, v in variables.items() if k == 'stats'}

  @functools.partial(jax.jit, static_argnums=3)
  def value_and_gradients(params, history, target, size):
    def total(params, history, target):
      events, segments = attention.pack_histories(history, jnp.asarray(mask_BT))
      out, _ = module.apply(
        {'params': params, **stats},
        events[:size],
        target,
        segments[:size],
        **kwargs,
        mutable=['stats'],
      )
      return (jnp.sin(out) * jnp.cos(target)).mean()

    return jax.value_and_grad(total, (0, 1, 2))(params, history, target)

  packed_, padded_ = (
    value_and_gradients(variables['params'], history, target, size)
    for size in (count, B * T)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6),
    packed_,
    padded_,
  )


def test_many_candidates_are_weighed_as_few_are(monkeypatch):
  """A catalogue at once takes another way to the same sums."""
  rng = np.random.default_rng(5)
  history_NE = rng.standard_normal((6, 3)).astype(np.float32)
  weight_NC = rng.standard_normal((6, 4)).astype(np.float32)
  segment_N = jnp.array([0, 0, 1, 3, 3, 4])
  expected = np.zeros((4, 4, 3))
  for place, request in enumerate([0, 0, 1, 3, 3]):
    expected[request] += weight_NC[place][:, None] * history_NE[place]
  for most in (256, 0):
    monkeypatch.setattr(attention, 'MAX_UNROLLED', most)
    found = attention.pool_history(
      jnp.array(weight_NC), jnp.array(history_NE), segment_N, 4
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
