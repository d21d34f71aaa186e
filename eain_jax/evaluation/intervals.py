"""Intervals at 95 %: over seeds for a table, over examples for an AUC.

Two models that were trained with the same seeds are compared seed by seed.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from eain_jax.evaluation import metrics

_LEVEL = 0.95
# Below this a p-value, corrected for its family, is of more than chance.
ERROR_RATE = 0.05


@dataclasses.dataclass(frozen=True)
class Interval:
  """A measured value with its 95 % interval, mean - ci95 to mean + ci95.

  Attributes:
    mean: the value.
    ci95: half the interval's width; nan where it cannot be known.
    values: what the mean is of, in the order given.
  """

  mean: float
  ci95: float
  values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class PairedDifference(Interval):
  """A mean difference of pairs, with its interval and the test beside it.

  Attributes:
    p: two-sided, of Student's paired t: the probability of a mean at least so
      far from 0 where the differences are normal around 0; nan where it
      cannot be known.
  """

  p: float


def _t_probability(angle: float, degrees: int) -> float:
  """P(|t| <= sqrt(degrees) tan(angle)) for Student's t.

  The finite series of Abramowitz and Stegun, 26.7.3 (odd) and 26.7.4 (even).
  """
  sine, cosine = math.sin(angle), math.cos(angle)
  power = np.arange(2 + degrees % 2, degrees, 2)
  factors = cosine**2 * (power - 1) / power
  series = 1.0 + float(np.sum(np.cumprod(factors)))
  if degrees % 2 == 0:
    return sine * series
  tail = sine * cosine * series if degrees > 1 else 0.0
  return 2 / math.pi * (angle + tail)


def t_quantile(degrees: int) -> float:
  """The t that Student's |t| stays below with probability .95.

  Args:
    degrees: degrees of freedom, 1 or more.

  Raises:
    ValueError: degrees below 1.
  """
  if degrees < 1:
    raise ValueError(f'degrees of freedom is {degrees}, not 1 or more')
  low, high = 0.0, math.pi / 2
  while low < (middle := (low + high) / 2) < high:
    if _t_probability(middle, degrees) < _LEVEL:
      low = middle
    else:
      high = middle
  return math.sqrt(degrees) * math.tan(high)


def mean_interval(values: Iterable[float]) -> Interval:
  """Mean and Student's t interval of one metric over independent seeds.

  ci95 = t(.975, n - 1) * s / sqrt(n), s the sample standard deviation. It is
  nan with one value, and where a value is not finite, which then shows in the
  mean too: a seed that failed is never averaged away.

  Raises:
    ValueError: no values.
  """
  values = tuple(float(value) for value in values)
  if not values:
    raise ValueError('values is empty: there is nothing to average')
  if not all(math.isfinite(value) for value in values):
    return Interval(sum(values) / len(values), math.nan, values)
  mean = statistics.mean(values)
  if len(values) == 1:
    return Interval(mean, math.nan, values)
  error = statistics.stdev(values) / math.sqrt(len(values))
  return Interval(mean, t_quantile(len(values) - 1) * error, values)


def paired_difference(
  first: Sequence[float], second: Sequence[float]
) -> PairedDifference:
  """`first` minus `second`, pair by pair, by Student's paired t.

  The interval holds 0 exactly where p is .05 or more. One pair has neither.
  Where all differences are equal the interval has no width, and p is its
  limit: 0, but 1 where they are all 0, as for two runs that are one.

  Args:
    first: [n], such as a metric of a model by seed.
    second: [n], of another with the same seeds, in the same order.

  Returns:
    p is exact to 1e-14; as for `mean_interval` a value that is not finite
    shows in the mean, and leaves ci95 and p nan.

  Raises:
    ValueError: no values, or not as many of both.
  """
  values = [a - b for a, b in zip(first, second, strict=True)]
  interval = mean_interval(values)
  mean, count = interval.mean, len(values)
  if math.isnan(interval.ci95):
    p = math.nan
  elif mean == 0:
    p = 1.0
  else:
    # t = mean / error; the angle is that of t to sqrt(n - 1).
    error = statistics.stdev(values) / math.sqrt(count)
    angle = math.atan2(abs(mean), error * math.sqrt(count - 1))
    p = max(0.0, 1.0 - _t_probability(angle, count - 1))
  return PairedDifference(mean, interval.ci95, interval.values, p)


def adjust_p(values: Sequence[float]) -> tuple[float, ...]:
  """p-values of one family, corrected by Holm (Scand. J. Statist. 1979).

  The k-th smallest of m is multiplied by m - k + 1, and is no less than those
  before it: with all that are below .05 called different, the probability of
  one wrong call is at most .05. A nan is no test: it stays, and m is without
  it.
  """
  adjusted = [math.nan] * len(values)
  known = [place for place, p in enumerate(values) if not math.isnan(p)]
  largest = 0.0
  for rank, place in enumerate(sorted(known, key=lambda place: values[place])):
    largest = max(largest, min(1.0, (len(known) - rank) * values[place]))
    adjusted[place] = largest
  return tuple(adjusted)


def auc_interval(label_N: npt.ArrayLike, score_N: npt.ArrayLike) -> Interval:
  """An AUC and its sampling interval after DeLong et al. (Biometrics 1988).

  A positive's placement is the share of negatives below it, a negative's the
  share of positives above it, ties half; the variance of the AUC is the sum,
  over the two classes, of the placements' sample variance by the number of
  placements. It answers how the AUC would vary with other examples, not with
  other seeds, and takes examples as independent. Those of one user are not:
  where users differ in how hard they are it is too narrow, where whole users
  score higher or lower, too wide. At an AUC of 0 or 1 its width is 0.

  Args:
    label_N: [N] of 0 and 1, any dtype.
    score_N: [N], any real dtype, compared as float64; may be infinite.

  Returns:
    mean and the one of values are the AUC; nan with one class. ci95 is nan
    with fewer than two examples of either class.

  Raises:
    ValueError: as `metrics.tie_counts`.
  """
  positives_S, negatives_S = metrics.tie_counts(label_N, score_N)
  value = metrics.auc_of_counts(positives_S, negatives_S)
  positives, negatives = int(positives_S.sum()), int(negatives_S.sum())
  if min(positives, negatives) < 2:
    return Interval(value, math.nan, (value,))
  below_S = (np.cumsum(negatives_S) - negatives_S / 2) / negatives
  above_S = 1 - (np.cumsum(positives_S) - positives_S / 2) / positives
  variance = 0.0
  for count_S, placement_S, count in (
    (positives_S, below_S, positives),
    (negatives_S, above_S, negatives),
  ):
    # Not np.dot: BLAS splits it by cores, and so does its last digit.
    deviation = np.sum(count_S * (placement_S - value) ** 2)
    variance += float(deviation) / (count - 1) / count
  half_width = statistics.NormalDist().inv_cdf((1 + _LEVEL) / 2)
  return Interval(value, half_width * math.sqrt(variance), (value,))
