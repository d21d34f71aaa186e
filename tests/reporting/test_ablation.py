"""An ablation of runs whose differences and verdicts are worked by hand."""

import dataclasses
import json
import math

import pytest
from rich.console import Console

from eain_jax.artifacts import check_manifest
from eain_jax.errors import InputError
from eain_jax.reporting import document
from eain_jax.reporting.ablation import (
  ablation_lines,
  ablation_report,
  build_ablation,
)
from eain_jax.reporting.console import ablation_on_console
from eain_jax.reporting.markdown import render_markdown
from eain_jax.reporting.measured import times_of_rows
from eain_jax.reporting.report import (
  read_ablation,
  write_ablation,
  write_report,
)
from eain_jax.training.variants import VARIANTS

# Test AUC of seeds 0, 1, 2; EAIN has .80 .81 .82. Differences:
AUC = {
  'no_linear': (0.79, 0.80, 0.81),  # -.01 three times
  'no_attention': (0.78, 0.789, 0.801),  # -.02 -.021 -.019
  'no_se': (0.79, 0.81, 0.83),  # -.01 0 +.01
  'with_user': (0.806, 0.819, 0.8275),  # +.006 +.009 +.0075
}


@pytest.fixture
def ablate(fake):
  """ablate(names, seeds, ceiling): of EAIN, and of variants by AUC above."""

  def make(names=tuple(AUC), seeds=3, ceiling=None, left_out=(), auc=AUC):
    of = lambda name, seed: dataclasses.replace(
      fake.run('eain', seed, test=fake.metrics(auc[name][seed])),
      settings={
        **fake.run('eain', seed).settings,
        'model_config': dict(VARIANTS[name].model),
      },
    )
    return build_ablation(
      [fake.run('eain', seed) for seed in range(seeds)],
      {name: [of(name, seed) for seed in range(seeds)] for name in names},
      {name: VARIANTS[name] for name in VARIANTS if name in names},
      fake.manifest(),
      ceiling,
      dict(left_out),
    )

  return make


def row_of(table, name):
  return next(row for row in table['rows'] if row['variant'] == name)


def test_differences_by_hand(ablate):
  table = ablate()
  assert table['base']['auc']['mean'] == pytest.approx(0.81)
  found = row_of(table, 'no_attention')['minus_eain']['auc']
  assert found['values'] == pytest.approx([-0.02, -0.021, -0.019])
  assert found['mean'] == pytest.approx(-0.02)
  # s = .001; t(.975, 2) = 4.302653.
  assert found['ci95'] == pytest.approx(4.302653 * 0.001 / math.sqrt(3))
  t = 0.02 * math.sqrt(3) / 0.001
  p = 1 - t / math.sqrt(2 + t * t)
  assert found['p'] == pytest.approx(p)
  # The smallest of four is that of the constant -.01, 0 but for rounding.
  assert found['p_holm'] == pytest.approx(3 * p)
  assert row_of(table, 'no_se')['minus_eain']['auc']['p_holm'] == 1.0


def test_what_is_said_follows_from_the_corrected_p(ablate):
  table = ablate()
  said = {row['variant']: row['sentence'] for row in table['rows']}
  assert said['no_attention'].startswith(
    'AUC is lower: -0.0200 ± 0.0025, p 0.0'
  )
  assert '0.0248 holds 0; no difference in GAUC shown' in said['no_se']
  # +.0075, s .0015: t = 8.66, p = .0131, twice that by Holm: shown.
  assert said['with_user'].startswith(
    'AUC is higher: +0.0075 ± 0.0037, p 0.026'
  )
  # +.010 +.012 +.018, s .00416: t = 5.55, p = .031, and .062 of two: the
  # interval alone leaves 0 out.
  auc = {'no_se': (0.81, 0.822, 0.838), 'no_attention': (0.80, 0.81, 0.83)}
  table = ablate(('no_se', 'no_attention'), auc=auc)
  found = row_of(table, 'no_se')['minus_eain']['auc']
  assert found['mean'] - found['ci95'] > 0
  assert found['p_holm'] == pytest.approx(0.062, abs=5e-4)
  assert (
    'leaves 0 out, but not once corrected' in row_of(table, 'no_se')['sentence']
  )


def test_rows_stand_by_group_the_largest_loss_first(ablate):
  table = ablate()
  assert [row['variant'] for row in table['rows']] == [
    'no_attention',
    'no_se',
    'with_user',
    'no_linear',
  ]
  assert [line.name for line in ablation_lines(table)] == [
    'Parts of the paper',
    'Without attention',
    'Without SE gates',
    'Open choices',
    "With the user's id",
    'Beyond the paper',
    'Without linear weights',
  ]


def test_one_seed_shows_nothing_and_says_so(ablate):
  table = ablate(seeds=1)
  row = row_of(table, 'no_attention')
  assert row['minus_eain']['auc']['mean'] == pytest.approx(-0.02)
  assert row['minus_eain']['auc']['ci95'] is None
  assert 'of one seed, which shows nothing' in row['sentence']
  assert table['notes'][0].startswith('One seed')
  assert ablation_report(table).tiles[1][0] == '0 of 4'
  json.dumps(table, allow_nan=False)


def test_a_diverged_seed_is_no_number(ablate):
  auc = {'no_se': (0.8, math.nan, 0.8)}
  table = ablate(('no_se',), auc=auc)
  assert 'AUC is not a number with some seed' in table['rows'][0]['sentence']
  json.dumps(table, allow_nan=False)


def test_runs_that_are_not_one_variant(fake, ablate):
  runs = [fake.run('eain', 0), fake.run('eain', 0)]
  with pytest.raises(InputError, match='no_se has two runs of one seed'):
    build_ablation(
      runs[:1], {'no_se': runs}, VARIANTS, fake.manifest(), None, {}
    )
  with pytest.raises(InputError, match='differ in more than the seed'):
    build_ablation(
      [fake.run('eain', 0), fake.run('eain', 1, batch_size=8)],
      {},
      VARIANTS,
      fake.manifest(),
      None,
      {},
    )


def test_the_files_are_whole_and_the_page_opens_offline(ablate, tmp_path):
  table = ablate(
    ceiling={'auc': 0.9, 'gauc': 0.88}, left_out={'no_context': 'there is none'}
  )
  times = {'eain': {'seconds': [1.0]}}
  write_ablation(tmp_path, table, {'seeds': 3}, times)
  assert json.loads((tmp_path / 'times.json').read_text()) == times
  manifest = check_manifest(tmp_path)
  assert set(manifest['files']) == {
    'ablation.json',
    'ablation.md',
    'ablation.png',
    'report.html',
  }
  assert json.loads((tmp_path / 'ablation.json').read_text()) == table
  text = (tmp_path / 'ablation.md').read_text()
  assert text == render_markdown(ablation_report(table))
  words = ' '.join(text.split())
  assert '-0.0200 ± 0.0025' in words
  assert 'Not measured, no_context:** there is none.' in words
  assert '--nouse_attention' in words
  page = (tmp_path / 'report.html').read_text()
  assert page.count('data:image/png;base64,') == page.count('<img') == 1
  assert '<script' not in page
  assert 'Ceiling' in page


def test_the_console_fits_80_columns(ablate, fake, capsys):
  table = ablate()
  keys = ['eain', *(row['variant'] for row in table['rows'])]
  # As many digits as long runs have.
  runs = [fake.run('eain', seconds=12_345.6 + seed) for seed in range(5)]
  times = times_of_rows(dict.fromkeys(keys, runs))
  shown = ablation_on_console(table, times)
  Console(width=80, color_system=None).print(shown)
  text = capsys.readouterr().out
  assert all(text.count(f'{12_345.6 + s:.1f}') == len(keys) for s in range(5))
  assert '…' not in text
  assert max(map(len, text.splitlines())) <= 80
  row = next(s for s in text.splitlines() if s.startswith('Without attention'))
  assert row.split()[2] == '-.0200±.0025'


@pytest.mark.parametrize('changed', [{}, {'dropout': 0.5}])
def test_an_ablation_is_shown_with_a_table(ablate, fake, tmp_path, changed):
  written, shown = tmp_path / 'ablation', tmp_path / 'table'
  written.mkdir()
  shown.mkdir()
  table = ablate()
  write_ablation(written, table, {}, {})
  read = read_ablation(written, fake.manifest()['fingerprint'])
  assert read == table
  runs = fake.runs(2, ('lr', 'eain'))
  for run in runs:
    run.settings['model_config'].update(changed)
  found, _ = write_report(
    shown, runs, fake.manifest(), fake.no_ceilings, {}, ablation=read
  )
  assert found['ablation']['rows'] == table['rows']
  note = found['ablation']['notes'][-1]
  assert note == (
    "Its EAIN is not the table's: it has --dropout=0.2, not 0.5."
    if changed
    else 'Its EAIN has the flags of the table, and its own runs.'
  )
  assert 'ablation.png' in check_manifest(shown)['files']
  for name in ('table1.md', 'report.html'):
    text = (shown / name).read_text()
    assert 'Ablation: what can be said of each change' in text
    assert 'h_u is the mean of the history, (1)-(3). AUC is lower' in text
  assert 'What each change to EAIN does' in text


def test_what_is_no_ablation_of_this_dataset_is_refused(
  ablate, fake, tmp_path, monkeypatch
):
  fingerprint = fake.manifest()['fingerprint']
  with pytest.raises(InputError, match=r'manifest.json is missing'):
    read_ablation(tmp_path, fingerprint)
  write_ablation(tmp_path, ablate(), {}, {})
  with pytest.raises(InputError, match='is of another dataset: make it again'):
    read_ablation(tmp_path, 'other')
  monkeypatch.setattr('eain_jax.__version__', '9.9')
  with pytest.raises(InputError, match='was written by version 0'):
    read_ablation(tmp_path, fingerprint)
  monkeypatch.undo()
  table_dir = tmp_path / 'table'
  table_dir.mkdir()
  write_report(table_dir, fake.runs(1), fake.manifest(), fake.no_ceilings, {})
  with pytest.raises(InputError, match='holds no ablation'):
    read_ablation(table_dir, fingerprint)
  file = tmp_path / 'ablation.json'
  file.write_text(file.read_text().replace('0', '1', 1))
  with pytest.raises(InputError, match=r'ablation\.json was changed'):
    read_ablation(tmp_path, fingerprint)


def test_a_small_difference_has_the_decimals_of_its_interval():
  text = document.difference_text
  assert text({'mean': 1.1e-5, 'ci95': 0.0011}) == '+0.0000 ± 0.0011'
  assert text({'mean': -1.1e-5, 'ci95': None}) == '-1.1e-05'
  assert text({'mean': 1.1e-5, 'ci95': 2e-6}) == '+1.1e-05 ± 0.0000'
