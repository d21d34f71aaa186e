"""The profile of a run has the steps that it says, and Perfetto's form."""

import gzip
import json

import jax
import pytest

from eain_jax.config import MODEL_CONFIGS, TrainConfig
from eain_jax.errors import Interrupted
from eain_jax.training.loop import fit
from eain_jax.training.profile import CALLS_BEFORE, Profile


def profiled_run(dataset, folder, **settings):
  """What a run of three epochs says of its profile."""
  config = TrainConfig(epochs=3, **settings)
  said = []

  def report(record):
    if record['kind'] == 'note':
      said.append(record['text'])

  fit(
    dataset,
    'lr',
    MODEL_CONFIGS['lr'](),
    config,
    report=report,
    profile_dir=folder,
  )
  return [text for text in said if 'profile' in text]


def test_twenty_steps_are_traced_after_ten(dataset, tmp_path):
  (said,) = profiled_run(dataset, tmp_path, batch_size=160)
  (file,) = tmp_path.rglob('perfetto_trace.json.gz')
  assert said.startswith(f'profile of 20 calls: {file}')
  trace = json.loads(gzip.decompress(file.read_bytes()))
  events = [e for e in trace['traceEvents'] if e.get('name') == 'train']
  assert [int(e['args']['step_num']) for e in events] == list(range(10, 30))
  waits = [e for e in trace['traceEvents'] if e.get('name') == 'wait for input']
  assert len(waits) == 20
  for step, wait in zip(events, waits, strict=True):
    assert step['ts'] <= wait['ts']
    assert wait['ts'] + wait['dur'] <= step['ts'] + step['dur']


def test_a_run_that_is_too_short_says_so(dataset, tmp_path):
  (said,) = profiled_run(dataset, tmp_path / 'none', batch_size=3200)
  assert said.startswith('no profile: there were ')
  assert not (tmp_path / 'none').exists()


def test_evaluations_are_not_traced(dataset, tmp_path):
  """An epoch has 23 calls or so, and the trace ends with it."""
  (said,) = profiled_run(dataset, tmp_path, batch_size=320)
  (file,) = tmp_path.rglob('perfetto_trace.json.gz')
  trace = json.loads(gzip.decompress(file.read_bytes()))
  calls = [e for e in trace['traceEvents'] if e.get('name') == 'train']
  assert 0 < len(calls) < 20
  assert said.startswith(f'profile of {len(calls)} calls: {file}')


def be_told_to_stop(profile, after):
  with profile:
    for step in range(after):
      if profile.turns:
        profile.turn()
      with profile.call(step):
        pass
    raise Interrupted('told to stop')


def test_a_trace_that_fails_costs_a_line_and_hides_nothing(
  tmp_path, monkeypatch
):
  def fails():
    raise OSError('No space left on device')

  said = []
  stop_trace = jax.profiler.stop_trace
  monkeypatch.setattr(jax.profiler, 'stop_trace', fails)
  with pytest.raises(Interrupted):
    be_told_to_stop(Profile(tmp_path, said.append), after=CALLS_BEFORE + 1)
  assert said == ['no profile: No space left on device']
  # The trace of before is still being taken: there cannot be another.
  with pytest.raises(Interrupted):
    be_told_to_stop(Profile(tmp_path, said.append), after=CALLS_BEFORE + 1)
  assert len(said) == 2
  assert said[1].startswith('no profile: ')
  stop_trace()


def test_a_run_that_ends_early_says_nothing_of_it(tmp_path):
  said = []
  with pytest.raises(Interrupted):
    be_told_to_stop(Profile(tmp_path, said.append), after=2)
  assert said == []
