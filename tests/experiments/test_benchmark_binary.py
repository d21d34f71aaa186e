"""The benchmark as a user runs it: output, files, exit codes, sentences."""

import json

import pytest

from tests.experiments.binary import call, succeed

TINY = (
  '--items=200',
  '--users=100',
  '--sequences=400',
  '--batch_size=64',
  '--steps=4',
  '--warmup=1',
  '--repeats=2',
  '--batches=2',
  '--embedding_dim=4',
  '--mlp=8',
)
PICTURE = b'\x89PNG'


def without(name, flags):
  """The flags but for one, over which is swept."""
  return [flag for flag in flags if not flag.startswith(f'--{name}=')]


def test_rows_last_line_and_profile(tmp_path):
  out = tmp_path / 'out'
  stdout = succeed(
    'benchmark',
    f'--output_dir={out}',
    *TINY,
    '--noceilings',
    '--threads=1',
    '--profile',
  )
  result = json.loads((out / 'benchmark.json').read_text())
  last = json.loads(stdout.splitlines()[-1])
  assert [(r['model'], r['mode']) for r in result['rows']] == [
    ('din', 'train'),
    ('din', 'score'),
  ]
  for row in result['rows']:
    assert row['batch'] == 64
    assert row['threads'] == 1
    assert row['timed_compilations'] == 0
    assert row['end_to_end']['timed_compilations'] == 0
    assert row['compilations'] >= 1
    assert row['program']['matmul_flops'] > 0
    assert row['program']['bytes_accessed'] > 0
    assert row['share_of_matmul_ceiling'] is None
    assert row['parameters'] > 0
    assert row['peak_rss_mb'] > 0
    assert row['input_examples_per_second'] > 0
    assert 1 <= len(row['top_operations']) <= 15
    assert row['model_config']['dropout'] == 0  # the benchmark's own default
    assert row['model_config']['mlp'] == [8]  # the flag's
  assert last == {name: result['rows'][-1][name] for name in last}
  assert {
    'ex_s',
    'step_ms',
    'cpu_ms',
    'batch',
    'threads',
    'others_cpu',
    'peak_rss_mb',
    'model',
    'mode',
  } <= set(last)
  assert {'jax', 'jaxlib', 'eain_jax'} <= set(result['versions'])
  assert result['platform'] == 'cpu'
  assert result['settings']['train']['clip_norm'] == 0
  assert list((out / 'profile').rglob('*.trace.json.gz'))
  assert 'Top operations, din train' in stdout


@pytest.mark.slow
def test_a_sweep_draws_its_rows_and_says_what_it_leaves_out(tmp_path):
  out = tmp_path / 'out'
  stdout = succeed(
    'benchmark',
    f'--output_dir={out}',
    *without('items', TINY[:-1]),
    '--noceilings',
    '--model=lr,mf',
    '--modes=train',
    '--sweep=items',
    '--sweep_values=200,1_000,2_000_000_000',
  )
  result = json.loads((out / 'benchmark.json').read_text())
  assert [(r['model'], r['items']) for r in result['rows']] == [
    ('lr', 200),
    ('mf', 200),
    ('lr', 1_000),
    ('mf', 1_000),
  ]
  assert [s['model'] for s in result['skipped']] == ['lr', 'mf']
  assert 'Left out: lr with 2,000,000,000 items' in stdout
  assert (out / 'sweep_items.png').read_bytes().startswith(PICTURE)


@pytest.mark.slow
def test_a_sweep_of_batches_with_ceilings_and_preparation(tmp_path):
  out = tmp_path / 'out'
  stdout = succeed(
    'benchmark',
    f'--output_dir={out}',
    *without('batch_size', TINY),
    '--model=dnn',
    '--sweep=batch_size',
    '--sweep_values=32,64',
    '--prepare',
    '--prepare_reviews=1000',
  )
  result = json.loads((out / 'benchmark.json').read_text())
  assert [(r['mode'], r['batch']) for r in result['rows']] == [
    ('train', 32),
    ('score', 32),
    ('train', 64),
    ('score', 64),
  ]
  assert min(result['ceilings'].values()) > 0
  for row in result['rows']:
    assert row['share_of_memory_ceiling'] > 0
  assert result['preparation']['lines'] == 1_000
  assert result['preparation']['reviews_per_second'] > 0
  assert 'Preparation' in stdout
  assert (out / 'sweep_batch_size.png').read_bytes().startswith(PICTURE)


@pytest.mark.parametrize(
  ('flags', 'code', 'sentence'),
  [
    (['--model=wide'], 2, 'model=wide is unknown'),
    (['--modes=guess'], 2, 'modes=guess is unknown'),
    (['--modes='], 2, 'nothing to measure'),
    (['--steps=4', '--repeats=5'], 2, 'repeats=5 windows'),
    (['--sweep_values=3'], 2, 'sweep_values needs'),
    (['--sweep=items', '--sweep_values=a'], 2, 'values of type int'),
    (['--sweep=items', '--dataset_dir=x'], 2, '--sweep=items'),
    (['--sweep=items', '--items=5000'], 2, '--sweep_values, not --items'),
    (['--prepare_reviews=2000'], 2, 'goes with --prepare'),
    (['--model=lr', '--attention_dim=3'], 2, 'is not a setting of lr'),
    (['--model=lr,mf', '--attention_dim=3'], 2, 'is not a setting of lr, mf'),
    (['--threads=100000'], 2, 'is more than the'),
    (['--dataset_dir=absent'], 1, 'absent'),
  ],
)
def test_bad_flags_are_refused_in_a_sentence(tmp_path, flags, code, sentence):
  done = call('benchmark', f'--output_dir={tmp_path / "out"}', *flags)
  assert done.returncode == code, done.stderr
  assert sentence in done.stderr
  assert 'Traceback' not in done.stderr
  assert not (tmp_path / 'out').exists()


def test_a_folder_that_holds_something_is_refused(tmp_path):
  (tmp_path / 'mine').write_text('')
  done = call('benchmark', f'--output_dir={tmp_path}', *TINY)
  assert done.returncode == 1
  assert 'already holds something' in done.stderr


@pytest.mark.parametrize(
  ('name', 'value'),
  [('JAX_NUM_PROCESSES', '2'), ('EAIN_DISTRIBUTED', 'detect')],
)
def test_it_does_not_run_in_several_processes(
  tmp_path, monkeypatch, name, value
):
  """As on each worker of a TPU pod, where it would measure by itself."""
  monkeypatch.setenv(name, value)
  done = call('benchmark', f'--output_dir={tmp_path / "out"}', *TINY)
  assert done.returncode == 1
  assert 'runs in one process: start it without a launcher' in done.stderr
  assert not (tmp_path / 'out').exists()
