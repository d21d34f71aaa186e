"""How far a command is, on a terminal and in a log."""

import math
import re
import subprocess
import sys

import pytest

from eain_jax.reporting.progress import TrainingDisplay, TransferDisplay
from tests.reporting.conftest import make_console, shown


def test_plain_lines_are_validations(fake):
  console = make_console()
  with TrainingDisplay('eain', 20, console, clock=lambda: 0.0) as display:
    for record in fake.run('eain', 0).records:
      display(record)
  assert shown(console).splitlines() == [
    'eain: epoch 1/20  loss 0.7000  AUC 0.8100  GAUC 0.8000  logloss 0.1900  '
    'lr x0.1  3.0 s',
    'eain: epoch 2/20  loss 0.3500  AUC 0.8200  GAUC 0.8100  logloss 0.1800  '
    'lr x0.1  6.0 s',
  ]


def test_a_long_epoch_gives_a_line_a_minute(fake):
  console, now = make_console(), [0.0]
  display = TrainingDisplay('din', 2, console, clock=lambda: now[0])
  record = fake.run('eain', 0).records[0]
  for number in range(1, 14):
    now[0] = 10.0 * number
    times = {'seconds': now[0], 'seconds_waiting': 0.25 * number}
    place = {'step': 500 * number, 'epoch': number / 100}
    display({**record, **place, **times})
  # At 60 and 120 s; 500 steps in 10 s, of which a quarter of one was a wait.
  pace = '50.0 steps/s  2% input  1.5 GB'
  assert shown(console).splitlines() == [
    f'din: epoch 0.1/2  step 3,000  loss 0.9000  {pace}',
    f'din: epoch 0.1/2  step 6,000  loss 0.9000  {pace}',
  ]


def test_a_resumed_run_begins_with_a_validation_and_may_have_no_gauc(fake):
  console = make_console()
  record = fake.run('eain', 0).records[2] | {'gauc': math.nan}
  TrainingDisplay('lr', to=console)(record)
  assert shown(console).startswith('lr: epoch 1  loss -  AUC 0.8100  GAUC -')


def test_bar_on_a_terminal(fake):
  console, now = make_console(terminal=True, width=120), [0.0]

  def clock():
    now[0] += 0.5
    return now[0]

  with TrainingDisplay('eain [bold]', 4, console, clock) as display:
    for record in fake.run('eain', 0).records:
      display(record)
  text = shown(console)
  assert 'eain [bold]' in text
  assert 'epoch 2/4' in text
  assert 'AUC 0.8200' in text
  assert '20.0 steps/s  0% input  1.5 GB' in text


@pytest.mark.parametrize(
  'title', ['deepfm, seed 0', 'eain, no attention, seed 3']
)
def test_on_80_columns_the_title_gives_way_and_the_times_stay(title):
  console = make_console(terminal=True, width=80)
  with TrainingDisplay(title, 20, console) as display:
    for number in (1, 2):
      record = {'kind': 'train', 'loss': 0.5, 'epoch': 12.3 + number}
      place = {'step': 1_000 * number, 'seconds': 10.0 * number}
      spent = {
        'seconds_waiting': 1.2 * number,
        'peak_memory_bytes': 897_600_000,
      }
      display({**record, **place, **spent})
  lines = [line for line in shown(console).splitlines() if 'steps/s' in line]
  pace = '100.0 steps/s 12% input 897.6 MB'
  found = ' '.join(lines[-1].split())
  assert f'epoch 14.3/20 {pace} 0:00:0' in found
  assert re.search(r'897\.6 MB \d:\d\d:\d\d \d:\d\d:\d\d', found)
  assert title[:13] in found


def test_a_note_is_a_line_of_its_own():
  console = make_console()
  with TrainingDisplay('din, seed 0', 3, console) as display:
    display({'kind': 'note', 'step': 0, 'text': 'table update dense'})
  assert shown(console) == 'din, seed 0: table update dense\n'


def test_a_download_gives_a_line_a_file_and_then_one_a_minute():
  console, now = make_console(), [0.0]
  display = TransferDisplay(console, clock=lambda: now[0])
  for second in range(0, 131, 10):
    now[0] = float(second)
    # 1 MB a second.
    display.progress('a.gz', second * 1_000_000, 250_000_000)
  display.note('a.gz has come')
  display.progress('b.gz', 5_000, 10_000)
  display.progress('c.gz', 0, None)
  assert shown(console).splitlines() == [
    'a.gz: 250.0 MB',
    'a.gz: 60.0 MB of 250.0 MB, 1.0 MB/s, 3 minutes left',
    'a.gz: 120.0 MB of 250.0 MB, 1.0 MB/s, 2 minutes left',
    'a.gz has come',
    'b.gz: 5.0 kB of 10.0 kB',
    'c.gz: 0 bytes',
  ]


def test_a_download_has_a_bar_on_a_terminal():
  console, now = make_console(terminal=True, width=120), [0.0]
  with TransferDisplay(console, clock=lambda: now[0]) as display:
    display.progress('[bold]a.gz', 0, 4_000_000)
    display.progress('[bold]a.gz', 1_000_000, 4_000_000)
  text = shown(console)
  assert '[bold]a.gz' in text
  assert '1.0/4.0 MB' in text


def test_it_needs_no_jax():
  """A download, or a list of what there is, does not wait for it."""
  code = 'import sys, experiments.download; sys.exit("jax" in sys.modules)'
  subprocess.run([sys.executable, '-c', code], check=True)
