"""What a command found, on a terminal."""

import math

import pytest

from eain_jax.reporting import console as module
from eain_jax.reporting.console import (
  metrics_on_console,
  table1_on_console,
)
from eain_jax.reporting.table1 import build_table1, training_times
from tests.reporting.conftest import make_console, shown


def test_table_fits_80_columns_and_loses_no_figure(fake):
  console = make_console()
  table = build_table1(fake.runs(3), fake.manifest(), fake.no_ceilings)
  console.print(table1_on_console(table, training_times(fake.runs(3))))
  text = shown(console)
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


def test_seconds_of_seeds_that_were_trained_together_are_said_to_be(fake):
  runs = fake.runs(3)
  table = build_table1(runs, fake.manifest(), fake.no_ceilings)
  text = {}
  for count in (1, 3):
    for run in runs:
      run.result['trained_together'] = count
    console = make_console()
    console.print(table1_on_console(table, training_times(runs)))
    text[count] = shown(console)
  assert 'runs in these seconds' not in text[1]
  assert 'runs in these seconds' in text[3]
  row = [r for r in text[3].splitlines() if r.startswith('EAIN')][-1]
  assert row.split()[-1] == '3'


def test_names_are_neither_markup_nor_escape_sequences(fake):
  source = {
    'name': '[red]x[/nonsense]\x1b[2J',
    'bytes': 1,
    'sha256': '0',
    'format': 'csv',
  }
  console = make_console()
  table = build_table1(
    fake.runs(1), fake.manifest(sources=[source]), fake.no_ceilings
  )
  console.print(table1_on_console(table, training_times(fake.runs(1))))
  assert '[red]x[/nonsense]\\x1b[2J' in shown(console)


def test_metrics(fake, monkeypatch):
  console = make_console()
  monkeypatch.setattr(module, 'console', console)
  values = fake.metrics(0.75, gauc=math.nan, examples=12_345)
  metrics_on_console({**values, 'ceiling': {'auc': 0.9, 'gauc': 0.8}})
  lines = {
    line.rsplit('  ', 1)[0].split('  ')[0].strip(): line.split()
    for line in shown(console).splitlines()
  }
  assert lines['AUC'] == ['AUC', '0.7500', '±', '0.0020', '0.9000']
  assert lines['GAUC'] == ['GAUC', '-', '0.8000']
  assert lines['examples'] == ['examples', '12,345']
  assert 'auc_ci95' not in shown(console)


@pytest.mark.parametrize('ceiling', [{}, {'ceiling': None}])
def test_metrics_without_ceiling(fake, monkeypatch, ceiling):
  console = make_console()
  monkeypatch.setattr(module, 'console', console)
  metrics_on_console({**fake.metrics(0.75), **ceiling})
  assert 'Ceiling' not in shown(console)
  assert 'ceiling' not in shown(console)


def test_results_stay_off_standard_output():
  assert module.console.stderr
