"""Which claims of the paper's Table 1 hold in a measurement, and how surely.

A claim holds or fails by the means. It holds only where all the models that it
names were measured; one contrary model suffices to fail it. Over several seeds
a difference has an interval, and one that contains the claim's boundary leaves
it undecided; over one seed there is none, and the sentence says so. For a claim
every one of its comparisons must be sure, which needs no correction; against it
one suffices, so there the p-values are corrected for all of them.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from eain_jax.evaluation.intervals import (
  ERROR_RATE,
  Interval,
  PairedDifference,
  adjust_p,
  paired_difference,
)
from eain_jax.reporting import paper

NAMES = {
  'lr': 'LR',
  'mf': 'MF',
  'dnn': 'DNN',
  'din': 'DIN',
  'deepfm': 'DeepFM',
  'eain': 'EAIN',
}
METRIC_NAMES = {
  'auc': 'AUC',
  'gauc': 'GAUC',
  'logloss': 'Logloss',
  'precision@10': 'Precision@10',
  'recall@10': 'Recall@10',
  'f1': 'F1',
  'ndcg@10': 'NDCG@10',
  'f1_per_request': 'F1 per request',
  'hit_rate@10': 'Hit rate@10',
  'mrr': 'MRR',
  'mrr@10': 'MRR@10',
  'calibration': 'Calibration',
  'ece': 'ECE',
}
_ROUNDING = 0.001  # two printed figures, half a unit of the third decimal each

Row = Mapping[str, Any]


def signed(value: float, half_width: float | None = None) -> str:
  """A difference with its sign, to 4 decimals, or 2 figures where smaller.

  Beside an interval that has decimals of its own 4 do in any case.
  """
  if value == 0 or max(abs(value), half_width or 0.0) >= 0.00005:
    return f'{value:+.4f}'
  return f'{value:+.1e}'


def tells_apart(rows: Sequence[Row], metric: str) -> bool:
  """Whether a metric has two values; Recall@10 of ten candidates has not."""
  return len({value for row in rows for value in row[metric]['values']}) > 1


def _difference(row: Row, other: Row, metric: str) -> PairedDifference | None:
  """Of two models over the seeds that both have; None without a number."""
  values = dict(zip(row['seeds'], row[metric]['values'], strict=True))
  others = dict(zip(other['seeds'], other[metric]['values'], strict=True))
  seeds = [seed for seed in values if seed in others]
  first = [values[seed] for seed in seeds]
  second = [others[seed] for seed in seeds]
  if not seeds or None in first or None in second:
    return None
  return paired_difference(first, second)


def _is_resolved(interval: Interval, boundary: float) -> bool | None:
  """Whether the interval leaves the boundary out; None without interval."""
  if math.isnan(interval.ci95):
    return None
  return abs(interval.mean - boundary) > interval.ci95


def _all_resolved(
  agrees: Sequence[bool], differences: Sequence[PairedDifference | None]
) -> bool | None:
  """`_is_resolved` of a claim of several comparisons with 0.

  Against it one sure comparison suffices; for it every one must be sure.

  Args:
    agrees: by comparison whether its mean is as claimed.
    differences: of the same; None without a seed in common.
  """
  if all(agrees):
    sure = [one and _is_resolved(one, 0.0) for one in differences]
    return False if False in sure else None if None in sure else True
  p_values = adjust_p([one.p if one else math.nan for one in differences])
  contrary = [p for p, agree in zip(p_values, agrees, strict=True) if not agree]
  if any(p < ERROR_RATE for p in contrary):
    return True
  return None if any(math.isnan(p) for p in contrary) else False


def _correction_note(
  agrees: Sequence[bool], differences: Sequence[PairedDifference | None]
) -> str:
  """Said where only the correction keeps a claim from failing surely."""
  if _all_resolved(agrees, differences) is not False:
    return ''
  contrary = [
    one
    for agree, one in zip(agrees, differences, strict=True)
    if not agree and one is not None and _is_resolved(one, 0.0)
  ]
  if not contrary:
    return ''
  return f'; against it none is sure once corrected for {len(agrees)}'


def _uncertainty(interval: Interval, row: Row, other: Row, metric: str) -> str:
  """What can be said of the error of a difference, as part of a sentence."""
  if not math.isnan(interval.ci95):
    return f'± {interval.ci95:.4f} over {len(interval.values)} seeds'
  if metric != 'auc':
    return 'one seed, no interval'
  sampling = [
    max((v for v in r['auc_sampling_ci95'] if v is not None), default=None)
    for r in (row, other)
  ]
  if None in sampling:
    return 'one seed, no interval'
  return (
    'one seed, no interval over seeds; sampling interval of the AUC '
    f'± {sampling[0]:.4f} ({row["name"]}), ± {sampling[1]:.4f} '
    f'({other["name"]})'
  )


def _verdict(holds: bool | None, resolved: bool | None) -> str:
  if holds is None:
    return 'not measured'
  if resolved is False:
    return 'undecided'
  word = 'holds' if holds else 'fails'
  return word if resolved else f'{word} (one seed)'


def _claim(
  claim: str,
  metric: str,
  holds: bool | None,
  resolved: bool | None,
  measured: str,
) -> dict[str, Any]:
  return {
    'claim': claim,
    'metric': metric,
    'holds': holds,
    'resolved': resolved,
    'verdict': _verdict(holds, resolved),
    'measured': measured,
  }


def _order_claim(rows: Mapping[str, Row]) -> dict[str, Any]:
  """The models' order by AUC."""
  printed = sorted(paper.TABLE_1, key=lambda model: paper.TABLE_1[model]['auc'])
  claim = 'By AUC, ' + ' < '.join(NAMES[model] for model in printed)
  models = [
    m for m in printed if m in rows and rows[m]['auc']['mean'] is not None
  ]
  if len(models) < 2:
    return _claim(claim, 'auc', None, None, 'Fewer than two of them have one.')
  pairs = list(itertools.combinations(models, 2))
  agrees = [
    rows[high]['auc']['mean'] > rows[low]['auc']['mean'] for low, high in pairs
  ]
  differences = [
    _difference(rows[high], rows[low], 'auc') for low, high in pairs
  ]
  resolved = _all_resolved(agrees, differences)
  measured = sorted(models, key=lambda model: rows[model]['auc']['mean'])
  sentence = (
    'Measured: '
    + ' < '.join(
      f'{rows[m]["name"]} {rows[m]["auc"]["mean"]:.4f}' for m in measured
    )
    + f'; {sum(agrees)} of {len(pairs)} pairs are in the printed order'
  )
  unresolved = sum(
    one is not None and _is_resolved(one, 0.0) is False for one in differences
  )
  if unresolved:
    sentence += (
      f', and {unresolved} differ by less than the interval over seeds'
    )
  sentence += _correction_note(agrees, differences)
  absent = [NAMES[m] for m in printed if m not in models]
  if absent:
    sentence += f'; not measured: {", ".join(absent)}'
  holds = False if not all(agrees) else None if absent else True
  return _claim(claim, 'auc', holds, resolved, sentence + '.')


def _best_claim(rows: Mapping[str, Row], metric: str) -> dict[str, Any]:
  """EAIN above every other model in a metric."""
  label = METRIC_NAMES[metric]
  claim = f'EAIN has the highest {label}'
  above = paper.beaten_by('eain').get(metric, ())
  if above:
    figures = ', '.join(
      f'{NAMES[m]} {paper.TABLE_1[m][metric]:.3f}' for m in above
    )
    claim += (
      f' (so the text; its table has {paper.TABLE_1["eain"][metric]:.3f}, '
      f'below {figures})'
    )
  measured = {m: r for m, r in rows.items() if r[metric]['mean'] is not None}
  rivals = {m: r for m, r in measured.items() if m != 'eain'}
  if 'eain' not in measured or not rivals:
    missing = 'other model' if 'eain' in measured else 'EAIN'
    return _claim(claim, metric, None, None, f'No {missing} was measured.')
  eain = measured['eain']
  if not tells_apart(list(measured.values()), metric):
    same = f'Every model has {eain[metric]["mean"]:.4f}: it tells none apart.'
    return _claim(claim, metric, None, None, same)
  rival = max(rivals.values(), key=lambda row: row[metric]['mean'])
  sentence = (
    f'EAIN {eain[metric]["mean"]:.4f}, the best other model, {rival["name"]}, '
    f'{rival[metric]["mean"]:.4f}'
  )
  difference = _difference(eain, rival, metric)
  if difference is None:
    sentence += ', which have no seed in common'
  else:
    error = _uncertainty(difference, eain, rival, metric)
    sentence += f': {signed(difference.mean)} ({error})'
  ahead = [eain[metric]['mean'] > r[metric]['mean'] for r in rivals.values()]
  differences = [_difference(eain, row, metric) for row in rivals.values()]
  unsettled = [
    row
    for row, one in zip(rivals.values(), differences, strict=True)
    if one is not None and _is_resolved(one, 0.0) is False
  ]
  unsure = [row['name'] for row in unsettled if row is not rival]
  if unsure:
    sentence += (
      f'; nor does the interval over seeds settle {", ".join(unsure)}'
      if rival in unsettled
      else f'; the interval over seeds does not settle {", ".join(unsure)}'
    )
  sentence += _correction_note(ahead, differences)
  absent = [NAMES[m] for m in paper.TABLE_1 if m not in measured]
  if absent:
    sentence += f'; not measured: {", ".join(absent)}'
  holds = all(ahead)
  return _claim(
    claim,
    metric,
    None if holds and absent else holds,
    _all_resolved(ahead, differences),
    sentence + '.',
  )


def _gap_claim(
  rows: Mapping[str, Row], baseline: str, ceiling: Mapping[str, float] | None
) -> dict[str, Any]:
  """EAIN's AUC ahead of a baseline's by as much as is printed."""
  gap = paper.TABLE_1['eain']['auc'] - paper.TABLE_1[baseline]['auc']
  name = NAMES[baseline]
  claim = f"EAIN's AUC is at least {gap:.3f} above {name}'s"
  difference = None
  if 'eain' in rows and baseline in rows:
    difference = _difference(rows['eain'], rows[baseline], 'auc')
  if difference is None:
    return _claim(claim, 'auc', None, None, 'The two were not both measured.')
  error = _uncertainty(difference, rows['eain'], rows[baseline], 'auc')
  sentence = f'Measured: {signed(difference.mean)} ({error}).'
  below = rows[baseline]['auc']['mean']
  limit = ceiling['auc'] if ceiling else None
  if limit is not None and below is not None and below + gap > limit:
    sentence += (
      f' So wide a gap has no room here: {name} {below:.4f} and {gap:.3f} '
      f'make {below + gap:.4f}, above the ceiling {limit:.4f}.'
    )
  return _claim(
    claim,
    'auc',
    difference.mean >= gap - _ROUNDING,
    _is_resolved(difference, gap - _ROUNDING),
    sentence,
  )


def check_claims(
  rows: Sequence[Row], ceiling: Mapping[str, float] | None
) -> list[dict[str, Any]]:
  """Each claim of Table 1 against the measured rows.

  Differences are taken seed by seed, by Student's t over the seeds that both
  models have; nothing is adjusted for the number of claims.

  Args:
    rows: of `build_table1`.
    ceiling: 'auc' of the true preference on the test part, where it is known.

  Returns:
    One entry a claim: claim, metric, holds (by the means; None: not
    measured), resolved (whether the seeds decide it, see above; None: one
    seed), verdict and measured, a sentence with the numbers.
  """
  by_model = {row['model']: row for row in rows}
  return [
    _order_claim(by_model),
    *(_best_claim(by_model, metric) for metric in paper.METRICS),
    *(
      _gap_claim(by_model, baseline, ceiling)
      for baseline in paper.TABLE_1
      if baseline != 'eain'
    ),
  ]
