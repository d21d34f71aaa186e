"""Scores of a part, and from them every number that the product prints.

Where negatives are sampled, as many as one asks for, a probability means
little by itself. There logloss and calibration are stated at one negative a
positive: logits move by the log of the training ratio, and an example's weight
makes a request's negatives count as one. AUC, GAUC and the ranking metrics do
not depend on it.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from eain_jax.data.batches import EvalStream, prefetch
from eain_jax.data.dataset import Dataset
from eain_jax.evaluation import metrics
from eain_jax.evaluation.intervals import auc_interval

RANK_CUTOFF = 10
# The mean AUC of fewer users is chance for the most part.
MIN_GAUC_USERS = 100


@dataclasses.dataclass(frozen=True)
class ScoredPart:
  """Logits of every example of a part, flat, with what groups them.

  Attributes:
    logit: float32 [N].
    label: int8 [N].
    user: int32 [N].
    request: int32 [N].
  """

  logit: np.ndarray
  label: np.ndarray
  user: np.ndarray
  request: np.ndarray


def score_part(
  score: Callable[[Mapping], Any],
  stream: EvalStream,
  gather: Callable[[np.ndarray], np.ndarray] = lambda values: values[None],
  *,
  timeout: float = math.inf,
  while_waiting: Callable[[], None] | None = None,
) -> ScoredPart:
  """Scores every example of a part.

  Args:
    score: maps a batch to the logits [R, C] of its shard, or [own shards, R,
      C].
    stream: the batches; this process scores its own shards of each.
    gather: [processes, ...] from the same array of each process.
    timeout: see `prefetch`.
    while_waiting: see `prefetch`.
  """
  part, dataset = stream.packer.part, stream.packer.dataset
  num_candidates, size = stream.num_candidates, stream.packer.num_requests
  own = len(stream.shards.own)
  # [batches, own shards, R, C]
  batches = prefetch(
    stream.batch,
    range(stream.num_batches),
    timeout=timeout,
    while_waiting=while_waiting,
  )
  with contextlib.closing(batches):
    logit_GSRC = np.stack(
      [
        np.asarray(score(batch)).reshape(own, size, num_candidates)
        for batch in batches
      ]
    )
  # [batches, processes, own shards, R, C]: the order of the part.
  in_order = gather(logit_GSRC).swapaxes(0, 1)
  logit_RC = in_order.reshape(-1, num_candidates)[: len(part)]
  label_RC = np.zeros(logit_RC.shape, np.int8)
  label_RC[:, 0] = part.label
  return ScoredPart(
    logit_RC.reshape(-1),
    label_RC.reshape(-1),
    np.repeat(dataset.user[part.event], num_candidates),
    np.repeat(part.request, num_candidates),
  )


def training_ratio(dataset: Dataset) -> float:
  """Negatives a positive that training sees; after Skip Above if it is on."""
  counts = dataset.manifest['counts']['train']
  return (counts['examples'] - counts['positives']) / counts['positives']


def _stated(
  dataset: Dataset, scored: ScoredPart
) -> tuple[np.ndarray, np.ndarray | None]:
  """Logits and weights at which probabilities are stated."""
  logit = scored.logit.astype(np.float64)
  if dataset.task != 'next_item':
    return logit, None
  negatives = np.sum(scored.label == 0) / np.sum(scored.label == 1)
  weight = np.where(scored.label == 1, 1.0, 1.0 / negatives)
  return logit + math.log(training_ratio(dataset)), weight


def reliability(dataset: Dataset, scored: ScoredPart) -> list[dict[str, Any]]:
  """The bins that `ece` is taken over: what a reliability curve is drawn of.

  Returns:
    By ascending prediction at most ten bins of equal weight, each {'predicted',
    'observed', 'weight', 'count', 'number'}; see `metrics.CalibrationBin`.
  """
  logit, weight = _stated(dataset, scored)
  found = metrics.calibration(scored.label, logit, weight)
  return [dataclasses.asdict(one) for one in found.bins]


def evaluate_scores(dataset: Dataset, scored: ScoredPart) -> dict[str, Any]:
  """Every metric of a scored part.

  Returns:
    auc, auc_ci95 (half width, DeLong), gauc, logloss, calibration, ece,
    precision@10, recall@10, f1, f1_per_request, ndcg@10, hit_rate@10, mrr,
    mrr@10, and the numbers of examples, requests and users behind them.
  """
  logit, weight = _stated(dataset, scored)
  grouped = metrics.gauc(scored.user, scored.label, scored.logit)
  calibration = metrics.calibration(scored.label, logit, weight)
  interval = auc_interval(scored.label, scored.logit)
  return {
    'auc': interval.mean,
    'auc_ci95': interval.ci95,
    'gauc': grouped.value,
    'gauc_users': grouped.groups,
    'gauc_users_skipped': grouped.skipped,
    'logloss': metrics.logloss(scored.label, logit, weight),
    'calibration': calibration.ratio,
    'ece': calibration.ece,
    **metrics.rank_metrics(
      scored.request, scored.label, scored.logit, RANK_CUTOFF
    ),
    'examples': len(scored.label),
  }


def selects_by(values: Mapping[str, Any]) -> str:
  """'gauc', or 'auc' where too few users have examples of both classes.

  Args:
    values: of `evaluate_scores`, of the validation part.
  """
  return 'gauc' if values['gauc_users'] >= MIN_GAUC_USERS else 'auc'


def ceiling(dataset: Dataset, part_name: str) -> dict[str, float] | None:
  """AUC and GAUC of the true preference, where the world is known."""
  part = dataset.parts[part_name]
  if part.truth is None:
    return None
  label = np.zeros(part.truth.shape, np.int8)
  label[:, 0] = 1
  user = np.repeat(dataset.user[part.event], part.truth.shape[1])
  score, label = part.truth.reshape(-1), label.reshape(-1)
  return {
    'auc': metrics.auc(label, score),
    'gauc': metrics.gauc(user, label, score).value,
  }
