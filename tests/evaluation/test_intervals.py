"""Intervals against scipy, loops from the definitions, and simulation."""

import math

import numpy as np
import pytest
import scipy.stats

from eain_jax.evaluation import intervals, metrics


@pytest.mark.parametrize('degrees', [*range(1, 31), 99, 100, 1000, 100_001])
def test_t_quantile_is_scipys(degrees):
  assert intervals.t_quantile(degrees) == pytest.approx(
    scipy.stats.t.ppf(0.975, degrees), rel=1e-11
  )


def test_t_quantile_refuses_no_degrees_of_freedom():
  with pytest.raises(ValueError, match='0, not 1 or more'):
    intervals.t_quantile(0)


def test_three_seeds_by_hand():
  # Mean 2, deviations -1, 0, 1: s = 1, error 1/sqrt(3), t(.975, 2) = 4.302653.
  interval = intervals.mean_interval([1, 2, 3])
  assert interval == intervals.Interval(
    2.0, pytest.approx(4.302653 / math.sqrt(3), abs=1e-6), (1.0, 2.0, 3.0)
  )


def test_interval_is_scipys():
  values = np.random.default_rng(0).normal(0.84, 0.01, 7)
  low, high = scipy.stats.t.interval(
    0.95, 6, loc=values.mean(), scale=scipy.stats.sem(values)
  )
  interval = intervals.mean_interval(values)
  assert interval.mean - interval.ci95 == pytest.approx(low, rel=1e-12)
  assert interval.mean + interval.ci95 == pytest.approx(high, rel=1e-12)


def test_seeds_that_agree_have_no_width():
  interval = intervals.mean_interval([0.1, 0.1, 0.1])
  assert (interval.mean, interval.ci95) == (0.1, 0.0)


def test_one_seed_has_a_mean_and_no_interval():
  interval = intervals.mean_interval(iter([0.7]))
  assert (interval.mean, interval.values) == (0.7, (0.7,))
  assert math.isnan(interval.ci95)


@pytest.mark.parametrize(
  ('values', 'mean'),
  [([0.5, math.nan, 0.7], math.nan), ([0.5, math.inf], math.inf)],
)
def test_a_failed_seed_shows(values, mean):
  interval = intervals.mean_interval(values)
  assert interval.mean == pytest.approx(mean, nan_ok=True)
  assert math.isnan(interval.ci95)


def test_no_values_are_refused():
  with pytest.raises(ValueError, match='values is empty'):
    intervals.mean_interval([])


def test_paired_difference_by_hand():
  # Differences .005, .01, .015: mean .01, s .005, t = .01 sqrt(3) / .005 =
  # 2 sqrt(3). With 2 degrees P(|t| <= x) = x / sqrt(2 + x^2) = sqrt(12 / 14).
  found = intervals.paired_difference((0.8, 0.81, 0.82), (0.795, 0.8, 0.805))
  assert found.mean == pytest.approx(0.01)
  assert found.ci95 == pytest.approx(4.302653 * 0.005 / math.sqrt(3), abs=1e-8)
  assert found.values == pytest.approx((0.005, 0.01, 0.015))
  assert found.p == pytest.approx(1 - math.sqrt(12 / 14), abs=1e-9)


@pytest.mark.parametrize('count', [2, 3, 4, 5, 10, 31])
@pytest.mark.parametrize('shift', [0.0, 0.3, -2.0])
def test_paired_difference_is_scipys(count, shift):
  rng = np.random.default_rng(count)
  first, second = rng.normal(shift, 1, count), rng.normal(0, 1, count)
  found = intervals.paired_difference(first, second)
  test = scipy.stats.ttest_rel(first, second)
  low, high = test.confidence_interval(0.95)
  assert found.p == pytest.approx(test.pvalue, abs=1e-14, rel=1e-9)
  assert found.mean - found.ci95 == pytest.approx(low, rel=1e-11)
  assert found.mean + found.ci95 == pytest.approx(high, rel=1e-11)
  assert (abs(found.mean) <= found.ci95) == (found.p >= 0.05)


def test_paired_difference_sees_what_unpaired_intervals_hide():
  """Seeds that move both alike."""
  first = (0.70, 0.80, 0.90)
  second = (0.69, 0.79, 0.891)
  found = intervals.paired_difference(first, second)
  assert found.mean - found.ci95 > 0
  assert intervals.mean_interval(first).ci95 > 10 * found.mean


@pytest.mark.parametrize(
  ('second', 'p'), [((1.0, 2.0, 3.0), 1.0), ((0.5, 1.5, 2.5), 0.0)]
)
def test_differences_without_variance(second, p):
  found = intervals.paired_difference((1.0, 2.0, 3.0), second)
  assert (found.ci95, found.p) == (0.0, p)


def test_one_pair_or_a_failed_seed_has_no_test():
  found = intervals.paired_difference((0.7,), (0.6,))
  assert found.mean == pytest.approx(0.1)
  assert math.isnan(found.ci95)
  assert math.isnan(found.p)
  found = intervals.paired_difference((0.7, math.nan), (0.6, 0.5))
  assert math.isnan(found.mean)
  assert math.isnan(found.p)


def test_pairs_must_be_pairs():
  with pytest.raises(ValueError, match='shorter'):
    intervals.paired_difference((1.0, 2.0), (1.0,))
  with pytest.raises(ValueError, match='values is empty'):
    intervals.paired_difference((), ())


def test_adjust_p_by_hand():
  # Sorted .01 .02 .03 .04, times 4 3 2 1: .04 .06 .06 .04, rising .06.
  found = intervals.adjust_p((0.04, 0.01, 0.03, 0.02))
  assert found == pytest.approx((0.06, 0.04, 0.06, 0.06))
  # A nan is not counted; a p cannot exceed 1.
  found = intervals.adjust_p((0.6, math.nan, 0.7))
  assert found == pytest.approx((1.0, math.nan, 1.0), nan_ok=True)
  assert intervals.adjust_p(()) == ()


def test_adjust_p_keeps_the_error_of_the_family():
  """Of 1000 families of 10 true nulls, at most 50 + 2.3 sd call one false."""
  p_FN = np.random.default_rng(0).uniform(size=(1000, 10))
  wrong = sum(min(intervals.adjust_p(p_N)) < 0.05 for p_N in p_FN)
  assert wrong <= 50 + 2.3 * math.sqrt(1000 * 0.05 * 0.95)
  assert sum(min(p_N) < 0.05 for p_N in p_FN) > 300


def loop_delong(label, score):
  """Half width from DeLong's definition, a pair at a time."""
  positives = [s for y, s in zip(label, score, strict=True) if y]
  negatives = [s for y, s in zip(label, score, strict=True) if not y]

  def kernel(x, y):
    return 1.0 if x > y else 0.5 if x == y else 0.0

  v10 = [np.mean([kernel(x, y) for y in negatives]) for x in positives]
  v01 = [np.mean([kernel(x, y) for x in positives]) for y in negatives]
  variance = np.var(v10, ddof=1) / len(v10) + np.var(v01, ddof=1) / len(v01)
  return scipy.stats.norm.ppf(0.975) * math.sqrt(variance)


@pytest.mark.parametrize('seed', range(20))
def test_delong_is_the_loop(seed):
  rng = np.random.default_rng(seed)
  label = np.append(rng.integers(0, 2, 40), [0, 0, 1, 1])
  # Few values, so ties within and across the classes.
  score = rng.integers(0, 8, label.size) + label
  interval = intervals.auc_interval(label, score)
  assert interval.mean == metrics.auc(label, score) == interval.values[0]
  assert interval.ci95 == pytest.approx(loop_delong(label, score), rel=1e-12)


def test_delong_by_hand():
  # Positives 3 and 1, negatives 2 and 0. Placements: 3 is above both, 1 above
  # one: 1, 1/2; 2 is below one positive, 0 below both: 1/2, 1. AUC 3/4. Each
  # sample variance is 1/8, over 2 placements 1/16; the sum is 1/8.
  interval = intervals.auc_interval([1, 1, 0, 0], [3, 1, 2, 0])
  assert interval.mean == 0.75
  assert interval.ci95 == pytest.approx(1.959964 * math.sqrt(1 / 8), abs=1e-6)


def test_delong_covers_the_true_auc():
  # Normal scores one standard deviation apart: AUC = Phi(1 / sqrt(2)). Of 1000
  # intervals, 950 +- 2.6 * sqrt(1000 * .95 * .05) = 932..968 should hold it;
  # the seed is fixed, so this is a fact and not a chance.
  rng = np.random.default_rng(1)
  truth = scipy.stats.norm.cdf(1 / math.sqrt(2))
  label = np.arange(400) % 2
  covered = 0
  for _ in range(1000):
    interval = intervals.auc_interval(label, rng.normal(size=400) + label)
    covered += abs(interval.mean - truth) <= interval.ci95
  assert 932 <= covered <= 968


def test_delong_where_it_is_undefined_or_empty_of_width():
  one_class = intervals.auc_interval([1, 1, 1], [1, 2, 3])
  assert math.isnan(one_class.mean)
  assert math.isnan(one_class.ci95)
  one_positive = intervals.auc_interval([1, 0, 0], [3, 1, 2])
  assert one_positive.mean == 1.0
  assert math.isnan(one_positive.ci95)
  assert intervals.auc_interval([1, 1, 0, 0], [4, 3, 2, 1]).ci95 == 0.0
  with pytest.raises(ValueError, match=r'score_N\[1\] is NaN'):
    intervals.auc_interval([1, 0], [1.0, math.nan])
