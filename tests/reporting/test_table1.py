"""Table 1 from runs whose means, intervals and verdicts are worked by hand."""

import json
import math
import re

import pytest

from eain_jax.errors import InputError
from eain_jax.reporting import document
from eain_jax.reporting.markdown import render_markdown
from eain_jax.reporting.table1 import build_table1, training_times


def _build(fake, runs, ceiling=None, **manifest):
  return build_table1(
    runs, fake.manifest(**manifest), {'valid': ceiling, 'test': ceiling}
  )


def _markdown(table):
  return render_markdown(document.table1_report(table))


def _row(table, model):
  return next(row for row in table['rows'] if row['model'] == model)


def _claim(table, start):
  return next(c for c in table['holds'] if c['claim'].startswith(start))


def test_means_and_intervals_over_seeds(fake):
  row = _row(_build(fake, fake.runs(3)), 'eain')
  # .80, .81, .82: s = .01; t(.975, 2) = 4.302653; 4.302653 * .01 / sqrt(3).
  assert row['auc']['mean'] == pytest.approx(0.81)
  assert row['auc']['ci95'] == pytest.approx(0.02484138, abs=1e-7)
  assert row['auc']['values'] == [0.80, 0.81, 0.82]
  assert row['seeds'] == [0, 1, 2]
  assert row['logloss']['mean'] == pytest.approx(0.19)
  assert row['valid']['auc']['mean'] == pytest.approx(0.83)
  assert row['precision@10']['mean'] == pytest.approx(0.081)


def test_one_seed_has_no_interval(fake):
  table = _build(fake, fake.runs(1))
  row = _row(table, 'din')
  assert row['auc'] == {'mean': 0.795, 'ci95': None, 'values': [0.795]}
  assert table['notes'][0].startswith('One seed:')
  assert '± 0.0020' in table['notes'][0]


def test_contract_of_the_json(fake):
  table = _build(fake, fake.runs(2), {'auc': 0.9, 'gauc': math.nan})
  again = json.loads(json.dumps(table, allow_nan=False))
  assert again == table
  assert table['ceiling'] == {
    'valid': {'auc': 0.9, 'gauc': None},
    'test': {'auc': 0.9, 'gauc': None},
  }
  for metric in ('auc', 'gauc', 'logloss', 'recall@10', 'f1', 'calibration'):
    assert set(table['rows'][0][metric]) == {'mean', 'ci95', 'values'}
  assert table['dataset']['sources'][0]['sha256'] == 'ab' * 32
  assert table['versions'].keys() >= {'jax', 'jaxlib', 'numpy', 'device'}
  assert 'seed' not in table['settings']['models']['eain']['train_config']


def test_models_whose_tables_are_updated_otherwise_are_named(fake):
  runs = [fake.run('lr', 0), fake.run('eain', 0, table_update='rowwise')]
  [note] = [n for n in _build(fake, runs)['notes'] if 'not trained alike' in n]
  assert '--table_update=auto for LR; --table_update=rowwise for EAIN' in note
  notes = _build(fake, fake.runs(2))['notes']
  assert not any('not trained alike' in n for n in notes)


def test_rows_follow_the_order_of_the_paper_whatever_the_runs_order(fake):
  runs = fake.runs(2)
  order = ['lr', 'mf', 'dnn', 'din', 'deepfm', 'eain']
  for given in (runs, runs[::-1]):
    table = _build(fake, given)
    assert [row['model'] for row in table['rows']] == order
    assert _row(table, 'lr')['seeds'] == [0, 1]
  assert _row(table, 'deepfm')['name'] == 'DeepFM'


def test_two_measurements_differ_in_times_alone(fake):
  made = [
    [fake.run(model, 0, seconds=s) for model in fake.AUC] for s in (1.0, 2.0)
  ]
  tables = [_build(fake, runs) for runs in made]
  assert json.dumps(tables[0]) == json.dumps(tables[1])
  times = [training_times(runs[::-1]) for runs in made]
  assert list(times[0]) == ['lr', 'mf', 'dnn', 'din', 'deepfm', 'eain']
  assert times[0]['eain'] == {
    'seconds': [1.0],
    'examples_per_second': [1000.0],
    'trained_together': [1],
  }
  assert times[0] != times[1]


def test_a_diverged_seed_shows_and_is_no_nan(fake):
  broken = fake.run('eain', 1, test=fake.metrics(math.nan, gauc=None))
  table = _build(fake, [fake.run('eain', 0), broken, fake.run('lr', 0)])
  row = _row(table, 'eain')
  assert row['auc'] == {'mean': None, 'ci95': None, 'values': [0.8, None]}
  assert row['gauc']['mean'] is None
  json.dumps(table, allow_nan=False)
  assert 'nan' not in _markdown(table).lower().split()


def test_verdicts_over_three_seeds(fake):
  table = _build(fake, fake.runs(3))
  # DIN .80 and DeepFM .79 are swapped within noise; MF .71 < DIN .80 is sure.
  order = _claim(table, 'By AUC')
  assert order['verdict'] == 'fails'
  assert '8 of 10 pairs' in order['measured']
  # EAIN - DIN: .005, .01, .015, so .01 +- 4.302653 * .005 / sqrt(3) = .0124.
  best = _claim(table, 'EAIN has the highest AUC')
  assert (best['holds'], best['resolved']) == (True, False)
  assert best['verdict'] == 'undecided'
  assert '+0.0100 (± 0.0124 over 3 seeds)' in best['measured']
  # Against gaps of .093, .060, .063, .033, less .001 for their rounding.
  verdicts = {
    name: _claim(table, f"EAIN's AUC is at least {gap} above {name}'s")[
      'verdict'
    ]
    for name, gap in [
      ('LR', '0.093'),
      ('MF', '0.060'),
      ('DIN', '0.063'),
      ('DeepFM', '0.033'),
    ]
  }
  assert verdicts == {
    'LR': 'undecided',  # .11 +- .0248 holds .092
    'MF': 'holds',
    'DIN': 'fails',
    'DeepFM': 'fails',
  }


def _of_three_seeds(fake, auc):
  """Runs of LR and MF as they are, and of models by their AUCs."""
  return fake.runs(3, ('lr', 'mf')) + [
    fake.run(model, seed, test=fake.metrics(values[seed]))
    for model, values in auc.items()
    for seed in range(3)
  ]


def test_every_rival_must_be_settled_for_eain_to_be_the_best(fake):
  """DIN is the best of the others and surely behind; DeepFM is noisy."""
  auc = {
    'eain': (0.80, 0.81, 0.82),
    'din': (0.78, 0.79, 0.80),
    'deepfm': (0.70, 0.80, 0.76),
  }
  runs = _of_three_seeds(fake, auc)
  best = _claim(_build(fake, runs), 'EAIN has the highest AUC')
  assert (best['holds'], best['verdict']) == (True, 'undecided')
  assert 'the best other model, DIN, 0.7900: +0.0200' in best['measured']
  assert 'does not settle DeepFM' in best['measured']


def test_one_contrary_model_of_several_must_be_sure_after_correction(fake):
  """DIN - EAIN: .001, .0015, .002, so t = 5.196, p .0351, sure alone.

  Of four comparisons, one of which has a larger p, it is the second largest.
  """
  auc = {
    'eain': (0.80, 0.80, 0.80),
    'din': (0.801, 0.8015, 0.802),
    'deepfm': (0.76, 0.80, 0.83),
  }
  runs = _of_three_seeds(fake, auc)
  best = _claim(_build(fake, runs), 'EAIN has the highest AUC')
  assert (best['holds'], best['verdict']) == (False, 'undecided')
  assert 'none is sure once corrected for 4' in best['measured']
  # Alone it is sure.
  runs = [run for run in runs if run.model in ('eain', 'din')]
  best = _claim(_build(fake, runs), 'EAIN has the highest AUC')
  assert (best['holds'], best['verdict']) == (False, 'fails')


def test_a_metric_of_one_value_judges_no_model(fake):
  runs = [
    fake.run(model, 0, test=fake.metrics(fake.AUC[model][0]) | {'recall@10': 1})
    for model in fake.AUC
  ]
  table = _build(fake, runs)
  claim = _claim(table, 'EAIN has the highest Recall@10')
  assert (claim['holds'], claim['verdict']) == (None, 'not measured')
  assert claim['measured'].startswith('Every model has 1.0000')
  assert '**1.0000' not in _markdown(table)
  assert '**0.8000**' in _markdown(table)


@pytest.mark.parametrize(('users', 'name'), [(100, 'GAUC'), (99, 'AUC')])
def test_the_metric_that_chose_the_epoch_is_said(fake, users, name):
  run = fake.run('lr', 0)
  run.result['valid']['gauc_users'] = users
  said = _build(fake, [run])['protocol']['Selection']
  assert f'best validation {name} among 20 of the negatives' in said
  assert ('fewer than 100' in said) == (name == 'AUC')


def test_negatives_that_one_model_has_drawn_once_are_said(fake):
  said = lambda *runs: _build(fake, runs)['protocol']['Negatives']
  anew, once = fake.run('lr', 0), fake.run('din', 0, negatives_once=True)
  assert 'drawn anew every epoch, uniform' in said(anew)
  assert 'drawn once, uniform' in said(once)
  assert 'anew every epoch or once, see Flags' in said(anew, once)


def test_one_seed_is_not_counted_as_settled(fake):
  tile = lambda seeds: document.table1_report(
    _build(fake, fake.runs(seeds))
  ).tiles[-1]
  assert 'by one seed, which settles none' in tile(1)[1]
  assert 'one seed' not in tile(3)[1]
  # Of nine EAIN is above LR and MF by enough, and MF by more than is printed;
  # the rest is worked out in `test_verdicts_over_three_seeds`.
  verdicts = [c['verdict'] for c in _build(fake, fake.runs(3))['holds']]
  assert tile(3)[0] == f'{verdicts.count("holds")} of 9'
  undecided = verdicts.count('undecided')
  assert f'{undecided} are undecided' in tile(3)[1]


def test_differences_to_eain_are_paired_by_seed(fake):
  rows = {row['model']: row for row in _build(fake, fake.runs(3))['rows']}
  assert 'minus_eain' not in rows['eain']
  found = rows['din']['minus_eain']
  # -.005, -.01, -.015: 2 sqrt(3) errors from 0, P(|t| <= that) sqrt(12 / 14).
  assert found['auc']['values'] == pytest.approx([-0.005, -0.01, -0.015])
  assert found['auc']['mean'] == pytest.approx(-0.01)
  assert found['auc']['ci95'] == pytest.approx(0.0124207, abs=1e-7)
  assert found['auc']['p'] == pytest.approx(1 - math.sqrt(12 / 14))
  # The largest of five is as it is; LR's, -.10 -.11 -.12, is the next: twice.
  assert found['auc']['p_holm'] == found['auc']['p']
  found = rows['lr']['minus_eain']['auc']
  t = 0.11 * math.sqrt(3) / 0.01
  assert found['p'] == pytest.approx(1 - t / math.sqrt(2 + t * t))
  assert found['p_holm'] == pytest.approx(2 * found['p'])
  # Logloss is 1 - AUC.
  found = rows['din']['minus_eain']['logloss']
  assert found['mean'] == pytest.approx(0.01)
  # Seeds 1 and 2 alone are shared: -.01 and -.015.
  runs = [fake.run('eain', s) for s in (1, 2)]
  runs += [fake.run('din', s) for s in (0, 1, 2)]
  found = _row(_build(fake, runs), 'din')['minus_eain']['auc']
  assert found['values'] == pytest.approx([-0.01, -0.015])


@pytest.mark.parametrize(
  ('seeds', 'models'), [(1, ('din', 'eain')), (3, ('din', 'lr'))]
)
def test_no_differences_without_eain_or_with_one_seed(fake, seeds, models):
  table = _build(fake, fake.runs(seeds, models))
  assert not any('minus_eain' in row for row in table['rows'])
  assert 'Minus EAIN' not in _markdown(table)


def test_differences_are_shown_with_what_they_are(fake):
  table = _build(fake, fake.runs(3))
  text = _markdown(table)
  row = next(line for line in text.splitlines() if '-0.0100 ± 0.0124' in line)
  cells = [cell.strip() for cell in row.split('|')[1:-1]]
  assert cells[:3] == ['DIN', '-0.0100 ± 0.0124', '0.074']
  assert '< 0.001' in text
  words = ' '.join(text.split())
  assert 'two runs of one seed meet the same requests' in words
  assert 'corrected by Holm for all comparisons of its metric' in words


def test_a_diverged_seed_has_no_difference(fake):
  broken = fake.run('din', 1, test=fake.metrics(math.nan, gauc=None))
  runs = [fake.run('din', 0), broken, *fake.runs(2, ('eain', 'lr'))]
  table = _build(fake, runs)
  found = _row(table, 'din')['minus_eain']['auc']
  assert (found['mean'], found['p'], found['p_holm']) == (None, None, None)
  # It is no comparison: LR's is the only one.
  found = _row(table, 'lr')['minus_eain']['auc']
  assert found['p_holm'] == found['p']
  json.dumps(table, allow_nan=False)


def test_verdicts_of_one_seed_say_so(fake):
  table = _build(fake, fake.runs(1))
  best = _claim(table, 'EAIN has the highest AUC')
  assert (best['holds'], best['resolved']) == (True, None)
  assert best['verdict'] == 'holds (one seed)'
  assert 'sampling interval of the AUC ± 0.0020 (EAIN)' in best['measured']
  recall = _claim(table, 'EAIN has the highest Recall@10')
  assert '(one seed, no interval)' in recall['measured']


def test_the_text_contradicts_its_own_table(fake):
  table = _build(fake, fake.runs(1))
  claim = _claim(table, 'EAIN has the highest F1')['claim']
  assert 'its table has 0.506, below DIN 0.771' in claim


def test_missing_models(fake):
  table = _build(fake, fake.runs(2, ('lr', 'dnn')))
  assert [row['model'] for row in table['rows']] == ['lr', 'dnn']
  assert {claim['verdict'] for claim in table['holds']} == {'not measured'}
  assert 'EAIN  ' not in _markdown(table).split('## Which')[0]
  table = _build(fake, fake.runs(2, ('lr', 'eain')))
  # Ahead of LR alone is not ahead of all, nor are two models in order.
  for start, absent in (
    ('By AUC', 'DIN, MF, DeepFM'),
    ('EAIN has the highest AUC', 'MF, DIN, DeepFM'),
  ):
    claim = _claim(table, start)
    assert claim['verdict'] == 'not measured'
    assert f'not measured: {absent}.' in claim['measured']
  assert _claim(table, "EAIN's AUC is at least 0.093")['holds']
  # One contrary model suffices: DIN .795 is above MF .70.
  runs = [fake.run('mf', 0), fake.run('din', 0)]
  assert _claim(_build(fake, runs), 'By AUC')['verdict'] == 'fails (one seed)'


def test_seeds_that_differ_are_compared_where_both_ran(fake):
  runs = [fake.run('eain', s) for s in (0, 1)] + [fake.run('din', 1)]
  table = _build(fake, runs)
  best = _claim(table, 'EAIN has the highest AUC')
  assert '+0.0100 (one seed' in best['measured']
  assert 'Not every model was trained with the same seeds.' in table['notes']


def test_a_gap_that_the_ceiling_leaves_no_room_for(fake):
  # DeepFM .78 + .033 = .813.
  for limit, has_room in ((0.812, False), (0.814, True)):
    table = _build(fake, fake.runs(1), {'auc': limit, 'gauc': 0.8})
    claim = _claim(table, "EAIN's AUC is at least 0.033")
    assert ('no room' not in claim['measured']) == has_room


def test_above_the_ceiling_is_called_a_leak(fake):
  # EAIN .80, sampling interval .002.
  for limit, is_leak in ((0.797, True), (0.799, False)):
    table = _build(fake, fake.runs(1), {'auc': limit, 'gauc': 0.8})
    assert any('leak' in note for note in table['notes']) == is_leak


def test_precision_at_most_positives_by_ten(fake):
  note = _build(fake, fake.runs(1))['notes'][1]
  assert 'Precision@10 is at most 0.1' in note
  assert 'prints 0.490 to 0.750' in note
  manifest = fake.manifest()
  test = manifest['counts']['test'] | {
    'positives': 20,
    'requests': 10,
    'requests_without_positive': 2,
  }
  counts = manifest['counts'] | {'test': test}
  note = _build(fake, fake.runs(1), counts=counts)['notes'][1]
  assert 'has 2.5 positives on average' in note
  assert 'at most 0.25' in note


def test_logloss_is_said_where_negatives_are_sampled_only(fake):
  sampled = _build(fake, fake.runs(1))['protocol']
  assert 'one negative a positive' in sampled['Logloss']
  assert 'log 4' in sampled['Logloss']
  assert 'Recall@10 0.100' in sampled['Evaluation']
  logged = _build(fake, fake.runs(1), task='logged', split='time')['protocol']
  assert 'as they are' in logged['Logloss']
  assert '0.8 / 0.1 / 0.1' in logged['Split']
  assert 'Evaluation' not in logged


def test_shuffled_labels_are_no_measurement(fake):
  runs = [fake.run('lr', 0, shuffle_labels=True)]
  assert any('Labels were shuffled' in n for n in _build(fake, runs)['notes'])


def test_a_run_that_was_cut_is_named(fake):
  """Its best epoch, the second, is the last that it may have."""
  runs = fake.runs(2)
  assert not any('--epochs' in n for n in _build(fake, runs)['notes'])
  runs = [run for run in runs if run.model != 'din']
  runs += [fake.run('din', seed, epochs=2) for seed in (0, 1)]
  notes = _build(fake, runs)['notes']
  assert [note for note in notes if '--epochs' in note] == [
    'DIN: 2 of 2 runs are best at the last of --epochs=2, so longer training '
    'may be better.'
  ]


def test_runs_that_do_not_belong_together(fake):
  with pytest.raises(InputError, match='dataset'):
    _build(fake, fake.runs(1), fingerprint='00' * 32)
  with pytest.raises(InputError, match='two runs of one seed'):
    _build(fake, [fake.run('lr', 0), fake.run('lr', 0)])
  with pytest.raises(InputError, match='differ in more than the seed'):
    _build(fake, [fake.run('lr', 0), fake.run('lr', 1, batch_size=8)])
  with pytest.raises(ValueError, match='empty'):
    _build(fake, [])


def _tables(markdown):
  """Consecutive lines that are rows of a table."""
  blocks = re.findall(r'(?:^\|.*\n)+', markdown, flags=re.MULTILINE)
  return [block.splitlines() for block in blocks]


def test_markdown_columns_align(fake):
  for seeds in (1, 3):
    table = _build(fake, fake.runs(seeds), {'auc': 0.9, 'gauc': 0.9})
    tables = _tables(_markdown(table))
    assert len(tables) >= 7
    for lines in tables:
      bars = [
        [m.start() for m in re.finditer(r'(?<!\\)\|', line)] for line in lines
      ]
      assert all(places == bars[0] for places in bars)


def test_markdown_holds_what_was_measured_beside_the_paper(fake):
  table = _build(fake, fake.runs(3), {'auc': 0.9, 'gauc': 0.88})
  text = _markdown(table)
  first = _tables(text)[0]
  cells = [cell.strip() for cell in first[-2].split('|')[1:-1]]
  assert cells == [
    'EAIN',
    '**0.8100 ± 0.0248**',
    '0.845',
    '**0.0810 ± 0.0025**',
    '0.490',
    '**0.8100 ± 0.0248**',
    '0.550',
    '**0.1473 ± 0.0045**',
    '0.506',
  ]
  assert [c.strip() for c in first[-1].split('|')[1:3]] == ['Ceiling', '0.9000']
  for part in ('ab' * 32, '2 \u00d7 0.721 \u00d7 0.489 / 1.210 = 0.583', '990'):
    assert part in text
  for flag in ('--learning_rate=0.001', '--paim_layers=2', '--negatives=4'):
    assert flag in text


def test_markdown_shows_hostile_names_literally(fake):
  name = 'a|b<script>`x`[y](z)\n# not a title\x1b[31m'
  source = {'name': name, 'bytes': 1, 'sha256': '00', 'format': 'csv'}
  text = _markdown(_build(fake, fake.runs(1), sources=[source]))
  assert '<script' not in text
  assert '\x1b' not in text
  assert '\n# not' not in text
  assert '[y](' not in text.replace('\\[y\\](', '')
  # One row, its bar escaped: five bars that count for four columns.
  row = next(line for line in text.splitlines() if line.startswith('| a'))
  assert len(re.findall(r'(?<!\\)\|', row)) == 5


def test_flags_cannot_leave_their_fence(fake):
  config = fake.manifest()['config'] | {'events': 'x\n```\n<b>' + ' ``` ' * 40}
  text = _markdown(_build(fake, fake.runs(1), config=config))
  fences = [line for line in text.splitlines() if line.startswith('```')]
  assert len(fences) == 2 * (2 + len(fake.AUC))
  assert set(fences) == {'```'}


def test_printable_text():
  assert document.printable('a\tb\u202e\udc80') == 'a\\tb\\u202e\\udc80'
  assert document.printable('Größe 5 €') == 'Größe 5 €'
