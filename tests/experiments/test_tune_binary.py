"""`experiments.tune` as a user runs it, and what its flags are good for."""

import json

import pytest

from tests.experiments.binary import call


@pytest.mark.slow
def test_a_search_goes_on_and_its_flags_train(dataset, tmp_path):
  out = tmp_path / 'out'
  search = (
    f'--dataset_dir={dataset.path}',
    f'--output_dir={out}',
    '--model=lr',
    '--search=learning_rate,table_l2',
    '--epochs=2',
    '--batch_size=256',
  )
  done = call('tune', *search, '--trials=1')
  assert done.returncode == 0, done.stderr
  assert 'trial 0: --learning_rate=0.001 --table_l2=1e-06' in done.stdout
  done = call('tune', *search, '--trials=2')
  assert done.returncode == 0, done.stderr
  assert 'trial 0:' not in done.stdout
  assert '2 trials, 0 of them given up early' in done.stdout
  record = json.loads((out / 'tune.json').read_text())
  assert [len(trial['epochs']) for trial in record['trials']] == [2, 2]
  assert record['fixed'] == {'batch_size': '256', 'epochs': '2'}
  assert all('test' not in trial for trial in record['trials'])
  best = record['trials'][record['best']]
  # The same settings and seed give the same numbers again.
  done = call(
    'train',
    f'--flagfile={out / "lr.flags"}',
    f'--dataset_dir={dataset.path}',
    f'--work_dir={tmp_path / "run"}',
    '--model=lr',
  )
  assert done.returncode == 0, done.stderr
  result = json.loads((tmp_path / 'run' / 'result.json').read_text())
  assert result['valid']['gauc'] == best['value']
  # Another search has no place in this folder.
  done = call('tune', *search, '--trials=3', '--objective=auc')
  assert done.returncode == 1
  assert 'holds what other flags made' in done.stderr
  assert json.loads((out / 'tune.json').read_text()) == record


def test_bad_flags(dataset, tmp_path):
  flags = (f'--dataset_dir={dataset.path}', f'--output_dir={tmp_path / "o"}')
  for more, code, said in [
    (('--search=nothing',), 1, 'nothing cannot be searched for eain'),
    (('--trials=0',), 2, 'trials'),
    (('--model=lr', '--dropout=.1'), 2, 'not a setting of lr'),
  ]:
    done = call('tune', *flags, *more)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert 'Traceback' not in done.stderr
  assert not (tmp_path / 'o').exists()
