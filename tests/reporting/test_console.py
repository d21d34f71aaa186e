"""What stands on a terminal, and what in a log."""

import io
import math

import pytest
from rich.console import Console

from eain_jax.reporting import console as module
from eain_jax.reporting.console import (
  TrainingDisplay,
  TransferDisplay,
  metrics_on_console,
  table1_on_console,
)
from eain_jax.reporting.table1 import build_table1, training_times


def _console(*, terminal=False, width=80):
  return Console(
    file=io.StringIO(),
    force_terminal=terminal,
    width=width,
    highlight=False,
    color_system=None,
  )


def _shown(console):
  return console.file.getvalue()


def test_table_fits_80_columns_and_loses_no_figure(fake):
  console = _console()
  table = build_table1(fake.runs(3), fake.manifest(), fake.no_ceilings)
  console.print(table1_on_console(table, training_times(fake.runs(3))))
  text = _shown(console)
  assert '…' not in text
  row = next(line for line in text.splitlines() if line.startswith('EAIN'))
  assert row.split() == [
    'EAIN',
    '.8100±.0248',
    '.845',
    '.0810±.0025',
    '.490',
    '.8100±.0248',
    '.550',
    '.1473±.0045',
    '.506',
  ]
  assert 'undecided' in text
  assert 'Precision@10 is at most 0.1' in text


def test_names_are_neither_markup_nor_escape_sequences(fake):
  source = {
    'name': '[red]x[/nonsense]\x1b[2J',
    'bytes': 1,
    'sha256': '0',
    'format': 'csv',
  }
  console = _console()
  table = build_table1(
    fake.runs(1), fake.manifest(sources=[source]), fake.no_ceilings
  )
  console.print(table1_on_console(table, training_times(fake.runs(1))))
  assert '[red]x[/nonsense]\\x1b[2J' in _shown(console)


def test_metrics(fake, monkeypatch):
  console = _console()
  monkeypatch.setattr(module, 'console', console)
  values = fake.metrics(0.75, gauc=math.nan, examples=12_345)
  metrics_on_console({**values, 'ceiling': {'auc': 0.9, 'gauc': 0.8}})
  lines = {
    line.rsplit('  ', 1)[0].split('  ')[0].strip(): line.split()
    for line in _shown(console).splitlines()
  }
  assert lines['AUC'] == ['AUC', '0.7500', '±', '0.0020', '0.9000']
  assert lines['GAUC'] == ['GAUC', '-', '0.8000']
  assert lines['examples'] == ['examples', '12,345']
  assert 'auc_ci95' not in _shown(console)


@pytest.mark.parametrize('ceiling', [{}, {'ceiling': None}])
def test_metrics_without_ceiling(fake, monkeypatch, ceiling):
  console = _console()
  monkeypatch.setattr(module, 'console', console)
  metrics_on_console({**fake.metrics(0.75), **ceiling})
  assert 'Ceiling' not in _shown(console)
  assert 'ceiling' not in _shown(console)


def test_plain_lines_are_validations(fake):
  console = _console()
  with TrainingDisplay('eain', 20, console, clock=lambda: 0.0) as display:
    for record in fake.run('eain', 0).records:
      display(record)
  assert _shown(console).splitlines() == [
    'eain: epoch 1/20  loss 0.7000  AUC 0.8100  GAUC 0.8000  logloss 0.1900  '
    'lr x0.1  3.0 s',
    'eain: epoch 2/20  loss 0.3500  AUC 0.8200  GAUC 0.8100  logloss 0.1800  '
    'lr x0.1  6.0 s',
  ]


def test_a_long_epoch_gives_a_line_a_minute(fake):
  console, now = _console(), [0.0]
  display = TrainingDisplay('din', 2, console, clock=lambda: now[0])
  record = fake.run('eain', 0).records[0]
  for number in range(1, 14):
    now[0] = 10.0 * number
    times = {'seconds': now[0], 'seconds_waiting': 0.25 * number}
    place = {'step': 500 * number, 'epoch': number / 100}
    display({**record, **place, **times})
  # At 60 and 120 s; 500 steps in 10 s, of which a quarter of one was a wait.
  pace = '50.0 steps/s  2% input  1.5 GB'
  assert _shown(console).splitlines() == [
    f'din: epoch 0.1/2  step 3,000  loss 0.9000  {pace}',
    f'din: epoch 0.1/2  step 6,000  loss 0.9000  {pace}',
  ]


def test_a_resumed_run_begins_with_a_validation_and_may_have_no_gauc(fake):
  console = _console()
  record = fake.run('eain', 0).records[2] | {'gauc': math.nan}
  TrainingDisplay('lr', to=console)(record)
  assert _shown(console).startswith('lr: epoch 1  loss -  AUC 0.8100  GAUC -')


def test_bar_on_a_terminal(fake):
  console, now = _console(terminal=True, width=120), [0.0]

  def clock():
    now[0] += 0.5
    return now[0]

  with TrainingDisplay('eain [bold]', 4, console, clock) as display:
    for record in fake.run('eain', 0).records:
      display(record)
  text = _shown(console)
  assert 'eain [bold]' in text
  assert 'epoch 2/4' in text
  assert 'AUC 0.8200' in text
  assert '20.0 steps/s  0% input  1.5 GB' in text


def test_results_stay_off_standard_output():
  assert module.console.stderr


def test_a_note_is_a_line_of_its_own():
  console = _console()
  with TrainingDisplay('din, seed 0', 3, console) as display:
    display({'kind': 'note', 'step': 0, 'text': 'table update dense'})
  assert _shown(console) == 'din, seed 0: table update dense\n'


def test_a_download_gives_a_line_a_file_and_then_one_a_minute():
  console, now = _console(), [0.0]
  display = TransferDisplay(console, clock=lambda: now[0])
  for second in range(0, 131, 10):
    now[0] = float(second)
    # 1 MB a second.
    display.progress('a.gz', second * 1_000_000, 250_000_000)
  display.note('a.gz has come')
  display.progress('b.gz', 5_000, 10_000)
  display.progress('c.gz', 0, None)
  assert _shown(console).splitlines() == [
    'a.gz: 250.0 MB',
    'a.gz: 60.0 MB of 250.0 MB, 1.0 MB/s, 3 minutes left',
    'a.gz: 120.0 MB of 250.0 MB, 1.0 MB/s, 2 minutes left',
    'a.gz has come',
    'b.gz: 5.0 kB of 10.0 kB',
    'c.gz: 0 bytes',
  ]


def test_a_download_has_a_bar_on_a_terminal():
  console, now = _console(terminal=True, width=120), [0.0]
  with TransferDisplay(console, clock=lambda: now[0]) as display:
    display.progress('[bold]a.gz', 0, 4_000_000)
    display.progress('[bold]a.gz', 1_000_000, 4_000_000)
  text = _shown(console)
  assert '[bold]a.gz' in text
  assert '1.0/4.0 MB' in text
