"""Scaling as a user runs it: output, files, exit codes, sentences."""

import json

import pytest

from tests.experiments.binary import call

TINY = (
  '--model=lr',
  '--items=200',
  '--users=100',
  '--sequences=400',
  '--batch_size=64',
  '--steps=4',
  '--warmup=1',
  '--repeats=2',
  '--batches=2',
)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('parallelism', 'scaling', 'batch'),
  [('mesh', 'weak', 128), ('pmap', 'strong', 64)],
)
def test_rows_picture_and_last_line(tmp_path, parallelism, scaling, batch):
  out = tmp_path / 'out'
  done = call(
    'scaling',
    f'--output_dir={out}',
    *TINY,
    '--devices=1,2',
    f'--parallelism={parallelism}',
    f'--scaling={scaling}',
  )
  assert done.returncode == 0, done.stderr
  result = json.loads((out / 'scaling.json').read_text())
  last = json.loads(done.stdout.splitlines()[-1])
  assert last == {name: result['rows'][-1][name] for name in last}
  assert (last['scaling'], last['devices'], last['batch']) == (
    scaling,
    2,
    batch,
  )
  assert last['parallelism'] == parallelism
  assert last['cores'] >= 1
  assert last['collective_ms'] > 0
  assert result['devices'] == 2
  assert result['settings']['scaling']['devices'] == [1, 2]
  assert {'jax', 'jaxlib', 'eain_jax'} <= set(result['versions'])
  assert (out / 'scaling.png').read_bytes().startswith(b'\x89PNG')
  assert 'Efficiency' in done.stdout
  assert 'virtual devices of one CPU' in ' '.join(done.stdout.split())


@pytest.mark.parametrize(
  ('flags', 'code', 'sentence'),
  [
    (['--devices=0'], 2, 'devices=0 must be at least 1'),
    (['--devices=two'], 2, 'values of type int'),
    (['--parallelism=none'], 2, 'parallelism'),
    (['--batch_size=0'], 2, 'name the batch'),
    (['--model=lr', '--attention_dim=3'], 2, 'is not a setting of lr'),
    ([*TINY, '--batch_size=1', '--devices=2'], 1, 'too few for 2 device(s)'),
  ],
)
def test_bad_flags_are_refused_in_a_sentence(tmp_path, flags, code, sentence):
  done = call('scaling', f'--output_dir={tmp_path / "out"}', *flags)
  assert done.returncode == code, done.stderr
  assert sentence in done.stderr
  assert 'Traceback' not in done.stderr
  assert not (tmp_path / 'out').exists()
