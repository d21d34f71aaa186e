"""Table 1 of the paper as printed, and the arithmetic that it fails.

Only what follows from the printed figures and the paper's own equations is
said here; every figure is allowed the half unit that its rounding may hide.
"""

import dataclasses
from collections.abc import Mapping

SOURCE: Mapping[str, str] = {
  'title': 'Attention-Driven Interaction Network for E-Commerce '
  'Recommendations',
  'author': 'Erfan Wang',
  'posted': '2025-03-24',
  'doi': '10.20944/preprints202503.1738.v1',
  'table': 'Table 1',
  'licence': 'CC BY 4.0',
}

METRICS = ('auc', 'precision@10', 'recall@10', 'f1')

# By model, then metric; both are named as in a measured table.
TABLE_1: Mapping[str, Mapping[str, float]] = {
  model: dict(zip(METRICS, row, strict=True))
  for model, row in {
    'lr': (0.752, 0.750, 0.420, 0.383),
    'mf': (0.785, 0.710, 0.480, 0.436),
    'din': (0.782, 0.721, 0.489, 0.771),
    'deepfm': (0.812, 0.750, 0.510, 0.478),
    'eain': (0.845, 0.490, 0.550, 0.506),
  }.items()
}

_HALF_UNIT = 0.0005  # of the third decimal, the last one printed


def f1_score(precision: float, recall: float) -> float:
  """Equation (24), 2 P R / (P + R); 0 where both are 0."""
  if precision == recall == 0:
    return 0.0
  return 2 * precision * recall / (precision + recall)


@dataclasses.dataclass(frozen=True)
class F1Check:
  """A printed F1 against equation (24) of its printed precision and recall.

  Attributes:
    printed: the F1 as printed.
    computed: (24) of the printed precision and recall.
    follows: whether some precision, recall and F1 that round to the printed
      ones satisfy (24).
    exceeds: whether every F1 that rounds to the printed one is above (24) of
      all those. Then no averaging explains it: the harmonic mean is concave,
      so a mean of the requests' own F1 is at most (24) of their mean precision
      and mean recall.
  """

  printed: float
  computed: float
  follows: bool
  exceeds: bool


def check_f1(precision: float, recall: float, printed: float) -> F1Check:
  """Whether a printed F1 follows from a printed precision and recall.

  F1 grows with both, so rounding to three decimals leaves (24) between its
  values at the lower and at the upper ends of precision and recall.

  Args:
    precision: in [0, 1], printed with three decimals, as are the others.
    recall: in [0, 1].
    printed: the F1, in [0, 1].
  """
  low = f1_score(
    max(precision - _HALF_UNIT, 0.0), max(recall - _HALF_UNIT, 0.0)
  )
  high = f1_score(precision + _HALF_UNIT, recall + _HALF_UNIT)
  exceeds = printed - _HALF_UNIT > high
  return F1Check(
    printed=printed,
    computed=f1_score(precision, recall),
    follows=printed + _HALF_UNIT >= low and not exceeds,
    exceeds=exceeds,
  )


def check_table() -> dict[str, F1Check]:
  """`check_f1` of every row of Table 1, by model."""
  return {
    model: check_f1(row['precision@10'], row['recall@10'], row['f1'])
    for model, row in TABLE_1.items()
  }


def hits_per_request(precision: float, k: int = 10) -> float:
  """Relevant items in the top k of the average request, k P by (22).

  So many relevant items, at least, the average request must have.
  """
  return k * precision


def relevant_per_request(precision: float, recall: float, k: int = 10) -> float:
  """Relevant items of the average request, k P / R, if recall is pooled.

  Pooled: hits over relevant items, each summed over all requests. It is then
  a property of the test requests alone, the same for every model. A recall
  that is averaged over requests does not determine it.

  Raises:
    ValueError: recall 0, which says nothing of the number.
  """
  if recall == 0:
    raise ValueError('recall is 0, so relevant items cannot be told from it')
  return k * precision / recall


def beaten_by(model: str) -> dict[str, tuple[str, ...]]:
  """By metric, the models of Table 1 whose figure is above this model's.

  Metrics in which none is are left out.
  """
  above = {
    metric: tuple(name for name, row in TABLE_1.items() if row[metric] > value)
    for metric, value in TABLE_1[model].items()
  }
  return {metric: names for metric, names in above.items() if names}


def _figure(value: float) -> str:
  """A share with the table's three decimals: .518."""
  return f'{value:.3f}'.removeprefix('0')


def findings() -> tuple[str, ...]:
  """What Table 1 contradicts, one sentence each, with its arithmetic."""
  checks = check_table()
  rows = {
    model: (row['precision@10'], row['recall@10'])
    for model, row in TABLE_1.items()
  }
  wrong = '; '.join(
    f'{model} 2*{_figure(p)}*{_figure(r)}/{p + r:.3f} = '
    f'{_figure(checks[model].computed)}, printed '
    f'{_figure(checks[model].printed)}'
    for model, (p, r) in rows.items()
    if not checks[model].follows
  )
  exceeding = ', '.join(
    f'{model} {_figure(check.printed)} over {_figure(check.computed)}'
    for model, check in checks.items()
    if check.exceeds
  )
  hits = {model: hits_per_request(p) for model, (p, _) in rows.items()}
  most = max(hits, key=hits.__getitem__)
  relevant = ', '.join(
    f'{model} {relevant_per_request(p, r):.1f}'
    for model, (p, r) in rows.items()
  )
  above = '; '.join(
    f'its {metric} of {_figure(TABLE_1["eain"][metric])} is below '
    + ', '.join(f'{name} {_figure(TABLE_1[name][metric])}' for name in names)
    for metric, names in beaten_by('eain').items()
  )
  return (
    'No printed F1 follows from (24) and the printed precision and recall, '
    f'rounding allowed for: {wrong}.',
    'Nor does averaging F1 over requests explain all of them, for that gives '
    f'at most (24) of the averages: {exceeding}.',
    f'By (22), precision@10 of {_figure(rows[most][0])} ({most}) puts '
    f'{hits[most]:.1f} relevant items into the average top 10, so the average '
    'request has at least as many; where every request has one, precision@10 '
    'cannot exceed .1.',
    'If recall is hits over relevant items, each summed over the requests, '
    f'the average request has 10 P / R relevant items: {relevant}; those are '
    'not the same test requests.',
    f'The text has EAIN ahead of all baselines in all metrics, but {above}.',
  )
