"""Metrics against loops from their definitions, hand tables and scikit-learn.

Ties are proved by enumeration: a metric must be the mean of its plain, tie-free
definition over every order that the scores allow.
"""

import fractions
import gzip
import itertools
import math
import pathlib

import hypothesis
import ml_dtypes
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import strategies as st

from eain_jax.evaluation import metrics

DATA = pathlib.Path(__file__).parents[2] / '..' / 'shared' / 'data'
RANK_NAMES = (
  'precision@{}',
  'recall@{}',
  'f1_per_request',
  'ndcg@{}',
  'hit_rate@{}',
  'mrr',
  'mrr@{}',
)


def random_log(seed, num=300, num_groups=12, num_scores=9):
  """Few groups in no order, of few scores, so with many ties."""
  rng = np.random.default_rng(seed)
  group = rng.integers(0, num_groups, num) * 7 - 20
  label = (rng.random(num) < rng.uniform(0.05, 0.5)).astype(np.int8)
  score = rng.integers(0, num_scores, num) / 3.0 + rng.integers(0, 2) * label
  return group, label, score


# AUC and GAUC.


def loop_auc(label, score):
  """Exact: the share of (positive, negative) pairs in order, ties half."""
  twice, pairs = 0, 0
  for y, s in zip(label, score, strict=True):
    for z, t in zip(label, score, strict=True):
      if y == 1 and z == 0:
        pairs += 1
        twice += 2 if s > t else 1 if s == t else 0
  return float(fractions.Fraction(twice, 2 * pairs)) if pairs else math.nan


@pytest.mark.parametrize('seed', range(10))
def test_auc_is_the_pairwise_loop_to_the_last_bit(seed):
  _, label, score = random_log(seed, num=120)
  assert metrics.auc(label, score) == loop_auc(label, score)


@pytest.mark.parametrize('seed', range(5))
def test_auc_is_scikit_learns(seed):
  _, label, score = random_log(seed, num=20_000, num_scores=500)
  assert metrics.auc(label, score) == pytest.approx(
    sklearn.metrics.roc_auc_score(label, score), rel=1e-13
  )


def test_auc_by_hand():
  # Positives 3 and 1, negatives 2 and 1: 3 beats both, 1 loses to 2 and ties
  # with 1, so 2.5 of 4 pairs.
  assert metrics.auc([1, 1, 0, 0], [3, 1, 2, 1]) == 0.625
  # (1 - AUC) of the negated scores.
  assert metrics.auc([1, 1, 0, 0], [-3, -1, -2, -1]) == 0.375


def test_tie_counts_by_hand():
  positives, negatives = metrics.tie_counts(
    [1, 0, 1, 0, 0, 1], [0.5, 0.5, -1.0, 2.0, 0.5, 0.5]
  )
  # Scores -1, .5, 2: one positive; two and two; one negative.
  assert positives.tolist() == [1, 2, 0]
  assert negatives.tolist() == [0, 2, 1]
  assert positives.dtype == negatives.dtype == np.int64


def test_auc_of_one_class_is_nan():
  assert math.isnan(metrics.auc([1, 1], [0.1, 0.2]))
  assert math.isnan(metrics.auc([0], [0.1]))


def test_auc_counts_large_pairs_exactly():
  # 2 * 10^5 a class: 4 * 10^10 pairs, all in order but one tie.
  label = np.repeat([0, 1], 200_000)
  score = np.arange(400_000)
  score[200_000] = 199_999
  pairs = 200_000**2
  exact = fractions.Fraction(2 * pairs - 1, 2 * pairs)
  assert metrics.auc(label, score) == float(exact) < 1


@pytest.mark.parametrize('seed', range(10))
def test_gauc_is_the_loop_over_groups(seed):
  group, label, score = random_log(seed, num=200, num_groups=25)
  total, weight, skipped = 0.0, 0, 0
  for one in np.unique(group):
    rows = group == one
    value = loop_auc(label[rows], score[rows])
    if math.isnan(value):
      skipped += 1
      continue
    total += rows.sum() * value
    weight += rows.sum()
  result = metrics.gauc(group, label, score)
  assert result.value == pytest.approx(total / weight, rel=1e-14)
  assert result.skipped == skipped
  assert result.groups + skipped == np.unique(group).size


def test_gauc_weighs_examples_and_counts_what_it_skips():
  # User 7: 2 examples, AUC 1. User -1: 4 examples, one positive tied with one
  # of its three negatives and below the others: AUC 1/6. User 3 has one class.
  # (2 * 1 + 4 / 6) / 6 = 4/9.
  group = [7, -1, 3, -1, 7, -1, 3, -1]
  label = [1, 1, 1, 0, 0, 0, 1, 0]
  score = [0.9, 0.2, 0.5, 0.2, 0.1, 0.3, 0.4, 0.4]
  result = metrics.gauc(group, label, score)
  assert result == metrics.GroupedAuc(pytest.approx(4 / 9), groups=2, skipped=1)


def test_gauc_of_one_class_groups_only_is_nan():
  result = metrics.gauc([1, 1, 2], [1, 1, 0], [0.1, 0.2, 0.3])
  assert math.isnan(result.value)
  assert (result.groups, result.skipped) == (0, 2)


@pytest.mark.parametrize('seed', range(3))
def test_gauc_of_one_group_is_the_auc(seed):
  _, label, score = random_log(seed)
  result = metrics.gauc(np.full(label.size, 5), label, score)
  assert result.value == metrics.auc(label, score)


# Logloss and calibration.


def test_logloss_is_scikit_learns():
  rng = np.random.default_rng(0)
  logit, weight = rng.normal(0, 3, 500), rng.random(500)
  label = rng.integers(0, 2, 500)
  probability = 1 / (1 + np.exp(-logit))
  assert metrics.logloss(label, logit) == pytest.approx(
    sklearn.metrics.log_loss(label, probability), rel=1e-12
  )
  assert metrics.logloss(label, logit, weight) == pytest.approx(
    sklearn.metrics.log_loss(label, probability, sample_weight=weight),
    rel=1e-12,
  )


def test_logloss_keeps_what_probabilities_lose():
  # sigmoid(40) is 1 in float64, yet -log sigmoid(40) = log(1 + e^-40).
  assert metrics.logloss([1], [40.0]) == pytest.approx(math.exp(-40), rel=1e-15)
  assert metrics.logloss([0], [1000.0]) == 1000.0
  assert metrics.logloss([1, 0], [0.0, 0.0]) == math.log(2)


def test_logloss_of_infinite_logits():
  assert metrics.logloss([1, 0], [np.inf, -np.inf]) == 0.0
  assert metrics.logloss([1, 0], [np.inf, np.inf]) == np.inf
  # A row that counts for nothing costs nothing.
  assert metrics.logloss([1, 0], [0.0, np.inf], [2, 0]) == math.log(2)


def test_weights_stand_for_repeated_rows():
  rng = np.random.default_rng(3)
  label, logit = rng.integers(0, 2, 60), rng.normal(size=60)
  weight = rng.integers(0, 4, 60)
  again = np.repeat(label, weight), np.repeat(logit, weight)
  assert metrics.logloss(label, logit, weight) == pytest.approx(
    metrics.logloss(*again), rel=1e-14
  )
  weighted = metrics.calibration(label, logit, weight)
  repeated = metrics.calibration(*again)
  assert weighted.ratio == pytest.approx(repeated.ratio, rel=1e-14)
  assert weighted.ece == pytest.approx(repeated.ece, rel=1e-13)
  assert [one.weight for one in weighted.bins] == [
    one.weight for one in repeated.bins
  ]


def test_calibration_by_hand():
  # Probabilities .2, .2 | .5, .8 in two bins of two; the first holds one
  # positive, the second one. |.2 - .5| and |.65 - .5|, half each: .225.
  logit = np.log(np.array([4.0, 1.0, 0.25, 0.25]))
  result = metrics.calibration([1, 0, 1, 0], logit, num_bins=2)
  assert result.predicted == pytest.approx(1.7 / 4)
  assert result.observed == 0.5
  assert result.ratio == pytest.approx(0.85)
  assert result.ece == pytest.approx(0.225)
  assert result.bins == (
    metrics.CalibrationBin(pytest.approx(0.2), 0.5, 2.0, 2, 0),
    metrics.CalibrationBin(pytest.approx(0.65), 0.5, 2.0, 2, 1),
  )


def test_calibration_bins_hold_equal_mass():
  rng = np.random.default_rng(4)
  label, logit = rng.integers(0, 2, 1000), rng.normal(-4, 2, 1000)
  result = metrics.calibration(label, logit, num_bins=8)
  order, error = np.argsort(logit), 0.0
  for rows, one in zip(np.split(order, 8), result.bins, strict=True):
    predicted = np.mean(1 / (1 + np.exp(-logit[rows])))
    assert one.predicted == pytest.approx(predicted)
    assert one.observed == pytest.approx(label[rows].mean())
    assert one.weight == one.count == 125
    error += abs(predicted - label[rows].mean()) / 8
  assert result.ece == pytest.approx(error)


def test_bins_count_examples_whatever_they_weigh():
  # Masses 1, 1 | 1/2 of four: two bins of 2, of two and of four examples.
  logit = np.array([-2.0, -1.0, 1.0, 2.0, 3.0, 4.0])
  label = np.array([0, 1, 0, 1, 1, 1])
  weight = np.array([1.0, 1.0, 0.5, 0.5, 0.5, 0.5])
  low, high = metrics.calibration(label, logit, weight, num_bins=2).bins
  assert (low.weight, low.count, low.number) == (2.0, 2, 0)
  assert (high.weight, high.count, high.number) == (2.0, 4, 1)
  assert (low.observed, high.observed) == (0.5, 0.75)


def test_perfect_probabilities_have_no_calibration_error():
  # Each logit stands there as a positive of weight p and a negative of 1 - p.
  logit = np.linspace(-6, 3, 50)
  probability = 1 / (1 + np.exp(-logit))
  result = metrics.calibration(
    np.repeat([1, 0], 50),
    np.tile(logit, 2),
    np.append(probability, 1 - probability),
  )
  assert result.ratio == pytest.approx(1.0, rel=1e-12)
  assert result.ece == pytest.approx(0.0, abs=1e-14)
  assert len(result.bins) == 10


def test_equal_logits_share_a_bin():
  constant = metrics.calibration([1, 0, 0, 0], [0.0] * 4, num_bins=4)
  # All of the mass has its middle in the third of four bins.
  assert constant.bins == (metrics.CalibrationBin(0.5, 0.25, 4.0, 4, 2),)
  # Whichever way the rows stand: the tie of three is one bin.
  label, logit = np.array([1, 0, 0, 1]), np.array([0.0, 0.0, 0.0, 1.0])
  for order in itertools.permutations(range(4)):
    rows = list(order)
    bins = metrics.calibration(label[rows], logit[rows], num_bins=2).bins
    assert [one.weight for one in bins] == [3.0, 1.0]
  # A tie over the edge goes where its middle lies: masses 0-1, 1-4 and 4-5,
  # with the edge at 2.5, which belongs to the upper bin.
  bins = metrics.calibration([1, 0, 0, 1, 0], [-1, 0, 0, 0, 1], num_bins=2).bins
  assert [one.weight for one in bins] == [1.0, 4.0]


def test_a_weight_lost_in_rounding_makes_no_bin_of_its_own():
  # 1e20 + 1 / 2 is 1e20, the whole mass: the edge above the last bin.
  result = metrics.calibration([1, 0], [0.0, 1.0], [1e20, 1.0], num_bins=1)
  assert [one.weight for one in result.bins] == [1e20]


def test_calibration_without_a_positive_has_no_ratio():
  result = metrics.calibration([0, 0], [-1.0, -np.inf])
  assert math.isnan(result.ratio)
  assert result.ece == pytest.approx(0.5 / (1 + math.e))
  assert result.bins[0].predicted == 0.0


# Rank metrics.


def plain_rank_metrics(ranked, k):
  """The definitions, for one request's labels in an order without ties."""
  relevant = sum(ranked)
  hits = sum(ranked[:k])
  precision, recall = hits / k, hits / relevant
  f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
  dcg = sum(y / math.log2(r + 1) for r, y in enumerate(ranked[:k], 1))
  ideal = sum(1 / math.log2(r + 1) for r in range(1, min(k, relevant) + 1))
  first = ranked.index(1) + 1
  return (
    precision,
    recall,
    f1,
    dcg / ideal,
    float(hits > 0),
    1 / first,
    1 / first if first <= k else 0.0,
  )


def enumerated_rank_metrics(label, score, k):
  """Their mean over every order that the scores allow."""
  blocks = [
    [y for y, s in zip(label, score, strict=True) if s == one]
    for one in sorted(set(score), reverse=True)
  ]
  orders = [
    plain_rank_metrics(list(itertools.chain(*order)), k)
    for order in itertools.product(*map(itertools.permutations, blocks))
  ]
  return np.mean(orders, axis=0)


def rank_vector(result, k):
  return [result[name.format(k)] for name in RANK_NAMES]


@pytest.mark.parametrize('k', [1, 2, 3, 6])
def test_every_request_of_up_to_five_candidates(k):
  # Every way to tie 1 to 5 candidates, with every labelling that has a
  # positive: 651 requests, of which k = 6 exceeds all.
  for size in range(1, 6):
    for steps in itertools.product([0, 1], repeat=size - 1):
      score = [0, *itertools.accumulate(steps)]
      for label in itertools.product([0, 1], repeat=size):
        if any(label):
          result = metrics.rank_metrics([4] * size, label, score, k)
          expected = enumerated_rank_metrics(label, score, k)
          np.testing.assert_allclose(
            rank_vector(result, k), expected, rtol=1e-12, atol=1e-15
          )


@pytest.mark.parametrize('seed', range(10))
def test_metrics_are_means_over_requests_with_a_positive(seed):
  request, label, score = random_log(seed, num=50, num_groups=14)
  k, rows, without = 3, [], 0
  for one in np.unique(request):
    mine = request == one
    if label[mine].any():
      rows.append(
        enumerated_rank_metrics(label[mine].tolist(), score[mine].tolist(), k)
      )
    else:
      without += 1
  result = metrics.rank_metrics(request, label, score, k)
  mean = np.mean(rows, axis=0)
  np.testing.assert_allclose(rank_vector(result, k), mean, rtol=1e-12)
  precision, recall = mean[:2]
  assert result['f1'] == pytest.approx(
    2 * precision * recall / (precision + recall), rel=1e-12
  )
  assert result['requests'] == len(rows)
  assert result['requests_without_positive'] == without


def test_rank_metrics_by_hand():
  # k = 2. Request 1, best first: 0 1 1; request 2: 1; request 3: 0 0.
  #   precision  (1/2 + 1/2) / 2 = 1/2     recall  (1/2 + 1) / 2 = 3/4
  #   f1         2 * 1/2 * 3/4 / (5/4) = 3/5
  #   per request 2h/(k+m): 2/4 and 2/3, mean 7/12
  #   ndcg       request 1: (1/log2 3) / (1 + 1/log2 3); request 2: 1
  #   hit rate 1; first positives at ranks 2 and 1: mrr 3/4
  result = metrics.rank_metrics(
    [1, 1, 1, 2, 3, 3],
    [1, 0, 1, 1, 0, 0],
    [0.2, 0.9, 0.5, -3.0, 0.1, 0.2],
    k=2,
  )
  second = 1 / math.log2(3)
  assert result == {
    'precision@2': 0.5,
    'recall@2': 0.75,
    'f1': pytest.approx(0.6),
    'f1_per_request': pytest.approx(7 / 12),
    'ndcg@2': pytest.approx((second / (1 + second) + 1) / 2),
    'hit_rate@2': 1.0,
    'mrr': 0.75,
    'mrr@2': 0.75,
    'requests': 2,
    'requests_without_positive': 1,
  }


def test_mrr_is_cut_at_k_and_mrr_is_not():
  # The one positive at rank 4 of 4.
  result = metrics.rank_metrics([0] * 4, [0, 0, 0, 1], [4, 3, 2, 1], k=3)
  assert (result['mrr'], result['mrr@3'], result['hit_rate@3']) == (0.25, 0, 0)
  assert result['f1'] == result['ndcg@3'] == 0.0


def test_precision_divides_by_k_beyond_the_candidates():
  # Three candidates, all relevant: 3/10, and everything else is perfect.
  result = metrics.rank_metrics([0] * 3, [1, 1, 1], [1.0, 2.0, 3.0])
  assert result['precision@10'] == 0.3
  assert result['recall@10'] == result['ndcg@10'] == result['mrr'] == 1.0
  assert result['f1_per_request'] == pytest.approx(6 / 13)


@pytest.mark.parametrize(('num', 'positives'), [(100, 1), (40, 7), (9, 9)])
def test_constant_scores_rank_at_random(num, positives):
  # With one block, h is hypergeometric and the first positive's place has the
  # masses C(n-j, m-1) / C(n, m), here in exact fractions.
  label = np.arange(num) < positives
  result = metrics.rank_metrics([0] * num, label, np.zeros(num), k=10)
  places = range(1, num - positives + 2)
  mass = {
    j: fractions.Fraction(
      math.comb(num - j, positives - 1), math.comb(num, positives)
    )
    for j in places
  }
  assert sum(mass.values()) == 1
  top = min(10, num)
  assert result['recall@10'] == pytest.approx(top / num, rel=1e-13)
  assert result['hit_rate@10'] == pytest.approx(
    1 - scipy.stats.hypergeom.pmf(0, num, positives, top), rel=1e-12
  )
  assert result['mrr'] == pytest.approx(
    float(sum(mass[j] / j for j in places)), rel=1e-12
  )
  assert result['mrr@10'] == pytest.approx(
    float(sum(mass[j] / j for j in places if j <= 10)), rel=1e-12
  )


@pytest.mark.parametrize('k', [1, 5, 10, 40])
def test_ndcg_is_scikit_learns(k):
  # Its rule for ties is the same: the mean gain of a block.
  rng = np.random.default_rng(k)
  label = (rng.random((60, 30)) < 0.2).astype(int)
  label[:, 0] = 1
  score = rng.integers(0, 12, label.shape)
  request = np.repeat(np.arange(60), 30)
  result = metrics.rank_metrics(request, label.ravel(), score.ravel(), k)
  assert result[f'ndcg@{k}'] == pytest.approx(
    sklearn.metrics.ndcg_score(label, score, k=k), rel=1e-12
  )


def test_requests_without_a_positive_only():
  result = metrics.rank_metrics([1, 1, 2], [0, 0, 0], [1, 2, 3])
  assert (result.pop('requests'), result.pop('requests_without_positive')) == (
    0,
    2,
  )
  assert len(result) == 8
  assert all(math.isnan(value) for value in result.values())


def test_a_single_candidate_is_found():
  result = metrics.rank_metrics([9], [1], [0.0])
  assert result['precision@10'] == 0.1
  assert [result[name] for name in ('recall@10', 'ndcg@10', 'mrr')] == [1, 1, 1]


# What holds for all of them.


logs = st.lists(
  st.tuples(
    st.integers(0, 3),
    st.integers(0, 1),
    st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0]),
  ),
  min_size=1,
  max_size=30,
)


def all_metrics(group, label, score):
  values = dict(metrics.rank_metrics(group, label, score, k=3))
  grouped = metrics.gauc(group, label, score)
  values |= {'auc': metrics.auc(label, score), 'gauc': grouped.value}
  values |= {'groups': grouped.groups, 'skipped': grouped.skipped}
  return values


@hypothesis.settings(deadline=None)
@hypothesis.given(logs, st.randoms(use_true_random=False))
def test_order_of_rows_changes_nothing(rows, random):
  group, label, score = map(np.array, zip(*rows, strict=True))
  order = list(range(len(rows)))
  random.shuffle(order)
  here = all_metrics(group, label, score)
  there = all_metrics(group[order], label[order], score[order])
  assert here == pytest.approx(there, rel=1e-12, nan_ok=True)
  assert metrics.logloss(label, score) == pytest.approx(
    metrics.logloss(label[order], score[order]), rel=1e-12
  )
  one = metrics.calibration(label, score, num_bins=4)
  two = metrics.calibration(label[order], score[order], num_bins=4)
  assert one.ece == pytest.approx(two.ece, rel=1e-9, abs=1e-15)
  assert [b.weight for b in one.bins] == [b.weight for b in two.bins]


@hypothesis.settings(deadline=None)
@hypothesis.given(logs)
def test_only_the_order_of_scores_and_the_grouping_count(rows):
  group, label, score = map(np.array, zip(*rows, strict=True))
  here = all_metrics(group, label, score)
  assert here == pytest.approx(
    all_metrics(100 - 7 * group, label, np.exp(score) - 5), nan_ok=True
  )
  # Infinite ends keep the order, and are allowed.
  ends = np.where(score == 3.0, np.inf, np.where(score == -2.0, -np.inf, score))
  assert here == pytest.approx(all_metrics(group, label, ends), nan_ok=True)


@hypothesis.settings(deadline=None)
@hypothesis.given(logs)
def test_values_stay_in_their_range(rows):
  group, label, score = map(np.array, zip(*rows, strict=True))
  values = all_metrics(group, label, score)
  counts = [values.pop(name) for name in ('requests', 'groups', 'skipped')]
  without = values.pop('requests_without_positive')
  assert counts[0] + without == counts[1] + counts[2] == np.unique(group).size
  for value in values.values():
    assert math.isnan(value) or -1e-12 <= value <= 1 + 1e-12


def test_neighbouring_float32_scores_are_not_tied():
  # The smallest denormals, and neighbours of 1: all distinct in float32.
  tiny = (np.arange(4) * np.float32(1e-45)).astype(np.float32)
  assert np.unique(tiny).size == 4
  assert metrics.auc([0, 0, 1, 1], tiny) == 1.0
  near = np.nextafter(np.float32(1), np.float32(2))
  assert metrics.auc([0, 1], np.array([1, near], np.float32)) == 1.0
  # Zeros of both signs are one score.
  assert metrics.auc([1, 0], [0.0, -0.0]) == 0.5


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16, np.int32])
def test_narrow_dtypes_are_compared_as_they_are(dtype):
  group, label, score = random_log(8)
  narrow = (score * 3).astype(dtype)
  wide = narrow.astype(np.float64)
  assert all_metrics(group, label.astype(bool), narrow) == all_metrics(
    group.astype(np.int32), label.astype(np.float32), wide
  )


CALLS = {
  'auc': lambda label, score: metrics.auc(label, score),
  'gauc': lambda label, score: metrics.gauc([1] * len(label), label, score),
  'rank_metrics': lambda label, score: metrics.rank_metrics(
    [1] * len(label), label, score
  ),
  'logloss': lambda label, score: metrics.logloss(label, score),
  'calibration': lambda label, score: metrics.calibration(label, score),
}


@pytest.mark.parametrize('call', CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
  ('label', 'score', 'message'),
  [
    ([], [], 'are empty'),
    ([0, 1], [1.0], r'shapes \(2,\) and \(1,\)'),
    ([[0, 1]], [[1.0, 2.0]], 'must be vectors'),
    ([0, 1, 2], [1, 2, 3], r'label_N\[2\] is 2, not 0 or 1'),
    ([0, math.nan], [1, 2], r'label_N\[1\] is nan'),
    ([0, 1, 1], [1, math.nan, math.nan], r'\[1\] is NaN, as are 2 of 3'),
  ],
)
def test_bad_labels_and_scores_are_refused(call, label, score, message):
  with pytest.raises(ValueError, match=message):
    call(label, score)


@pytest.mark.parametrize('call', [metrics.gauc, metrics.rank_metrics])
@pytest.mark.parametrize(
  ('ids', 'message'),
  [([1], r'shape \(1,\)'), ([1.0, 2.0], 'must hold integers, not float64')],
)
def test_bad_groups_are_refused(call, ids, message):
  with pytest.raises(ValueError, match=message):
    call(ids, [0, 1], [0.1, 0.2])


@pytest.mark.parametrize('call', [metrics.logloss, metrics.calibration])
@pytest.mark.parametrize(
  ('weight', 'message'),
  [
    ([1.0], r'shape \(1,\)'),
    ([1.0, -2.0], r'weight_N\[1\] is -2.0'),
    ([math.inf, 1.0], r'weight_N\[0\] is inf'),
    ([0.0, 0.0], 'zero everywhere'),
  ],
)
def test_bad_weights_are_refused(call, weight, message):
  with pytest.raises(ValueError, match=message):
    call([0, 1], [0.1, 0.2], weight)


def test_bad_counts_are_refused():
  with pytest.raises(ValueError, match='k is 0'):
    metrics.rank_metrics([1], [1], [0.5], k=0)
  with pytest.raises(ValueError, match='num_bins is 0'):
    metrics.calibration([1], [0.5], num_bins=0)


@pytest.mark.real_data
def test_the_order_that_a_search_engine_showed():
  # 2,872 lists of 10, 805 with a click, 1,293 clicks in all, so that the whole
  # list as top 10 has precision 1293 / 8050 and recall 1.
  path = DATA / 'ranked_clicks' / 'events.tsv.gz'
  if not path.exists():
    pytest.skip('shared/data/ranked_clicks is absent')
  with gzip.open(path, 'rt') as file:
    next(file)
    rows = np.array([line.split('\t') for line in file], np.int64)
  request, position, click = rows[:, 1], rows[:, 3], rows[:, 5]
  result = metrics.rank_metrics(request, click, -position)
  assert (result['requests'], result['requests_without_positive']) == (
    805,
    2067,
  )
  assert result['precision@10'] == pytest.approx(1293 / 8050, rel=1e-12)
  assert result['recall@10'] == result['hit_rate@10'] == 1.0
  first = {}
  for one, place in zip(request[click == 1], position[click == 1], strict=True):
    first[one] = min(place, first.get(one, 99))
  assert result['mrr'] == pytest.approx(
    np.mean([1 / place for place in first.values()]), rel=1e-12
  )
