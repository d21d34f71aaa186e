"""Eight CPU devices, strict shapes, and a small dataset, for all tests."""

import importlib.metadata
import os

# Before jax starts. Eight devices share few cores here, so a collective may
# wait long for its last device. Most programs run a few times here, so what
# counts is how long they take to compile: with the last two EAIN's step takes
# 3 s of a CPU instead of 20. Binaries of `test_binaries` run as shipped, too.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
_FLAGS = [
  '--xla_force_host_platform_device_count=8',
  '--xla_cpu_collective_call_terminate_timeout_seconds=300',
  '--xla_backend_optimization_level=0',
]
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  # Later ones end the process at a flag that they do not know.
  _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
for _flag in _FLAGS:
  if _flag.split('=')[0] not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_flag}'

import tempfile
from pathlib import Path

# Runs that differ in seed or data compile one program, once for all workers
# and for the binaries that they start; nothing goes to the user's own cache.
_CACHE = Path(tempfile.gettempdir()) / f'eain-jax-test-cache-{os.getuid()}'
os.environ['JAX_COMPILATION_CACHE_DIR'] = str(_CACHE)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.5'

import dataclasses
import json
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from eain_jax.config import MODEL_CONFIGS, PrepareConfig, TrainConfig
from eain_jax.data.dataset import open_dataset
from eain_jax.training.optimizer import make_optimizer
from eain_jax.training.state import TrainState, init_state

jax.config.update('jax_numpy_rank_promotion', 'raise')
flags.FLAGS.mark_as_parsed()

NUM_USERS, NUM_ITEMS, NUM_TASTES = 200, 80, 4


def write_small_log(folder):
  """A log of users who mostly take items of their own taste.

  `events.csv` holds user, item, timestamp, device; `items.jsonl` a brand and
  a list of one to three tags an item, the first of which is its taste.
  """
  rng = np.random.default_rng(7)
  taste_I = np.arange(NUM_ITEMS) % NUM_TASTES
  lines = ['user,item,timestamp,device']
  for user in range(NUM_USERS):
    own = rng.permutation(np.flatnonzero(taste_I == user % NUM_TASTES))
    other = rng.permutation(np.flatnonzero(taste_I != user % NUM_TASTES))
    length = int(rng.integers(4, 17))
    is_own = rng.random(length) < 0.8
    items = np.where(is_own, own[:length], other[:length])
    gaps = rng.integers(600, 10 * 86_400, length)
    for item, time in zip(items, 1_400_000_000 + gaps.cumsum(), strict=True):
      device = 'phone' if rng.random() < 0.6 else 'desktop'
      lines.append(f'u{user:03},i{item:02},{time},{device}')
  (folder / 'events.csv').write_text('\n'.join(lines) + '\n')
  with (folder / 'items.jsonl').open('w') as file:
    for item in range(NUM_ITEMS):
      tags = [f'taste{taste_I[item]}', *(f't{t}' for t in range(item % 3))]
      record = {'item': f'i{item:02}', 'brand': f'b{item % 9}', 'tags': tags}
      file.write(json.dumps(record) + '\n')


@pytest.fixture(scope='session')
def dataset(tmp_path_factory):
  """The small log, prepared: 1 positive and 4 negatives a training request.

  Features: user; item, brand and the multi-valued tags; hour, weekday, month,
  gap and device.
  """
  # Here, for the tests of the layers need no reader of files.
  from eain_jax.data.prepare import prepare

  folder = tmp_path_factory.mktemp('small')
  write_small_log(folder)
  config = PrepareConfig(
    events=str(folder / 'events.csv'),
    columns=('user=user', 'item=item', 'timestamp=timestamp', 'device=device'),
    items=str(folder / 'items.jsonl'),
    item_key='item',
    item_attributes=('brand', 'tags'),
    eval_negatives=30,
    history_length=12,
    context=('hour', 'weekday', 'month', 'gap'),
  )
  prepare(config, folder / 'dataset')
  return open_dataset(folder / 'dataset')


@pytest.fixture
def small_disk(tmp_path):
  """small_disk(size): a file system of that size; again, it gets that size.

  Skips where none may be mounted.
  """
  folder, mounted = tmp_path / 'disk', []

  def make(size):
    folder.mkdir(exist_ok=True)
    options = f'remount,size={size}' if mounted else f'size={size}'
    command = ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', folder]
    try:
      done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
      pytest.skip('there is no mount command')
    if mounted:
      done.check_returncode()
    elif done.returncode:
      pytest.skip('no file system may be mounted here')
    mounted.append(folder)
    return folder

  yield make
  if mounted:
    subprocess.run(['umount', '--lazy', folder], check=True)


SMALL_SETTINGS = {
  'use_user': True,
  'table_l2': 1e-4,
  'embedding_dim': 8,
  'mlp': (16, 8),
  'attention': (12, 6),
  'attention_dim': 10,
  'mask_hidden_dim': 20,
  'paim_dim': 6,
  'position_dim': 4,
}


@pytest.fixture(scope='session')
def small_config():
  """small_config(name, **settings): a model's settings, quick to compile."""

  def make(name, **settings):
    config_class = MODEL_CONFIGS[name]
    names = {field.name for field in dataclasses.fields(config_class)}
    small = {k: v for k, v in SMALL_SETTINGS.items() if k in names}
    return config_class(**(small | settings))

  return make


@pytest.fixture(scope='session')
def state_shapes():
  """state_shapes(model, dataset, batch): a state of shapes alone."""

  def make(model, dataset, batch):
    optimizer = make_optimizer(TrainConfig(), 1)
    return jax.eval_shape(
      lambda: init_state(
        model, dataset.features, optimizer, batch, jax.random.key(0)
      )
    )

  return make


@pytest.fixture(scope='session')
def randomized():
  """randomized(state, seed, table_stddev): params and stats, far from a start.

  `state` may hold shapes alone. All leaves are random, biases too, so that no
  term of a model can hide, and logits are of order one.
  """

  def make(state, seed=0, table_stddev=1.0):
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
      name = path[-1].key
      if leaf.dtype == jnp.int32:  # Steps that Dice has counted.
        return np.int32(2_000)
      if name == 'variance':
        return rng.uniform(0.5, 2.0, leaf.shape).astype(np.float32)
      scale = table_stddev if path[1].key == 'tables' else 0.5
      # The sum of products with a kernel's column keeps its size.
      if 'kernel' in name or name in ('w1', 'w2', 'w3'):
        scale = np.sqrt(leaf.shape[-1] / leaf.size)
      return (scale * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, (state.params, state.stats))

  return make


@pytest.fixture(scope='session')
def random_state(state_shapes, randomized):
  """random_state(model, dataset, batch, optimizer): a state to train from.

  Made in numpy: `init_state` takes jax longer to compile than a step.
  """

  def make(model, dataset, batch, optimizer, seed=0):
    shapes = state_shapes(model, dataset, batch)
    params, stats = jax.tree.map(
      jnp.asarray, randomized(shapes, seed, table_stddev=0.1)
    )
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, params, stats, optimizer.init(params))

  return make
