"""Whole runs: they learn, stop, keep the best, and go on where they stopped."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from eain_jax.config import MODEL_CONFIGS, TrainConfig
from eain_jax.errors import BadSettings, InputError
from eain_jax.evaluation import evaluator
from eain_jax.training import loop, setup
from eain_jax.training.loop import fit
from eain_jax.training.restore import open_run
from eain_jax.training.save_pace import SavePace
from eain_jax.training.table_update import TableUpdate

CONFIG = TrainConfig(
  batch_size=320, epochs=4, learning_rate=5e-3, log_every=5, save_every=20
)


def run(dataset, model, config=CONFIG, work_dir=None, report=None, **settings):
  settings = {'embedding_dim': 8, 'mlp': (16,)} | settings
  model_config = MODEL_CONFIGS[model](**settings)
  return fit(dataset, model, model_config, config, work_dir, report)


def leaves(tree):
  return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same(first, second):
  for a, b in zip(leaves(first), leaves(second), strict=True):
    np.testing.assert_array_equal(a, b)


def without_times(result):
  return {k: v for k, v in result.items() if 'second' not in k}


def test_a_run_learns_and_its_best_is_what_is_kept(dataset, tmp_path):
  fitted = run(dataset, 'eain', work_dir=tmp_path / 'w')
  assert fitted.result['test']['auc'] > 0.75
  lines = (tmp_path / 'w' / 'metrics.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  valid = [record for record in records if record['kind'] == 'valid']
  times = [
    json.loads(line)
    for line in (tmp_path / 'w' / 'timings.jsonl').read_text().splitlines()
  ]
  waited = [r['seconds_waiting'] for r in times if r['kind'] == 'train']
  assert waited == sorted(waited)
  assert waited[-1] <= fitted.result['seconds_waiting_for_input']
  assert fitted.result['seconds_waiting_for_input'] < fitted.result['seconds']
  best = max(valid, key=lambda record: record['gauc'])
  assert fitted.result['best_step'] == best['step']
  # What is opened again scores as what was trained.
  opened = open_run(tmp_path / 'w')
  assert_same((opened.params, opened.stats), (fitted.params, fitted.stats))
  values = loop.evaluate(
    opened.dataset, 'test', opened.score_step(), opened.params, opened.stats
  )
  assert values == fitted.result['test']
  result = json.loads((tmp_path / 'w' / 'result.json').read_text())
  assert result['test'] == fitted.result['test']


def test_auc_selects_where_too_few_users_have_one_of_their_own(
  dataset, tmp_path, monkeypatch
):
  of = {}
  for name, least in (('gauc', 1), ('auc', 10_000)):
    monkeypatch.setattr(evaluator, 'MIN_GAUC_USERS', least)
    result = run(dataset, 'dnn', work_dir=tmp_path / name).result
    assert result['selected_by'] == name
    lines = (tmp_path / name / 'metrics.jsonl').read_text().splitlines()
    valid = [r for r in map(json.loads, lines) if r['kind'] == 'valid']
    best = max(valid, key=lambda record: record[name])
    assert result['best_step'] == best['step']
    of[name] = result['valid']['gauc_users']
  assert of['gauc'] == of['auc'] < 10_000


class Stopped(Exception):
  pass


class SavesOnce(SavePace):
  def allows(self, now):
    return self._next == 0.0


SAVES_ONCE = SavesOnce(0.1)


@pytest.mark.parametrize(
  ('model', 'settings'),
  [
    ('eain', {}),
    ('deepfm', {'table_update': 'rowwise'}),
    ('dnn', {'table_update': 'rowwise', 'data_placement': 'device'}),
  ],
)
def test_an_interrupted_run_ends_as_one_that_was_not(
  dataset, tmp_path, model, settings
):
  config = dataclasses.replace(CONFIG, **settings)
  whole = run(dataset, model, config, tmp_path / 'whole')
  steps = []

  def stop_at(limit):
    def report(record):
      steps.append(record['step'])
      if record['step'] >= limit:
        raise Stopped

    return report

  # Interrupted within an epoch, and just after an evaluation.
  per_epoch = whole.result['steps'] // 4
  for limit in (per_epoch // 2 + 5, per_epoch + 1, 2 * per_epoch):
    with pytest.raises(Stopped):
      run(dataset, model, config, tmp_path / 'w', stop_at(limit))
  resumed = run(dataset, model, config, tmp_path / 'w')
  assert_same(whole.params, resumed.params)
  assert without_times(whole.result) == without_times(resumed.result)
  read = lambda name: [
    without_times(json.loads(line))
    for line in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()
  ]
  assert read('whole') == read('w')


def test_saves_rest_for_as_long_as_they_are_to():
  pace = SavePace(0.1)
  assert pace.allows(0.0)
  pace.saved(10.0, 12.0)
  assert not pace.allows(29.9)
  assert pace.allows(30.0)
  always = SavePace(1.0)
  always.saved(10.0, 12.0)
  assert always.allows(12.0)


def test_a_run_that_hardly_saves_goes_on_from_the_little(
  dataset, tmp_path, monkeypatch
):
  """As on an accelerator: after the first save a run is killed, then ends."""
  config = dataclasses.replace(CONFIG, save_every=2)
  expected = run(dataset, 'dnn', config, tmp_path / 'a').result
  # The next save would come in a thousand years.
  monkeypatch.setattr(loop, 'SavePace', lambda share: SAVES_ONCE)
  saved = []
  real = loop.Checkpoints.save
  monkeypatch.setattr(
    loop.Checkpoints,
    'save',
    lambda self, state, *rest: (
      saved.append(int(state.step)),
      real(self, state, *rest),
    ),
  )
  seen = []

  def killed(record):
    seen.append(record['step'])
    if len(seen) == 4:
      raise Stopped

  with pytest.raises(Stopped):
    run(dataset, 'dnn', config, tmp_path / 'b', killed)
  assert saved == [1]
  found = run(dataset, 'dnn', config, tmp_path / 'b').result
  assert saved == [1, found['steps']]
  assert without_times(found) == without_times(expected)


def test_a_finished_run_started_again_is_as_it_was(dataset, tmp_path):
  first = run(dataset, 'dnn', work_dir=tmp_path / 'w')
  log = (tmp_path / 'w' / 'metrics.jsonl').read_text()
  again = run(dataset, 'dnn', work_dir=tmp_path / 'w')
  assert without_times(first.result) == without_times(again.result)
  assert (tmp_path / 'w' / 'metrics.jsonl').read_text() == log


def test_the_same_seed_gives_the_same_bits_and_another_does_not(dataset):
  config = dataclasses.replace(CONFIG, epochs=1)
  first, second = (run(dataset, 'eain', config) for _ in range(2))
  assert_same(first.params, second.params)
  assert without_times(first.result) == without_times(second.result)
  other = run(dataset, 'eain', dataclasses.replace(config, seed=1))
  assert other.result['test']['auc'] != first.result['test']['auc']


def test_other_settings_in_the_same_folder_are_refused(dataset, tmp_path):
  config = dataclasses.replace(CONFIG, epochs=1)
  run(dataset, 'dnn', config, tmp_path / 'w')
  other = dataclasses.replace(config, learning_rate=0.5)
  with pytest.raises(InputError, match=r'learning_rate=0\.005.*has 0\.5'):
    run(dataset, 'dnn', other, tmp_path / 'w')
  with pytest.raises(InputError, match="model='dnn'"):
    run(dataset, 'deepfm', config, tmp_path / 'w')


def test_a_folder_of_something_else_is_left_alone(dataset, tmp_path):
  (tmp_path / 'mine.txt').write_text('mine')
  with pytest.raises(InputError, match='is not a run'):
    run(dataset, 'dnn', work_dir=tmp_path)
  assert [file.name for file in tmp_path.iterdir()] == ['mine.txt']


def test_training_stops_when_validation_does_not_rise(dataset):
  config = dataclasses.replace(
    CONFIG, learning_rate=0.0, epochs=20, early_stopping=2
  )
  records = []
  fitted = run(dataset, 'dnn', config, report=records.append)
  valid = [record for record in records if record['kind'] == 'valid']
  # The first evaluation is the best; two more do not beat it.
  assert len(valid) == 3
  assert fitted.result['best_epoch'] == 1
  factors = [record['learning_rate_factor'] for record in valid]
  assert factors == pytest.approx([1, 0.1, 0.01])


def test_a_loss_that_is_not_finite_is_one_sentence(dataset):
  config = dataclasses.replace(
    CONFIG, learning_rate=1e30, optimizer='sgd', clip_norm=0.0
  )
  with pytest.raises(InputError, match='lower --learning_rate'):
    run(dataset, 'dnn', config)


@pytest.mark.parametrize(
  ('platform', 'raised'), [('cpu', InputError), ('gpu', BadSettings)]
)
def test_a_batch_that_does_not_fit_is_one_sentence(
  dataset, monkeypatch, platform, raised
):
  """A CPU's memory others use too, so the settings are not to blame."""
  set_up = loop.set_up

  def full(*args):
    monkeypatch.setattr(jax, 'default_backend', lambda: platform)
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')

  monkeypatch.setattr(
    loop,
    'set_up',
    lambda *args: dataclasses.replace(set_up(*args), train_step=full),
  )
  with pytest.raises(raised, match=r'not fit .*: lower --batch_size') as caught:
    run(dataset, 'dnn', CONFIG)
  assert type(caught.value) is raised


def test_shuffled_labels_leave_nothing_to_learn(dataset):
  config = dataclasses.replace(CONFIG, shuffle_labels=True)
  fitted = run(dataset, 'eain', config)
  test = fitted.result['test']
  assert abs(test['auc'] - 0.5) < 2 * test['auc_ci95']


def test_bfloat16_learns_as_well(dataset):
  records = {
    dtype: run(dataset, 'eain', compute_dtype=dtype).result['test']['auc']
    for dtype in ('float32', 'bfloat16')
  }
  assert abs(records['float32'] - records['bfloat16']) < 0.03


@pytest.mark.slow
def test_pmap_over_all_devices_ends_with_the_same_metrics(dataset, tmp_path):
  config = dataclasses.replace(CONFIG, epochs=1)
  one = run(dataset, 'din', config, tmp_path / 'one')
  config = dataclasses.replace(config, parallelism='pmap')
  many = run(dataset, 'din', config, tmp_path / 'many')
  assert many.result['test']['auc'] == pytest.approx(
    one.result['test']['auc'], abs=1e-3
  )


def test_opening_what_is_no_run(dataset, tmp_path):
  with pytest.raises(InputError, match='is not a run'):
    open_run(tmp_path)
  config = dataclasses.replace(CONFIG, epochs=1)
  run(dataset, 'dnn', config, tmp_path / 'w')
  file = tmp_path / 'w' / 'config.json'
  settings = json.loads(file.read_text())
  settings['dataset']['fingerprint'] = '0' * 64
  file.write_text(json.dumps(settings))
  with pytest.raises(InputError, match='trained on another dataset'):
    open_run(tmp_path / 'w')
  file.write_text('{"model": "dnn"}')
  with pytest.raises(InputError, match='is damaged'):
    open_run(tmp_path / 'w')


@pytest.mark.parametrize(
  ('examples', 'expected'),
  [(1, 256), (32_768, 256), (65_535, 256), (65_536, 512), (10**9, 4096)],
)
def test_the_batch_follows_the_size_of_the_data(dataset, examples, expected):
  counts = {'train': {'examples': examples}}
  manifest = {**dataset.manifest, 'counts': counts}
  sized = dataclasses.replace(dataset, manifest=manifest)
  resolve = lambda config: setup.resolve_config(
    sized, 'dnn', MODEL_CONFIGS['dnn'](), config
  )
  config = resolve(TrainConfig())
  assert config.batch_size == expected
  # One that is given stays.
  given = TrainConfig(batch_size=1000)
  assert resolve(given).batch_size == 1000


def test_a_batch_beyond_an_epoch_is_refused(dataset):
  """Such a batch would be padding, and a large one more than the memory."""
  settings = MODEL_CONFIGS['lr']()
  an_epoch = dataset.manifest['counts']['train']['examples']
  assert an_epoch > 4096
  for size in (an_epoch, 4096):
    given = TrainConfig(batch_size=size)
    assert setup.resolve_config(dataset, 'lr', settings, given)
  given = TrainConfig(batch_size=an_epoch + 1)
  with pytest.raises(InputError, match=f'{an_epoch + 1} is more than the'):
    setup.resolve_config(dataset, 'lr', settings, given)


@pytest.mark.parametrize(
  ('table_update', 'given', 'expected'),
  [
    ('dense', -1.0, 0.995),
    ('rowwise', -1.0, 0.0),
    ('rowwise', 0.9, 0.9),
    ('dense', 0.0, 0.0),
  ],
)
def test_the_average_is_left_out_where_a_copy_is_dear(
  dataset, table_update, given, expected
):
  config = TrainConfig(table_update=table_update, ema_decay=given)
  found = setup.resolve_config(dataset, 'dnn', MODEL_CONFIGS['dnn'](), config)
  assert found.ema_decay == expected


def test_rows_that_nobody_asked_for_have_no_average_and_that_is_said(
  dataset, monkeypatch
):
  settings = MODEL_CONFIGS['lr']()
  given = TrainConfig(ema_decay=0.9)
  assert setup.set_up(dataset, 'lr', settings, given).config.ema_decay == 0.9
  monkeypatch.setattr(TableUpdate, 'choice', 'rowwise')
  made = setup.set_up(dataset, 'lr', settings, given)
  assert made.config.ema_decay == 0
  [note] = [note for note in made.notes if 'average' in note]
  assert 'though --ema_decay=0.9' in note
