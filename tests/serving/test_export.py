"""An export against the live model, without this library, and under attack."""

import hashlib
import json
import pickle
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from eain_jax.artifacts import write_manifest
from eain_jax.config import MODEL_CONFIGS, TrainConfig
from eain_jax.data.batches import make_eval_stream
from eain_jax.errors import InputError
from eain_jax.models import make_model
from eain_jax.serving.candidates import Rows
from eain_jax.serving.encoder import Encoder
from eain_jax.serving.export import export_run, flatten, make_program
from eain_jax.serving.exported import open_export
from eain_jax.serving.scorer import Scorer
from eain_jax.training.restore import Run

# What load.py may need: jax with what jax itself needs.
BLOCKED = ('eain_jax', 'flax', 'optax', 'orbax', 'polars', 'flatbuffers')


@pytest.fixture(scope='module')
def make_run(dataset, small_config, state_shapes, randomized):
  def make(name, **settings):
    config = small_config(name, **settings)
    model = make_model(name, config)
    batch = make_eval_stream(dataset, 'valid', 64).batch(0)
    params, stats = randomized(state_shapes(model, dataset, batch))
    about = {
      'model': name,
      'model_config': config.to_dict(),
      'train_config': TrainConfig().to_dict(),
    }
    return Run(about, dataset, model, *jax.device_put((params, stats)))

  return make


@pytest.fixture(scope='module')
def rows(dataset):
  """1,024 rows with histories of length 0 to 14; a few ids are unknown."""
  rng = np.random.default_rng(3)
  users = [f'u{n:03}' for n in rng.integers(0, 220, 1024)]
  items = [f'i{n:02}' for n in rng.integers(0, 90, 1024)]
  times = rng.integers(1_400_000_000, 1_500_000_000, 1024)
  lengths = rng.integers(0, 15, 1024)
  lengths[:9] = 0, 14, 1, 2, 13, 0, 12, 5, 3
  histories = [
    [f'i{n:02}' for n in rng.integers(0, 90, length)] for length in lengths
  ]
  before = [
    sorted((time - 1 - rng.integers(0, 40_000_000, length)).tolist())
    for time, length in zip(times, lengths, strict=True)
  ]
  device = [[None, 'phone', 'desktop', 'fridge'][n % 4] for n in range(1024)]
  return users, items, times.tolist(), {'device': device}, histories, before


def first(rows, size):
  users, items, times, context, histories, before = rows
  return (
    *(users[:size], items[:size], times[:size]),
    {name: values[:size] for name, values in context.items()},
    *(histories[:size], before[:size]),
  )


def live_scores(run, rows):
  users, items, times, context, histories, before = rows
  step = run.score_step()
  scorer = Scorer(
    Encoder(run.dataset), lambda batch: step(run.params, run.stats, batch)
  )
  asked = Rows(users, items, times, context, histories, before, {})
  [(_, logits, _)] = scorer.score([asked])
  return logits


@pytest.mark.parametrize('name', list(MODEL_CONFIGS))
def test_an_export_scores_as_the_live_model(name, make_run, rows, tmp_path):
  run = make_run(name)
  export_run(run, tmp_path / 'export')
  model = open_export(tmp_path / 'export')
  expected = live_scores(run, rows)
  assert expected.std() > 0.1
  for size in (1, 7, 1024):
    found = model.score(*first(rows, size))
    np.testing.assert_allclose(found, expected[:size], atol=1e-6, rtol=1e-6)
  assert model.facts['platforms'] == ['cpu', 'cuda', 'tpu']


@pytest.fixture(scope='module')
def exported(make_run, tmp_path_factory):
  folder = tmp_path_factory.mktemp('exported') / 'export'
  export_run(make_run('eain', activation='dice', dropout=0.1), folder)
  return folder


def load(folder, *batch):
  """load.py, where all that is not jax's own cannot be imported."""
  program = (
    'import runpy, sys\n'
    f'for name in {BLOCKED}: sys.modules[name] = None\n'
    'sys.argv = sys.argv[1:]\n'
    'runpy.run_path(sys.argv[0], run_name="__main__")'
  )
  return subprocess.run(
    [sys.executable, '-I', '-c', program, folder / 'load.py', *batch],
    capture_output=True,
    text=True,
    check=False,
  )


def test_jax_and_numpy_alone_reproduce_the_golden_scores(exported, tmp_path):
  lines = (exported / 'load.py').read_text().splitlines()
  done = load(exported)
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('50 logits, largest difference ')
  # A batch of its own, the first seven rows of the golden one.
  with np.load(exported / 'golden.npz') as golden:
    batch = dict(golden)
  logit = batch.pop('logit')
  batch['segment'] = np.minimum(batch['segment'], 7)
  for name in ('user', 'target', 'position', 'row', *batch):
    if name.startswith('context/') or name in ('user', 'target', 'position'):
      batch[name] = batch[name][:7]
  batch['row'] = batch['row'][:7]
  np.savez(tmp_path / 'batch.npz', **batch)
  done = load(exported, tmp_path / 'batch.npz')
  assert done.returncode == 0, done.stderr
  found = np.array(done.stdout.split(), float)
  np.testing.assert_allclose(found, logit[:7, 0], atol=1e-6)
  assert len(lines) < 100


def test_what_export_json_says_of_inputs_is_so(exported):
  facts = json.loads((exported / 'export.json').read_text())
  with np.load(exported / 'golden.npz') as golden:
    assert {*golden} == {*facts['inputs'], 'logit'}
    sizes = {}
    for name, spec in facts['inputs'].items():
      assert golden[name].dtype == spec['dtype']
      for symbol, size in zip(spec['shape'], golden[name].shape, strict=True):
        assert sizes.setdefault(symbol, size) == size
        assert symbol in ('R', 'N', 'U', size)
    tables = {f['name']: f['num_rows'] for f in facts['features']}
    for name, rows in tables.items():
      ids = golden.get(f'items/{name}', golden.get(f'context/{name}'))
      ids = golden['user'] if ids is None else ids
      assert ids.min() >= 0
      assert ids.max() < rows


@pytest.fixture
def copy(exported, tmp_path):
  return shutil.copytree(exported, tmp_path / 'copy')


def sign(folder):
  """The manifest that whoever changed the files would write."""
  (folder / 'manifest.json').unlink()
  names = [str(f.relative_to(folder)) for f in folder.rglob('*') if f.is_file()]
  write_manifest(folder, sorted(names), format_version=1)


def swap_lines(file):
  head, one, two, *rest = file.read_text().splitlines()
  (a, value_a, *_), (b, value_b, *_) = one.split(','), two.split(',')
  file.write_text(
    '\n'.join([head, f'{a},{value_b},1', f'{b},{value_a},1', *rest])
  )


def test_a_planted_pickle_is_refused(copy):
  (copy / 'model.pkl').write_bytes(pickle.dumps(print))
  with pytest.raises(InputError, match='is no file of this export'):
    open_export(copy)


def test_a_pickle_in_the_golden_batch_is_refused(copy):
  with np.load(copy / 'golden.npz') as golden:
    arrays = dict(golden)
  arrays['user'] = np.array([print], object)
  np.savez(copy / 'golden.npz', **arrays)
  with pytest.raises(InputError, match=r'golden.npz was changed after'):
    open_export(copy)
  sign(copy)
  with pytest.raises(InputError, match=r'is no whole export .*allow_pickle'):
    open_export(copy)
  done = load(copy)
  assert done.returncode
  assert 'allow_pickle=False' in done.stderr


@pytest.mark.parametrize('name', ['../stolen', '/etc/hostname'])
def test_a_path_that_leaves_the_folder_is_refused(copy, name):
  (copy.parent / 'stolen').write_text('x')
  manifest = json.loads((copy / 'manifest.json').read_text())
  manifest.pop('fingerprint')
  manifest['files'][name] = {'bytes': 1, 'sha256': '0' * 64}
  text = json.dumps(manifest, sort_keys=True, separators=(',', ':'))
  manifest['fingerprint'] = hashlib.sha256(text.encode()).hexdigest()
  (copy / 'manifest.json').write_text(json.dumps(manifest))
  with pytest.raises(InputError, match='which is no file of its folder'):
    open_export(copy)


def test_a_link_is_refused(copy):
  file = copy / 'users.parquet'
  shutil.move(file, copy.parent / 'elsewhere')
  file.symlink_to(copy.parent / 'elsewhere')
  with pytest.raises(InputError, match=r'users.parquet'):
    open_export(copy)


@pytest.mark.parametrize(
  'name', ['device', 'hour', 'gap', 'user', 'item', 'brand', 'tags']
)
def test_a_swapped_vocabulary_is_refused(copy, name):
  swap_lines(copy / 'vocabularies' / f'{name}.csv')
  with pytest.raises(InputError, match=f'{name}.csv was changed after'):
    open_export(copy)
  # However well it is signed: it does not make the golden batch.
  sign(copy)
  with pytest.raises(InputError, match=r'golden.jsonl do not make golden.npz'):
    open_export(copy)


def test_tables_of_another_model_are_refused(copy, make_run, tmp_path):
  export_run(make_run('eain', embedding_dim=4), tmp_path / 'other')
  shutil.copy(tmp_path / 'other' / 'parameters.safetensors', copy)
  sign(copy)
  with pytest.raises(InputError, match='is no program of'):
    open_export(copy)
  shutil.copytree(tmp_path / 'other', copy, dirs_exist_ok=True)
  data = bytearray((copy / 'parameters.safetensors').read_bytes())
  data[-2] ^= 0x40
  (copy / 'parameters.safetensors').write_bytes(data)
  sign(copy)
  with pytest.raises(InputError, match='parameters and program are not of one'):
    open_export(copy)


@pytest.mark.parametrize(
  'name',
  [
    'score.stablehlo',
    'export.json',
    'items.parquet',
    'users.parquet',
    'golden.jsonl',
    'golden.npz',
    'parameters.safetensors',
  ],
)
@pytest.mark.parametrize('damage', ['cut', 'empty', 'absent'])
def test_damage_is_named(copy, name, damage):
  file = copy / name
  data = file.read_bytes()
  file.write_bytes(data[: len(data) // 2] if damage == 'cut' else b'')
  if damage == 'absent':
    file.unlink()
  with pytest.raises(InputError, match=name):
    open_export(copy)
  sign(copy)
  with pytest.raises(
    InputError, match=r'is no whole export|do not make|is no program of'
  ):
    open_export(copy)


def change_facts(copy, change):
  facts = json.loads((copy / 'export.json').read_text())
  change(facts)
  (copy / 'export.json').write_text(json.dumps(facts))
  sign(copy)


@pytest.mark.parametrize('name', ['../secret', '/etc/secret', 'a/b', ''])
def test_a_feature_that_leaves_the_folder_is_refused(copy, name):
  change_facts(copy, lambda facts: facts['features'][-1].update(name=name))
  with pytest.raises(InputError, match=r'has a feature|names the features'):
    open_export(copy)


@pytest.mark.parametrize(
  'change',
  [
    lambda facts: facts['dataset'].update(history_length=10**30),
    lambda facts: facts.update(tolerance='wide'),
    lambda facts: facts.pop('inputs'),
    lambda facts: facts['inputs'].pop('age'),
    lambda facts: facts.update(platforms=[]),
  ],
)
def test_facts_that_cannot_be_are_refused(copy, change):
  change_facts(copy, change)
  with pytest.raises(InputError):
    open_export(copy)


def test_facts_that_nest_too_deep_are_refused(copy):
  (copy / 'export.json').write_text('[' * 100_000)
  sign(copy)
  with pytest.raises(InputError, match='is no whole export'):
    open_export(copy)


@pytest.mark.parametrize(
  'logit', [np.array(['x']), np.zeros((7, 3), np.float32), np.zeros(50)]
)
def test_golden_logits_that_cannot_be_are_refused(copy, logit):
  with np.load(copy / 'golden.npz') as golden:
    arrays = dict(golden)
  np.savez(copy / 'golden.npz', **{**arrays, 'logit': logit})
  sign(copy)
  with pytest.raises(InputError, match='has no logit a row'):
    open_export(copy)


def test_a_program_for_other_platforms_says_so(make_run, tmp_path):
  export_run(make_run('lr'), tmp_path / 'cuda', ['cuda'])
  with pytest.raises(InputError, match='is for cuda, and this is cpu'):
    open_export(tmp_path / 'cuda')


def test_an_export_that_fails_its_check_is_not_there(make_run, tmp_path):
  def check(folder):
    assert (folder / 'manifest.json').is_file()
    raise InputError('it is not good')

  with pytest.raises(InputError, match='it is not good'):
    export_run(make_run('lr'), tmp_path / 'export', check=check)
  assert list(tmp_path.iterdir()) == []


def test_every_product_is_exact_on_every_platform(make_run, dataset):
  run = make_run('eain')
  leaves = flatten({'params': run.params, 'stats': run.stats})
  text = str(make_program(run.model, dataset.features, leaves).mlir_module())
  products = [
    line for line in text.splitlines() if 'stablehlo.dot_general' in line
  ]
  assert len(products) > 10
  assert all(line.count('HIGHEST') == 2 for line in products)


def test_bfloat16_is_held_to_what_it_can(make_run, rows, tmp_path):
  run = make_run('dnn', compute_dtype='bfloat16')
  export_run(run, tmp_path / 'export', check=open_export)
  model = open_export(tmp_path / 'export')
  found = model.score(*first(rows, 7))
  np.testing.assert_allclose(found, live_scores(run, first(rows, 7)), atol=0.05)


def test_no_export_is_said(tmp_path):
  with pytest.raises(InputError, match='is no exported model'):
    open_export(tmp_path)


def test_rows_that_cannot_be_are_refused(exported):
  model = open_export(exported)
  for arguments, sentence in (
    ((['u001'], ['i01', 'i02'], [0]), '1 users, but 2 of items'),
    ((['u'], ['i'], []), '1 users, but 0 of timestamps'),
    ((['u'], ['i'], [9], None, [['i', 'i']], [[5, 4]]), 'the order of time'),
    ((['u'], ['i'], [9], None, [['i']], [[9]]), 'not before the row'),
    ((['u'], ['i'], [9], None, [['i']], [[]]), 'has 1 items, but 0 times'),
    ((['u'], ['i'], [9], {'colour': ['red']}), "'colour' is no context"),
    ((['u'], ['i'], ['2014-01-01']), 'no whole seconds UTC'),
    ((['u'], ['i'], [10**30]), 'no whole seconds UTC'),
    ((['u'], ['i'], [1.5]), 'no whole seconds UTC'),
    (([None], ['i'], [9]), 'the users is missing'),
    ((['u'], [2.5], [9]), 'neither text nor an integer'),
    ((['u'], ['\0'], [9]), 'NUL'),
  ):
    with pytest.raises(InputError, match=re.escape(sentence)):
      model.score(*arguments)
  assert model.score([], [], []).shape == (0,)
  plain = model.score(['7', '8'], ['i01', '5'], [9, 9])
  numbers = model.score([7, np.int64(8)], ['i01', 5], [9, 9], {'device': None})
  np.testing.assert_array_equal(plain, numbers)
