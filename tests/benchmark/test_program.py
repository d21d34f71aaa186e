"""FLOPs of matrix products, against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eain_jax.benchmark.program import matmul_flops, xla_counts
from eain_jax.benchmark.subject import Subject
from eain_jax.config import DinConfig, TrainConfig, WorkloadConfig
from eain_jax.data.workload import make_workload


def test_one_product_is_two_flops_a_multiply_and_add():
  # [3, 4, 5] x [3, 5, 6]: 3 * 4 * 6 results, sums of 5.
  flops = matmul_flops(jnp.matmul, np.zeros((3, 4, 5)), np.zeros((3, 5, 6)))
  assert flops == 2 * 3 * 4 * 6 * 5


def test_two_layers_and_their_gradient():
  def loss(weights, x):
    return jnp.sum(jax.nn.relu(x @ weights[0]) @ weights[1])

  weights, x = (np.zeros((10, 7)), np.zeros((7, 2))), np.zeros((32, 10))
  first, second = 2 * 32 * 10 * 7, 2 * 32 * 7 * 2
  assert matmul_flops(jax.jit(loss), weights, x) == first + second
  # Of the weights: one product a layer more, and one for the hidden layer.
  assert matmul_flops(jax.grad(loss), weights, x) == 2 * first + 3 * second
  # Of the input too: three products a layer.
  assert matmul_flops(
    jax.jit(jax.grad(loss, argnums=(0, 1))), weights, x
  ) == 3 * (first + second)


def test_loops_branches_and_devices_count_as_they_run():
  x = np.zeros((8, 4, 4), np.float32)
  once = 2 * 4 * 4 * 4
  product = lambda y: y @ y
  scanned = lambda y: jax.lax.scan(lambda c, z: (c @ z, None), y[0], y)[0]
  assert matmul_flops(scanned, x) == 8 * once
  # Of two branches the dearer one counts.
  branches = lambda y: jax.lax.cond(
    y[0, 0] > 0, lambda z: z @ z @ z, product, y
  )
  assert matmul_flops(branches, x[0]) == 2 * once
  assert matmul_flops(jax.pmap(product), x) == 8 * once


def test_products_inside_custom_gradients_are_seen():
  @jax.custom_vjp
  def square(x):
    return x @ x

  square.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))
  x, once = np.zeros((4, 4)), 2 * 4**3
  assert matmul_flops(square, x) == once
  assert matmul_flops(jax.grad(lambda x: square(x).sum()), x) == 3 * once


@pytest.fixture(scope='module')
def workload():
  return make_workload(
    WorkloadConfig(users=50, items=200, sequences=500, mean_length=5)
  )


def test_din_by_hand(workload):
  config = DinConfig(
    embedding_dim=4,
    mlp=(20, 8),
    attention=(8, 6),
    attention_activation='sigmoid',
    use_user=True,
    dropout=0.0,
  )
  train = TrainConfig(batch_size=64)
  subject = Subject(workload, 'din', config, train, 'score')
  batch = subject.stream.batch(0)
  events, examples, event_dim = len(batch['history']), 64, 2 * 4
  # Factored: q W and k W of one E x 8 matrix each, and (q * k) W; then 8-6-1.
  attention = (
    examples * event_dim * 8
    + 2 * events * event_dim * 8
    + events * (8 * 6 + 6 * 1)
  )
  # Fields: user, item, category, two of h_u, four of context.
  mlp = examples * (9 * 4 * 20 + 20 * 8 + 8 * 1)
  forward = 2 * (attention + mlp)
  assert matmul_flops(subject.step, *subject.arguments(batch)) == forward
  training = Subject(workload, 'din', config, train, 'train')
  # Every product is differentiated by both of its factors; the norm of (14),
  # a product of vectors, does not count.
  assert matmul_flops(training.step, *training.arguments(batch)) == 3 * forward


def test_xla_counts_buffers():
  step = jax.jit(lambda a, b: a + b, donate_argnums=0)
  a = jnp.zeros(1000, jnp.float32)
  counts = xla_counts(step.lower(a, a + 1).compile())
  assert counts['argument_bytes'] == 8000
  assert counts['output_bytes'] == counts['aliased_bytes'] == 4000
  assert counts['bytes_accessed'] == 12_000
  assert counts['flops'] == 1000
