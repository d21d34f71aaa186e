"""A checkpoint that is damaged, file by file: named, and an older one taken."""

import errno
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
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
  return {'best_value': 0.5 + step / 100, 'evaluated_step': step}


def number_of(step):
  """Of the folder: twice the step, and one more, for it is evaluated."""
  return 2 * step + 1


def save(checkpoints, step, evaluated_step=None):
  """A state whose best is another one than itself."""
  best = make_state(step + 100)
  loop = loop_of(step if evaluated_step is None else evaluated_step)
  checkpoints.save(
    make_state(step), (best.params, best.stats), loop, f'log up to {step}\n'
  )
  return hash_state((make_state(step), (best.params, best.stats)))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Two checkpoints, and the hashes of what is in them."""
  folder, hashes = tmp_path_factory.mktemp('saved'), {}
  with open_checkpoints(folder) as checkpoints:
    for step in STEPS:
      hashes[step] = save(checkpoints, step)
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
  """Names of the files of a checkpoint."""
  return sorted(
    str(file.relative_to(folder))
    for file in folder_of(folder, step).rglob('*')
    if file.is_file()
  )


def folder_of(folder, step):
  return folder / 'checkpoints' / 'latest' / str(number_of(step))


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


def harm(folder):
  """Flips a bit of the largest file, which holds a table."""
  file = max(
    (f for f in folder.rglob('*') if f.is_file()),
    key=lambda f: f.stat().st_size,
  )
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 16
  file.write_bytes(data)


@pytest.mark.parametrize('item', ['tree', 'best', 'record'])
def test_what_is_damaged_lies_aside_and_can_be_saved_again(
  saved, restored, tmp_path, item
):
  harm(folder_of(tmp_path, STEPS[1]) / item)
  step, _, said = restored()
  assert step == STEPS[0]
  assert f'latest/{number_of(STEPS[1])}/{item}' in said[0]
  damaged = tmp_path / 'checkpoints' / 'damaged'
  assert [f.name for f in damaged.iterdir()] == [f'{number_of(STEPS[1])}.0']
  with open_checkpoints(tmp_path) as checkpoints:
    save(checkpoints, STEPS[1])
  assert restored() == (STEPS[1], saved[1][STEPS[1]], [])


def test_where_none_is_whole_nothing_begins_anew(saved, restored, tmp_path):
  for step in STEPS:
    harm(folder_of(tmp_path, step) / 'tree')
  before = files_of(tmp_path, STEPS[0]) + files_of(tmp_path, STEPS[1])
  with pytest.raises(InputError, match=r'no checkpoint that is whole: step 8'):
    restored()
  assert before == files_of(tmp_path, STEPS[0]) + files_of(tmp_path, STEPS[1])


@pytest.mark.parametrize('item', ['tree', 'best', 'record'])
def test_an_item_that_is_gone(saved, restored, tmp_path, item):
  shutil.rmtree(folder_of(tmp_path, STEPS[1]) / item)
  assert restored()[0] == STEPS[0]


@pytest.mark.parametrize(
  'error', [OSError(errno.EIO, 'Input/output error'), MemoryError()]
)
def test_a_disk_that_does_not_answer_is_no_damage(
  saved, restored, tmp_path, monkeypatch, error
):
  """Nothing is moved, and the next start reads what is there."""
  names = files_of(tmp_path, STEPS[1])

  def fail(*args, **kwargs):
    raise error

  with monkeypatch.context() as patch:
    patch.setattr(ocp.Checkpointer, 'restore', fail)
    with pytest.raises(InputError, match=r'cannot be read.*nothing was'):
      restored()
  assert files_of(tmp_path, STEPS[1]) == names
  assert restored() == (STEPS[1], saved[1][STEPS[1]], [])


def test_a_checkpoint_of_another_run_is_not_used(saved, restored, tmp_path):
  """Put there by hand: its values are whole, and not of this run."""
  other = tmp_path / 'other'
  settings = {**SETTINGS, 'train_config': {'seed': 1}}
  placement = make_placement('none', NUM_ROWS)
  with Checkpoints(other, placement, settings) as checkpoints:
    save(checkpoints, 12)
  shutil.move(folder_of(other, 12), folder_of(tmp_path, 12))
  step, _, said = restored()
  assert step == STEPS[1]
  assert 'another train_config.seed=1, this one has 0' in said[0]


def test_a_record_cannot_run_code(saved, restored, tmp_path):
  """A pickle where JSON stands is read as text, and refused."""
  canary = tmp_path / 'canary'
  payload = b"cos\nsystem\n(S'touch %s'\ntR." % str(canary).encode()
  for name in files_of(tmp_path, STEPS[1]):
    (tmp_path / name).write_bytes(payload)
  assert restored()[0] == STEPS[0]
  assert not canary.exists()


def test_the_best_for_use_is_never_an_older_one(saved, restored, tmp_path):
  shapes = jax.eval_shape(lambda: make_state(0))
  restore = lambda: open_checkpoints(tmp_path).restore_best(
    shapes.params, shapes.stats
  )
  best = make_state(STEPS[1] + 100)
  assert hash_state(restore()) == hash_state((best.params, best.stats))
  harm(folder_of(tmp_path, STEPS[1]) / 'best')
  with pytest.raises(InputError, match='the newest checkpoint is damaged'):
    restore()


def test_a_step_is_saved_before_and_after_its_evaluation(saved, tmp_path):
  """The first is there until the second is whole."""
  with open_checkpoints(tmp_path) as checkpoints:
    save(checkpoints, 4, evaluated_step=0)
    save(checkpoints, 4)
  assert open_checkpoints(tmp_path).numbers() == [9, 8]


def test_what_is_not_finite_is_not_saved(tmp_path):
  good, bad = make_state(4), make_state(8)
  bad.params['net']['mlp']['bias'] = (
    bad.params['net']['mlp']['bias'].at[1].set(jnp.nan)
  )
  loop = {'evaluated_step': 0}
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(good, None, loop, '')
    with pytest.raises(InputError, match='before step 8, params/net/mlp/bias'):
      checkpoints.save(bad, None, loop, '')
  assert open_checkpoints(tmp_path).numbers() == [8]


def test_leftovers_of_a_killed_save_are_removed(saved, restored, tmp_path):
  """As Orbax names what is not finished; a reader leaves them alone."""
  latest = tmp_path / 'checkpoints' / 'latest'
  leftover = latest / '25.orbax-checkpoint-tmp'
  shutil.copytree(folder_of(tmp_path, STEPS[1]), leftover)
  assert restored()[0] == STEPS[1]
  assert leftover.exists()
  with open_checkpoints(tmp_path) as checkpoints:
    save(checkpoints, 12)
  assert not leftover.exists()
  assert open_checkpoints(tmp_path).numbers() == [25, 17]
