"""The profile of a run has the steps that it says, and Perfetto's form."""

import gzip
import json

from eain_jax.config import MODEL_CONFIGS, TrainConfig
from eain_jax.training.loop import fit


def profiled_run(dataset, folder, batch_size):
  """What a run of three epochs says of its profile."""
  config = TrainConfig(batch_size=batch_size, epochs=3)
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
  (said,) = profiled_run(dataset, tmp_path, batch_size=320)
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
