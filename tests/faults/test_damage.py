"""A checkpoint that is damaged, file by file: named, and an older one taken."""

import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eain_jax.errors import InputError
from eain_jax.training.checkpoint import Checkpoints
from eain_jax.training.parallel import make_placement
from eain_jax.training.state import TrainState
from tests.faults.conftest import hash_state

NUM_ROWS = {'item': 300, 'brand': 20}
SETTINGS = {'model': 'din', 'train_config': {'seed': 0}}
STEPS = (4, 8)


def make_state(step):
  rng = np.random.default_rng(step)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  params = {
    'tables': {name: draw(rows, 8) for name, rows in NUM_ROWS.items()},
    'net': {'mlp': {'kernel': draw(8, 4), 'bias': draw(4)}},
  }
  return TrainState(
    jnp.asarray(step, jnp.int32),
    params,
    {'dice': {'mean': draw(4)}},
    {'mu': jax.tree.map(jnp.ones_like, params)},
  )


def open_checkpoints(folder):
  return Checkpoints(folder, make_placement('none', NUM_ROWS), SETTINGS)


def loop_of(step):
  return {'best_step': step, 'best_gauc': 0.5 + step / 100}


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Two states, each with a best of its own, and the hashes of both."""
  folder, hashes = tmp_path_factory.mktemp('saved'), {}
  with open_checkpoints(folder) as checkpoints:
    for step in STEPS:
      state = make_state(step)
      checkpoints.save_best(step, state.params, state.stats)
      checkpoints.save(state, loop_of(step), f'log up to {step}\n')
      best = (state.params, state.stats)
      hashes[step] = hash_state((state, best))
  return folder, hashes


@pytest.fixture
def restored(saved, tmp_path):
  """restored(): step, hash, what was said; of a copy that may be harmed."""
  shutil.copytree(saved[0], tmp_path, dirs_exist_ok=True)

  def restore():
    said = []
    shapes = jax.eval_shape(lambda: make_state(0))
    unit = open_checkpoints(tmp_path).restore(shapes, said.append)
    step = int(unit.state.step)
    assert (unit.loop, unit.log) == (loop_of(step), f'log up to {step}\n')
    return step, hash_state((unit.state, unit.best)), said

  return restore


def files_of(folder, step):
  """Names of the files of a state and of its best."""
  return sorted(
    str(file.relative_to(folder))
    for name in ('latest', 'best')
    for file in (folder / 'checkpoints' / name / str(step)).rglob('*')
    if file.is_file()
  )


def again(saved, tmp_path):
  """The copy as it was."""
  shutil.rmtree(tmp_path / 'checkpoints')
  shutil.copytree(saved[0], tmp_path, dirs_exist_ok=True)


def check(saved, found, name, how):
  """The newest with all of its values, or the one before it, and a word."""
  step, digest, said = found
  assert digest == saved[1][step], (name, how)
  if step == STEPS[1]:
    assert said == [], (name, how)
    return 'harmless'
  assert said[0].startswith(
    f'the checkpoint of step {STEPS[1]} is damaged and not used: '
  ), (name, how)
  assert said[-1] == f'goes on from the checkpoint of step {STEPS[0]}'
  return 'detected'


def test_nothing_is_said_of_what_is_whole(saved, restored):
  assert restored() == (STEPS[1], saved[1][STEPS[1]], [])


@pytest.mark.slow
def test_a_byte_that_differs_in_any_file(saved, restored, tmp_path):
  """First, last and random bytes, one at a time, of every file."""
  rng, outcomes = random.Random(0), {'harmless': 0, 'detected': 0}
  names = files_of(saved[0], STEPS[1])
  assert len(names) > 20
  for name in names:
    data = bytearray((saved[0] / name).read_bytes())
    places = {0, len(data) - 1, *(rng.randrange(len(data)) for _ in range(2))}
    for place in places:
      harmed = bytearray(data)
      harmed[place] ^= 1 << rng.randrange(8)
      (tmp_path / name).write_bytes(harmed)
      outcomes[check(saved, restored(), name, place)] += 1
      again(saved, tmp_path)
  assert min(outcomes.values()) > 0
  print(f'\n{len(names)} files, {outcomes}')


@pytest.mark.slow
@pytest.mark.parametrize('how', ['empty', 'half', 'short', 'removed'])
def test_a_file_that_is_cut_or_gone(saved, restored, tmp_path, how):
  for name in files_of(saved[0], STEPS[1]):
    file = tmp_path / name
    data = file.read_bytes()
    if how == 'removed':
      file.unlink()
    else:
      size = {'empty': 0, 'half': len(data) // 2, 'short': len(data) - 1}[how]
      file.write_bytes(data[:size])
    check(saved, restored(), name, how)
    again(saved, tmp_path)


def harm(tmp_path, name, step):
  """Flips a bit of the largest file, which holds a table."""
  folder = tmp_path / 'checkpoints' / name / str(step)
  file = max(
    (f for f in folder.rglob('*') if f.is_file()),
    key=lambda f: f.stat().st_size,
  )
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 16
  file.write_bytes(data)


@pytest.mark.parametrize('name', ['latest', 'best'])
def test_what_is_damaged_lies_aside_and_can_be_saved_again(
  saved, restored, tmp_path, name
):
  harm(tmp_path, name, STEPS[1])
  step, _, said = restored()
  assert step == STEPS[0]
  assert f'{name}/{STEPS[1]}' in said[0]
  folder = tmp_path / 'checkpoints'
  assert {f.name for f in (folder / 'damaged').iterdir()} == {
    'latest-8.0',
    'best-8.0',
  }
  with open_checkpoints(tmp_path) as checkpoints:
    state = make_state(STEPS[1])
    checkpoints.save_best(STEPS[1], state.params, state.stats)
    checkpoints.save(state, loop_of(STEPS[1]), f'log up to {STEPS[1]}\n')
  assert restored() == (STEPS[1], saved[1][STEPS[1]], [])


def test_where_none_is_whole_nothing_begins_anew(saved, restored, tmp_path):
  for step in STEPS:
    harm(tmp_path, 'latest', step)
  before = files_of(tmp_path, STEPS[0]) + files_of(tmp_path, STEPS[1])
  with pytest.raises(InputError, match=r'no checkpoint that is whole: step 8'):
    restored()
  assert before == files_of(tmp_path, STEPS[0]) + files_of(tmp_path, STEPS[1])


def test_a_folder_of_a_checkpoint_that_is_empty(saved, restored, tmp_path):
  shutil.rmtree(tmp_path / 'checkpoints' / 'latest' / '8' / 'tree')
  assert restored()[0] == STEPS[0]


def test_a_checkpoint_of_another_run_is_not_used(saved, restored, tmp_path):
  """Put there by hand: its values are whole, and not of this run."""
  other = tmp_path / 'other'
  settings = {**SETTINGS, 'train_config': {'seed': 1}}
  with Checkpoints(
    other, make_placement('none', NUM_ROWS), settings
  ) as checkpoints:
    state = make_state(12)
    checkpoints.save_best(12, state.params, state.stats)
    checkpoints.save(state, loop_of(12), '')
  for name in ('latest', 'best'):
    place = f'checkpoints/{name}/12'
    shutil.move(other / place, tmp_path / place)
  step, _, said = restored()
  assert step == STEPS[1]
  assert 'another train_config.seed=1, this one has 0' in said[0]


def test_a_record_cannot_run_code(saved, restored, tmp_path):
  """A pickle where JSON stands is read as text, and refused."""
  canary = tmp_path / 'canary'
  payload = b"cos\nsystem\n(S'touch %s'\ntR." % str(canary).encode()
  for file in (tmp_path / 'checkpoints' / 'latest' / '8').rglob('*'):
    if file.is_file():
      file.write_bytes(payload)
  assert restored()[0] == STEPS[0]
  assert not canary.exists()


def test_the_best_for_use_is_never_an_older_one(saved, restored, tmp_path):
  harm(tmp_path, 'best', STEPS[1])
  shapes = jax.eval_shape(lambda: make_state(0))
  checkpoints = open_checkpoints(tmp_path)
  with pytest.raises(InputError, match='the best checkpoint is damaged'):
    checkpoints.restore_best(shapes.params, shapes.stats)


def test_what_is_not_finite_is_not_saved(tmp_path):
  good, bad = make_state(4), make_state(8)
  bad.params['net']['mlp']['bias'] = (
    bad.params['net']['mlp']['bias'].at[1].set(jnp.nan)
  )
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(good, {'best_step': -1}, '')
    with pytest.raises(InputError, match='before step 8, params/net/mlp/bias'):
      checkpoints.save(bad, {'best_step': -1}, '')
  assert open_checkpoints(tmp_path).steps() == [4]


def test_leftovers_of_a_killed_save_are_removed(saved, restored, tmp_path):
  """As Orbax names what is not finished; a reader leaves them alone."""
  leftover = tmp_path / 'checkpoints' / 'latest' / '12.orbax-checkpoint-tmp'
  shutil.copytree(tmp_path / 'checkpoints' / 'latest' / '8', leftover)
  assert restored()[0] == STEPS[1]
  assert leftover.exists()
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(make_state(12), loop_of(8), '')
  assert not leftover.exists()
  assert open_checkpoints(tmp_path).steps() == [12, 8]
