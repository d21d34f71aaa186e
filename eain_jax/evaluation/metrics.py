"""How good scores are: equations (21)-(24), and what stands beside them.

Everything is exact, in float64, on the host. Two ideas carry the file. Rows
with equal scores form a tie block, and every metric is its expectation over a
uniformly random order within the blocks: an AUC counts a tied pair half, a
constant score ranks as chance does. And a sort by (group, score) turns the
blocks of all groups into flat arrays, so nothing loops over groups.

Axes: N examples, G groups (users or requests), S tie blocks, R requests that
hold a positive, J places within a block, K bins.

Scores may be infinite, for the order is still defined, and infinities of one
sign tie; so may logits, whose probability is then 0 or 1. NaN is refused:
sorting would place it last, where a diverged model looks like a ranking.
"""

import dataclasses
import operator

import numpy as np
import numpy.typing as npt


def _checked(
  label_N: npt.ArrayLike, score_N: npt.ArrayLike, name: str
) -> tuple[np.ndarray, np.ndarray]:
  """Labels as bool [N] and scores as float64 [N], or a ValueError."""
  label_N = np.asarray(label_N)
  score_N = np.asarray(score_N).astype(np.float64)
  if label_N.ndim != 1 or score_N.shape != label_N.shape:
    raise ValueError(
      f'label_N and {name} must be vectors of one length, not of shapes '
      f'{label_N.shape} and {score_N.shape}'
    )
  if not label_N.size:
    raise ValueError(f'label_N and {name} are empty: there is nothing to score')
  positive_N = label_N == 1
  odd_N = ~(positive_N | (label_N == 0))
  if odd_N.any():
    row = int(odd_N.argmax())
    raise ValueError(f'label_N[{row}] is {label_N[row]}, not 0 or 1')
  nan_N = np.isnan(score_N)
  if nan_N.any():
    raise ValueError(
      f'{name}[{int(nan_N.argmax())}] is NaN, as are {int(nan_N.sum())} of '
      f'{nan_N.size}: scores without an order have no metric'
    )
  return positive_N, score_N


def _checked_ids(id_N: npt.ArrayLike, name: str, num: int) -> np.ndarray:
  id_N = np.asarray(id_N)
  if id_N.shape != (num,):
    raise ValueError(f'{name} has shape {id_N.shape}, the labels ({num},)')
  if not np.issubdtype(id_N.dtype, np.integer):
    # Floating ids collide above 2^24 or 2^53, and NaN equals no other NaN.
    raise ValueError(f'{name} must hold integers, not {id_N.dtype}')
  return id_N


def _checked_weight(weight_N: npt.ArrayLike | None, num: int) -> np.ndarray:
  if weight_N is None:
    return np.ones(num)
  weight_N = np.asarray(weight_N).astype(np.float64)
  if weight_N.shape != (num,):
    raise ValueError(f'weight_N has shape {weight_N.shape}, not ({num},)')
  odd_N = ~(np.isfinite(weight_N) & (weight_N >= 0))
  if odd_N.any():
    row = int(odd_N.argmax())
    raise ValueError(
      f'weight_N[{row}] is {weight_N[row]}, not a finite number from 0 up'
    )
  if not weight_N.any():
    raise ValueError('weight_N is zero everywhere: there is nothing to average')
  return weight_N


def _changes(value_N: np.ndarray) -> np.ndarray:
  """True where a row differs from the one before it, and for the first."""
  return np.append(True, value_N[1:] != value_N[:-1])


def tie_counts(
  label_N: npt.ArrayLike, score_N: npt.ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
  """Positives and negatives at each distinct score, in ascending order.

  All that an AUC, its variance or a ROC curve needs to know of N scores.

  Args:
    label_N: [N] of 0 and 1, any dtype.
    score_N: [N], any real dtype, compared as float64; NaN is refused.

  Returns:
    Two int64 arrays [S], S the number of distinct scores.

  Raises:
    ValueError: empty input, shapes that differ, a label other than 0 and 1, or
      a NaN.
  """
  positive_N, score_N = _checked(label_N, score_N, 'score_N')
  order_N = np.argsort(score_N)
  start_S = np.flatnonzero(_changes(score_N[order_N]))
  positives_S = np.add.reduceat(positive_N[order_N], start_S, dtype=np.int64)
  size_S = np.diff(start_S, append=score_N.size)
  return positives_S, size_S - positives_S


def auc(label_N: npt.ArrayLike, score_N: npt.ArrayLike) -> float:
  """Area under the ROC curve, equation (21): exact, a tied pair counts half.

  The share of (positive, negative) pairs that the scores put in order, that is
  Mann and Whitney's U over its maximum. Pairs are counted in integers, so only
  the last division rounds.

  Args:
    label_N: [N] of 0 and 1, any dtype.
    score_N: [N], any real dtype, compared as float64; may be infinite.

  Returns:
    In [0, 1]; nan where only one class is present.

  Raises:
    ValueError: as `tie_counts`.
  """
  return auc_of_counts(*tie_counts(label_N, score_N))


def auc_of_counts(positives_S: np.ndarray, negatives_S: np.ndarray) -> float:
  """As `auc`, of what `tie_counts` returns."""
  num_pairs = int(positives_S.sum()) * int(negatives_S.sum())
  if not num_pairs:
    return float('nan')
  twice_below_S = 2 * np.cumsum(negatives_S) - negatives_S
  return int(np.dot(positives_S, twice_below_S)) / (2 * num_pairs)


@dataclasses.dataclass(frozen=True)
class _TieBlocks:
  """Blocks of equal scores within their groups, in (group, score) order.

  Attributes:
    group_S: int64 [S], in 0..G-1.
    size_S: int64 [S], rows of the block.
    positives_S: int64 [S], positives among them.
    before_S: int64 [S], rows of its group that come before the block.
    positives_before_S: int64 [S], positives among those.
    size_G: int64 [G], rows of the group.
    positives_G: int64 [G], positives among them.
  """

  group_S: np.ndarray
  size_S: np.ndarray
  positives_S: np.ndarray
  before_S: np.ndarray
  positives_before_S: np.ndarray
  size_G: np.ndarray
  positives_G: np.ndarray


def _order_within(group_N: np.ndarray, score_N: np.ndarray) -> np.ndarray:
  """The rows by group, then score; ties stand in any order.

  Where the rows of a group stand together, as those of a part do, each group
  is sorted alone, all of a size at once: a tenth of a sort of all rows.
  """
  start_G = np.flatnonzero(_changes(group_N))
  if not (group_N[start_G[1:]] > group_N[start_G[:-1]]).all():
    return np.lexsort((score_N, group_N))
  size_G = np.diff(start_G, append=group_N.size)
  by_size_G = np.argsort(size_G, kind='stable')
  changes = np.flatnonzero(_changes(size_G[by_size_G]))
  order_N = np.empty(group_N.size, np.int64)
  for groups in np.split(by_size_G, changes[1:]):
    row_GJ = start_G[groups, None] + np.arange(int(size_G[groups[0]]))
    by_score_GJ = np.argsort(score_N[row_GJ], axis=1)
    order_N[row_GJ] = np.take_along_axis(row_GJ, by_score_GJ, axis=1)
  return order_N


def _tie_blocks(
  group_N: np.ndarray, positive_N: np.ndarray, score_N: np.ndarray
) -> _TieBlocks:
  num = score_N.size
  order_N = _order_within(group_N, score_N)
  new_group_N = _changes(group_N[order_N])
  start_G = np.flatnonzero(new_group_N)
  start_S = np.flatnonzero(new_group_N | _changes(score_N[order_N]))
  group_S = np.cumsum(new_group_N)[start_S] - 1
  positives_before_N = np.append(0, np.cumsum(positive_N[order_N]))
  return _TieBlocks(
    group_S=group_S,
    size_S=np.diff(start_S, append=num),
    positives_S=np.diff(positives_before_N[np.append(start_S, num)]),
    before_S=start_S - start_G[group_S],
    positives_before_S=positives_before_N[start_S]
    - positives_before_N[start_G[group_S]],
    size_G=np.diff(start_G, append=num),
    positives_G=np.diff(positives_before_N[np.append(start_G, num)]),
  )


@dataclasses.dataclass(frozen=True)
class GroupedAuc:
  """A GAUC and what it rests on.

  Attributes:
    value: weighted mean of the groups' AUCs; nan where every group was skipped.
    groups: number of groups in that mean.
    skipped: number of groups of one class, which have no AUC.
  """

  value: float
  groups: int
  skipped: int


def gauc(
  group_N: npt.ArrayLike, label_N: npt.ArrayLike, score_N: npt.ArrayLike
) -> GroupedAuc:
  """Mean of every group's own AUC, weighted by its number of examples.

  The GAUC of DIN (arXiv 1706.06978, section 6.2), where a group is a user. A
  group without a positive or without a negative has no AUC; it is left out of
  the mean and of the weights, and counted.

  Args:
    group_N: integers [N]; a group's rows may stand anywhere.
    label_N: [N] of 0 and 1, any dtype.
    score_N: [N], any real dtype, compared as float64; may be infinite.

  Raises:
    ValueError: as `tie_counts`, or groups that are not N integers.
  """
  positive_N, score_N = _checked(label_N, score_N, 'score_N')
  group_N = _checked_ids(group_N, 'group_N', score_N.size)
  blocks = _tie_blocks(group_N, positive_N, score_N)
  negatives_before_S = blocks.before_S - blocks.positives_before_S
  negatives_S = blocks.size_S - blocks.positives_S
  # Twice the pairs in order, in integers: a tied pair adds one, not two.
  twice_S = blocks.positives_S * (2 * negatives_before_S + negatives_S)
  twice_G = np.zeros(blocks.size_G.size, np.int64)
  np.add.at(twice_G, blocks.group_S, twice_S)
  pairs_G = blocks.positives_G * (blocks.size_G - blocks.positives_G)
  kept_G = pairs_G > 0
  groups = int(kept_G.sum())
  value = float('nan')
  if groups:
    auc_G = twice_G[kept_G] / (2 * pairs_G[kept_G])
    value = float(np.average(auc_G, weights=blocks.size_G[kept_G]))
  return GroupedAuc(value, groups, kept_G.size - groups)


def logloss(
  label_N: npt.ArrayLike,
  logit_N: npt.ArrayLike,
  weight_N: npt.ArrayLike | None = None,
) -> float:
  """Mean binary cross-entropy, equation (13), in nats an example.

  -log sigmoid(z) for a positive and -log sigmoid(-z) for a negative, both as
  softplus: no probability is formed, so none is clipped.

  Args:
    label_N: [N] of 0 and 1, any dtype.
    logit_N: [N], any real dtype. An infinite one costs 0 where it is right and
      makes the result infinite where it is wrong.
    weight_N: [N], finite, 0 or more; 1 each by default. A row of weight 0
      counts for nothing, whatever its logit.

  Raises:
    ValueError: as `tie_counts`; or weights that are not N such numbers, or all
      zero.
  """
  positive_N, logit_N = _checked(label_N, logit_N, 'logit_N')
  weight_N = _checked_weight(weight_N, logit_N.size)
  loss_N = np.logaddexp(0.0, np.where(positive_N, -logit_N, logit_N))
  counted_N = weight_N > 0  # 0 * inf is NaN
  return float(np.average(loss_N[counted_N], weights=weight_N[counted_N]))


@dataclasses.dataclass(frozen=True)
class CalibrationBin:
  """One point of a reliability diagram.

  Attributes:
    predicted: mean predicted probability of the bin.
    observed: share of positives in it.
    weight: its weight, in examples where none was given.
    count: its examples.
    number: of the bins that were asked for, from 0.
  """

  predicted: float
  observed: float
  weight: float
  count: int
  number: int


@dataclasses.dataclass(frozen=True)
class Calibration:
  """How far probabilities agree with what happened.

  Attributes:
    predicted: mean predicted probability.
    observed: share of positives.
    ratio: predicted / observed, 1 at best; nan without a positive.
    ece: expected calibration error, the weighted mean of
      |predicted - observed| over the bins.
    bins: by ascending prediction; empty ones are left out.
  """

  predicted: float
  observed: float
  ratio: float
  ece: float
  bins: tuple[CalibrationBin, ...]


def calibration(
  label_N: npt.ArrayLike,
  logit_N: npt.ArrayLike,
  weight_N: npt.ArrayLike | None = None,
  num_bins: int = 10,
) -> Calibration:
  """Calibration, overall and over bins of equal mass.

  Equal mass, because click probabilities crowd near 0, where bins of equal
  width would put nearly all of them into one. Equal logits share a bin (that
  of the middle of their mass), so the order of rows changes nothing; where
  ties are wide, bins are fewer and uneven.

  Args:
    label_N: [N] of 0 and 1, any dtype.
    logit_N: [N], any real dtype; may be infinite. A model trained on sampled
      negatives is calibrated to their rate, so shift its logits first.
    weight_N: [N], finite, 0 or more; 1 each by default.
    num_bins: at most so many bins.

  Raises:
    ValueError: as `logloss`, or num_bins below 1.
  """
  positive_N, logit_N = _checked(label_N, logit_N, 'logit_N')
  weight_N = _checked_weight(weight_N, logit_N.size)
  if operator.index(num_bins) < 1:
    raise ValueError(f'num_bins is {num_bins}, not 1 or more')
  order_N = np.argsort(logit_N)
  start_S = np.flatnonzero(_changes(logit_N[order_N]))
  probability_N = np.exp(-np.logaddexp(0.0, -logit_N))

  def block_sums(value_N: np.ndarray) -> np.ndarray:
    return np.add.reduceat(value_N[order_N], start_S)

  weight_S = block_sums(weight_N)
  middle_S = np.cumsum(weight_S) - weight_S / 2
  # A bin's number is a floor, so a middle on an edge is in the upper bin.
  bin_S = (num_bins * middle_S / weight_S.sum()).astype(np.int64)
  bin_S = np.minimum(bin_S, num_bins - 1)

  def bin_sums(value_S: np.ndarray) -> np.ndarray:
    return np.bincount(bin_S, weights=value_S, minlength=num_bins)

  weight_K = bin_sums(weight_S)
  count_K = bin_sums(np.diff(start_S, append=logit_N.size))
  predicted_K = bin_sums(block_sums(weight_N * probability_N))
  observed_K = bin_sums(block_sums(weight_N * positive_N))
  total = weight_K.sum()
  predicted = float(predicted_K.sum() / total)
  observed = float(observed_K.sum() / total)
  return Calibration(
    predicted=predicted,
    observed=observed,
    ratio=predicted / observed if observed else float('nan'),
    ece=float(np.abs(predicted_K - observed_K).sum() / total),
    bins=tuple(
      CalibrationBin(float(p / w), float(o / w), float(w), int(n), number)
      for number, (p, o, w, n) in enumerate(
        zip(predicted_K, observed_K, weight_K, count_K, strict=True)
      )
      if w > 0
    ),
  )


def _first_positive(
  before_R: np.ndarray, size_R: np.ndarray, positives_R: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Hit rate at k, reciprocal rank, and that cut at k: expectations, [R] each.

  `before_R` rows stand above the block that holds the first positive, which
  has n rows, m of them positive. The positive's place J in that block, in
  random order, has P(J > j) = prod_{i<j} (n-m-i) / (n-i), all of the first j
  being drawn from the n-m negatives; given J > j-1, place j holds a positive
  with probability m / (n-j+1). Both depend on (n, m) alone, of which there are
  few (1, 1 where nothing ties), so the loop is over those; the arrays in it
  hold no more than N elements altogether.
  """
  hit_R = np.empty(size_R.size)
  reciprocal_R = np.empty(size_R.size)
  reciprocal_at_k_R = np.empty(size_R.size)
  pair_R = size_R * (size_R.max() + 1) + positives_R
  order_R = np.argsort(pair_R, kind='stable')
  starts = np.flatnonzero(_changes(pair_R[order_R]))
  for rows in np.split(order_R, starts[1:]):
    n, m = int(size_R[rows[0]]), int(positives_R[rows[0]])
    above_J = np.arange(n - m + 1)
    survival = np.append(1.0, np.cumprod((n - m - above_J) / (n - above_J)))
    mass_J = survival[:-1] * m / (n - above_J)
    rank_RJ = before_R[rows, None] + above_J + 1
    term_RJ = mass_J / rank_RJ
    reciprocal_R[rows] = term_RJ.sum(axis=1)
    reciprocal_at_k_R[rows] = np.where(rank_RJ <= k, term_RJ, 0.0).sum(axis=1)
    hit_R[rows] = 1.0 - survival[np.clip(k - before_R[rows], 0, n - m + 1)]
  return hit_R, reciprocal_R, reciprocal_at_k_R


def rank_metrics(
  request_N: npt.ArrayLike,
  label_N: npt.ArrayLike,
  score_N: npt.ArrayLike,
  k: int = 10,
) -> dict[str, float]:
  """Equations (22)-(24), NDCG, hit rate and MRR over each request's candidates.

  Means over the requests that hold a positive; a request may hold several. Of
  a request with m positives, h of them in the top k:

  - precision@k = h / k, equation (22), also where it has fewer candidates than
    k; recall@k = h / m, equation (23).
  - f1 = equation (24) of the averaged precision and recall; f1_per_request =
    the mean of 2 h / (k + m), which is (24) of the request's own.
  - ndcg@k = DCG / ideal DCG, where a positive at rank r counts 1 / log2(r + 1).
  - hit_rate@k = [h > 0]; mrr = 1 / (rank of the first positive), mrr@k the
    same, and 0 where that rank is beyond k.

  Each is its expectation over a uniformly random order of tied scores, in
  closed form. A block of n tied rows, m of them positive, that starts below
  rank a has min(max(k - a, 0), n) of its places in the top k. Each place holds
  a positive with probability m / n, so precision, recall, F1 (2 h / (k + m) is
  linear in h) and DCG are sums of m / n over those places, as McSherry and
  Najork do it (ECIR 2008). Hit rate and reciprocal rank depend on where the
  first positive falls in the first block that has one, a negative
  hypergeometric distribution.

  Args:
    request_N: integers [N]; a request's rows may stand anywhere.
    label_N: [N] of 0 and 1, any dtype.
    score_N: [N], any real dtype, compared as float64, the highest first; may be
      infinite.
    k: the cut-off, in ranks.

  Returns:
    precision@k, recall@k, f1, f1_per_request, ndcg@k, hit_rate@k, mrr, mrr@k
    (k as its number; all in [0, 1], all nan where no request has a positive),
    and the counts requests and requests_without_positive.

  Raises:
    ValueError: as `tie_counts`; requests that are not N integers; k below 1.
  """
  positive_N, score_N = _checked(label_N, score_N, 'score_N')
  request_N = _checked_ids(request_N, 'request_N', score_N.size)
  if operator.index(k) < 1:
    raise ValueError(f'k is {k}, not 1 or more')
  blocks = _tie_blocks(request_N, positive_N, -score_N)
  num_requests = blocks.size_G.size
  counted_G = blocks.positives_G > 0
  num_counted = int(counted_G.sum())
  counts = {
    'requests': num_counted,
    'requests_without_positive': num_requests - num_counted,
  }
  names = (
    f'precision@{k}',
    f'recall@{k}',
    'f1',
    'f1_per_request',
    f'ndcg@{k}',
    f'hit_rate@{k}',
    'mrr',
    f'mrr@{k}',
  )
  if not num_counted:
    return dict.fromkeys(names, float('nan')) | counts

  def request_sums(value_S: np.ndarray) -> np.ndarray:
    sum_G = np.bincount(blocks.group_S, value_S, minlength=num_requests)
    return sum_G[counted_G]

  positives_R = blocks.positives_G[counted_G]
  inside_S = np.clip(k - blocks.before_S, 0, blocks.size_S)
  hits_R = request_sums(blocks.positives_S * inside_S / blocks.size_S)
  precision = float(np.mean(hits_R / k))
  recall = float(np.mean(hits_R / positives_R))

  # discount[r]: what the first r ranks count together.
  last = min(k, int(blocks.size_G.max()))
  discount = np.append(0.0, np.cumsum(1.0 / np.log2(np.arange(last) + 2.0)))
  from_S = np.minimum(blocks.before_S, last)
  block_discount_S = discount[from_S + inside_S] - discount[from_S]
  dcg_R = request_sums(blocks.positives_S * block_discount_S / blocks.size_S)
  ideal_R = discount[np.minimum(positives_R, last)]

  first_S = (blocks.positives_S > 0) & (blocks.positives_before_S == 0)
  hit_R, reciprocal_R, reciprocal_at_k_R = _first_positive(
    blocks.before_S[first_S],
    blocks.size_S[first_S],
    blocks.positives_S[first_S],
    k,
  )
  values = (
    precision,
    recall,
    2 * precision * recall / (precision + recall) if precision else 0.0,
    float(np.mean(2 * hits_R / (k + positives_R))),
    float(np.mean(dcg_R / ideal_R)),
    float(np.mean(hit_R)),
    float(np.mean(reciprocal_R)),
    float(np.mean(reciprocal_at_k_R)),
  )
  return dict(zip(names, values, strict=True)) | counts
