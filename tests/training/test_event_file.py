"""What `metrics.jsonl` says, TensorBoard's own reader finds in the folder."""

import errno
import json

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboardX.record_writer import RecordWriter

from eain_jax.config import MODEL_CONFIGS, TrainConfig
from eain_jax.errors import InputError, Interrupted
from eain_jax.training.loop import fit
from eain_jax.training.run_log import RunLog

CONFIG = TrainConfig(
  batch_size=320, epochs=3, learning_rate=5e-3, log_every=5, save_every=14
)
PLACES = ('kind', 'step', 'epoch')
RECORD = {'kind': 'train', 'step': 1, 'epoch': 1.0, 'loss': 0.5}


class Stopped(Exception):
  pass


def train(dataset, work_dir, report=None):
  model_config = MODEL_CONFIGS['lr']()
  return fit(dataset, 'lr', model_config, CONFIG, work_dir, report)


def stop_at(limit):
  """A report that ends a run at the first record from a step on."""

  def report(record):
    if record['step'] >= limit:
      raise Stopped

  return report


def read_lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def read_scalars(work_dir):
  """(tag, step) to (value, wall time)."""
  (file,) = work_dir.glob('events.out.tfevents.*.eain')
  events = event_accumulator.EventAccumulator(str(file))
  events.Reload()
  found = {}
  for tag in events.Tags()['scalars']:
    for event in events.Scalars(tag):
      assert (tag, event.step) not in found
      found[tag, event.step] = (event.value, event.wall_time)
  return found


def assert_follows_the_log(work_dir):
  """Every number of both files, and nothing else; the speeds by hand."""
  records = read_lines(work_dir / 'metrics.jsonl')
  times = read_lines(work_dir / 'timings.jsonl')
  expected = {}
  before = {'step': 0, 'seconds': 0.0, 'seconds_waiting': 0.0}
  for record, at in zip(records, times, strict=True):
    assert (record['kind'], record['step']) == (at['kind'], at['step'])
    place, wall_time = at['step'], at['time']
    for name, value in record.items():
      if name not in PLACES and isinstance(value, float):
        expected[f'{at["kind"]}/{name}', place] = (value, wall_time)
    if at['kind'] == 'train':
      steps, seconds, waited = (
        at[name] - before[name]
        for name in ('step', 'seconds', 'seconds_waiting')
      )
      assert seconds > 0
      for name, value in (
        ('speed/steps_per_second', steps / seconds),
        ('speed/input_wait_share', waited / seconds),
        ('memory/peak_bytes', at['peak_memory_bytes']),
      ):
        expected[name, place] = (value, wall_time)
    before = at
  found = read_scalars(work_dir)
  assert set(found) == set(expected)
  for place, (value, wall_time) in expected.items():
    np.testing.assert_allclose(found[place][0], value, rtol=1e-6)
    assert found[place][1] == wall_time
  return found


def test_tensorboard_reads_what_the_log_says(dataset, tmp_path):
  train(dataset, tmp_path)
  found = assert_follows_the_log(tmp_path)
  tags = {tag for tag, _ in found}
  assert {'train/loss', 'valid/auc', 'valid/ndcg@10', 'valid/logloss'} <= tags
  # A count of a part is no curve.
  assert 'valid/examples' not in tags


def test_a_run_that_goes_on_leaves_no_gap_and_no_repeat(dataset, tmp_path):
  whole = train(dataset, tmp_path / 'whole')
  per_epoch = whole.result['steps'] // CONFIG.epochs

  first = None
  for limit in (per_epoch // 2 + 5, per_epoch + 1, 2 * per_epoch):
    with pytest.raises(Stopped):
      train(dataset, tmp_path / 'w', stop_at(limit))
    lines = read_lines(tmp_path / 'w' / 'timings.jsonl')
    first = first or lines[0]['time']
  train(dataset, tmp_path / 'w')
  found = assert_follows_the_log(tmp_path / 'w')
  # What was measured before an interruption keeps its time of day.
  assert found['train/loss', CONFIG.log_every][1] == first
  without = lambda scalars: {
    place: value
    for place, (value, _) in scalars.items()
    if place[0].split('/')[0] in ('train', 'valid')
  }
  assert without(found) == without(read_scalars(tmp_path / 'whole'))


def test_a_cut_line_of_times_costs_its_events_alone(dataset, tmp_path):
  with pytest.raises(Stopped):
    train(dataset, tmp_path, stop_at(40))
  timings = tmp_path / 'timings.jsonl'
  lines = timings.read_text().splitlines()
  timings.write_text('\n'.join([*lines[:1], lines[1][:9], *lines[2:]]) + '\n')
  train(dataset, tmp_path)
  records = read_lines(tmp_path / 'metrics.jsonl')
  found = {step for tag, step in read_scalars(tmp_path) if tag == 'train/loss'}
  steps = [r['step'] for r in records if r['kind'] == 'train']
  assert found == {*steps} - {steps[1]}


def test_a_full_disk_hides_no_exception_and_is_one_sentence(
  tmp_path, monkeypatch
):
  def no_space(writer):
    raise OSError(errno.ENOSPC, 'No space left on device')

  def log_and(then):
    with RunLog(tmp_path, None) as log:
      log.begin('')
      with pytest.raises(InputError, match='No space left on device: make'):
        log(seconds=1.0, seconds_waiting=0.0, **RECORD)
      then()

  def be_told_to_stop():
    raise Interrupted('told to stop')

  monkeypatch.setattr(RecordWriter, 'flush', no_space)
  with pytest.raises(Interrupted):
    log_and(be_told_to_stop)
  with pytest.raises(InputError, match='No space left on device: make room'):
    log_and(lambda: None)


def test_files_of_others_stay(tmp_path):
  tmp_path.joinpath('events.out.tfevents.1.mine').write_bytes(b'mine')
  with RunLog(tmp_path, None) as log:
    log.begin('')
    log(seconds=1.0, seconds_waiting=0.0, **RECORD)
  assert len(list(tmp_path.glob('events.out.tfevents.*'))) == 2
