"""The picture of differences, read back from its axes."""

import pytest

from eain_jax.reporting.difference_plot import difference_figure
from eain_jax.reporting.measured import Line


def difference(mean, ci95, p_holm):
  return {'mean': mean, 'ci95': ci95, 'p_holm': p_holm}


@pytest.fixture(scope='module')
def figure():
  worse = {
    'auc': difference(-0.02, 0.01, 0.01),
    'gauc': difference(-0.01, 0.02, 0.4),
  }
  better = {
    'auc': difference(0.03, 0.01, 0.02),
    'gauc': difference(0.01, 0.005, 0.06),
  }
  one_seed = {
    'auc': difference(0.004, None, None),
    'gauc': difference(None, None, None),
  }
  return difference_figure(
    [
      Line('Modules', None),
      Line('Without attention', worse),
      Line('With it', better),
      Line('One seed', one_seed),
    ],
    'EAIN',
  )


def test_a_panel_a_metric_with_named_axes(figure):
  assert [a.get_title(loc='left') for a in figure.axes] == [
    'Test AUC',
    'Test GAUC',
  ]
  assert {a.get_xlabel() for a in figure.axes} == {'minus EAIN'}
  labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
  assert labels == ['Modules', 'Without attention', 'With it', 'One seed']


def test_intervals_are_where_the_numbers_are(figure):
  auc, gauc = figure.axes
  (low, _), (high, _) = auc.containers[0].lines[2][0].get_segments()[0]
  assert (low, high) == pytest.approx((-0.03, -0.01))
  assert [text.get_text() for text in auc.texts] == [
    '-0.0200',
    '+0.0300',
    '+0.0040',
  ]
  # A value that is no number is not drawn.
  assert [text.get_text() for text in gauc.texts] == ['-0.0100', '+0.0100']


def test_only_what_is_shown_after_holm_is_filled(figure):
  faces = [
    [container.lines[0].get_markerfacecolor() for container in axes.containers]
    for axes in figure.axes
  ]
  below, above, one = faces[0]
  assert len({below, above, 'white'}) == 3
  assert one == 'white'
  # .06 after Holm, though its interval leaves 0 out.
  assert faces[1] == ['white', 'white']
