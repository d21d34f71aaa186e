"""The ablation as a user runs it: files, going on, exit codes, sentences."""

import json

import pytest

from eain_jax.artifacts import check_manifest
from tests.experiments.binary import call
from tests.experiments.tiny_eain import TINY_EAIN

SMALL = (
  '--epochs=1',
  '--batch_size=512',
  *TINY_EAIN,
)


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  folder = tmp_path_factory.mktemp('world') / 'dataset'
  flags = ('--synthetic', '--num_events=1000', '--eval_negatives=9')
  done = call('prepare_data', f'--output_dir={folder}', *flags)
  assert done.returncode == 0, done.stderr
  return folder


@pytest.mark.slow
def test_two_variants_of_two_seeds(world, tmp_path):
  out = tmp_path / 'out'
  flags = (f'--dataset_dir={world}', f'--output_dir={out}', '--seeds=2', *SMALL)
  variants = '--variants=no_attention,skip_above'
  done = call('ablation', *flags, variants)
  assert done.returncode == 0, done.stderr
  assert 'Without attention' in done.stdout
  assert 'With Skip Above' in done.stdout
  files = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
  check_manifest(out)
  table = json.loads(files['ablation.json'])
  assert {row['variant'] for row in table['rows']} == {
    'no_attention',
    'skip_above',
  }
  for row in table['rows']:
    # Of the runs' own files.
    expected = []
    for seed in (0, 1):
      auc = [
        json.loads((out / 'runs' / run / 'result.json').read_text())['test'][
          'auc'
        ]
        for run in (f'{row["variant"]}-seed{seed}', f'eain-seed{seed}')
      ]
      expected.append(auc[0] - auc[1])
    assert row['minus_eain']['auc']['values'] == pytest.approx(expected)
    assert row['minus_eain']['auc']['p_holm'] is not None
  settings = {
    run: json.loads((out / 'runs' / run / 'config.json').read_text())
    for run in ('eain-seed1', 'no_attention-seed1', 'skip_above-seed1')
  }
  base, no_attention, skip_above = settings.values()
  assert base['model_config']['mlp'] == [8]
  assert not no_attention['model_config'].pop('use_attention')
  assert base['model_config'].pop('use_attention')
  assert no_attention == base
  assert skip_above['train_config']['skip_above'] == 'on'
  # A run that is gone is trained again, to the same bits; others are read.
  kept = out / 'runs' / 'eain-seed0' / 'result.json'
  before = kept.stat().st_mtime_ns
  for path in sorted(
    (out / 'runs' / 'no_attention-seed1').rglob('*'), reverse=True
  ):
    path.rmdir() if path.is_dir() else path.unlink()
  (out / 'runs' / 'no_attention-seed1').rmdir()
  again = call('ablation', *flags, variants)
  assert again.returncode == 0, again.stderr
  assert kept.stat().st_mtime_ns == before
  after = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
  for times in (json.loads(f.pop('times.json')) for f in (files, after)):
    assert list(times) == ['eain', 'no_attention', 'skip_above']
    assert [len(of['seconds']) for of in times.values()] == [2, 2, 2]
  assert files == after
  other = call('ablation', *flags, '--variants=no_attention')
  assert other.returncode == 1
  assert 'holds what other flags made' in other.stderr
  assert len(other.stderr.strip().splitlines()) == 1
  # A table shows it.
  shown = (f'--dataset_dir={world}', f'--output_dir={tmp_path / "table"}')
  done = call(
    'table1', *shown, '--models=lr', '--epochs=1', f'--ablation_dir={out}'
  )
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / 'table' / 'table1.json').read_text())
  assert found['ablation']['rows'] == table['rows']


@pytest.mark.parametrize(
  ('flags', 'code', 'message'),
  [
    (('--variants=no_such',), 2, '--variants=no_such must name variants, once'),
    (('--variants=no_se,no_se',), 2, 'once each'),
    (('--seeds=0',), 2, 'seeds'),
    (('--seed=1',), 2, 'seed'),
    (('--attention=8',), 2, '--attention is not a setting of eain'),
    (
      ('--variants=no_skip_above',),
      1,
      '--variants=no_skip_above cannot be tried: Skip Above is off already',
    ),
    (
      ('--variants=no_se,no_position', '--nouse_paim'),
      1,
      'no_position cannot be tried: --use_paim is not what EAIN has here',
    ),
    (('--variants=no_se', '--nouse_se'), 1, 'EAIN is so already, by its flags'),
  ],
)
def test_exit_codes(world, tmp_path, flags, code, message):
  where = (f'--dataset_dir={world}', f'--output_dir={tmp_path / "out"}')
  done = call('ablation', *where, *flags)
  assert done.returncode == code, done.stderr
  assert message in done.stderr + done.stdout
  assert 'Traceback' not in done.stderr
  assert not list(tmp_path.iterdir())


def test_a_dataset_is_needed(tmp_path):
  done = call('ablation', f'--output_dir={tmp_path / "out"}')
  assert done.returncode == 2
  done = call(
    'ablation', f'--output_dir={tmp_path / "out"}', '--dataset_dir=none'
  )
  assert done.returncode == 1
  assert 'is not a prepared dataset' in done.stderr
  assert not list(tmp_path.iterdir())
