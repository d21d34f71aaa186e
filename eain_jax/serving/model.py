"""A trained model as a Python object: raw ids in, scores out."""

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from eain_jax.errors import InputError
from eain_jax.serving.asked_rows import make_rows
from eain_jax.serving.candidates import Rows
from eain_jax.serving.encoder import Asked, Encoder, power_of_two
from eain_jax.serving.recommender import NO_ITEM, Recommender
from eain_jax.serving.scorer import Scorer, ask_rows
from eain_jax.training.restore import Run, open_run
from eain_jax.training.step import make_score_step

MAX_SLOTS = 4096
# Of a catalogue, items of a call, and users of one at most.
CANDIDATES, MAX_USERS = 512, 16


class LoadedModel:
  """A run at its best checkpoint, with the vocabularies and events of its data.

  Attributes:
    run: settings, dataset and parameters.
    encoder: of its dataset.
    context: the columns that a request has beside user, item and timestamp.
  """

  def __init__(self, run: Run):
    """Of an open run."""
    self.run = run
    self.encoder = Encoder(run.dataset)
    self.context = tuple(self.encoder.categories)
    step = run.score_step()
    self._score = lambda batch: step(run.params, run.stats, batch)
    # By size of their batches: a single row does not pay for thousands.
    self._scorers: dict[int, Scorer] = {}
    self._recommenders: dict[tuple[int, bool, int], Recommender] = {}

  def score(
    self,
    users: Sequence[str],
    items: Sequence[str],
    timestamps: Sequence[int] | None = None,
    context: Mapping[str, Sequence[str | None]] | None = None,
  ) -> np.ndarray:
    """The logit of each (user, item) at its time.

    Args:
      users: raw ids, n of them; unknown ones are scored by the unknown value.
      items: raw ids, n of them.
      timestamps: seconds UTC, n of them; a user's history are their events of
        the dataset strictly before. None: just after the dataset's last event.
      context: by column of `context` n raw values; None, also in the place of a
        column, stands for the unknown value.

    Returns:
      float32 [n].

    Raises:
      InputError: lengths differ, a column is no context, or the model has
        diverged.
    """
    rows = self._rows(users, timestamps, context, items)
    if not rows:
      return np.zeros(0, np.float32)
    slots = min(MAX_SLOTS, power_of_two(len(rows)))
    if slots not in self._scorers:
      self._scorers[slots] = Scorer(self.encoder, self._score, slots)
    [(_, logits, _)] = self._scorers[slots].score([rows])
    return logits

  def ask(
    self,
    users: Sequence[str],
    items: Sequence[str],
    timestamps: Sequence[int] | None = None,
    context: Mapping[str, Sequence[str | None]] | None = None,
  ) -> Asked:
    """A request a user, in the numbers of the dataset; see `score`."""
    rows = self._rows(users, timestamps, context, items)
    return ask_rows(self.encoder, rows)

  def recommend(
    self,
    users: Sequence[str],
    k: int = 10,
    timestamps: Sequence[int] | None = None,
    context: Mapping[str, Sequence[str | None]] | None = None,
    *,
    leave_out_had: bool = True,
  ) -> list[list[tuple[str, float]]]:
    """The k best items of the whole catalogue for each user.

    Args:
      users: raw ids.
      k: at most so many.
      timestamps: as for `score`.
      context: as for `score`.
      leave_out_had: items that a user had before.

    Returns:
      By user (raw id, logit) of items, the best first.

    Raises:
      InputError: as `score`, or k is less than 1.
    """
    k = operator.index(k)
    if k < 1:
      raise InputError(f'k={k} must be at least 1')
    rows = self._rows(users, timestamps, context)
    if not rows:
      return []
    run = self.run
    # Few sizes, for each is a program.
    num_best = min(1 << (k - 1).bit_length(), run.dataset.num_items)
    num_users = min(1 << (len(rows) - 1).bit_length(), MAX_USERS)
    kind = num_best, leave_out_had, num_users * CANDIDATES
    if kind not in self._recommenders:
      self._recommenders[kind] = Recommender(
        self.encoder,
        make_score_step(run.model, run.dataset.features),
        run.params,
        run.stats,
        *kind,
        num_candidates=CANDIDATES,
      )
    [best] = self._recommenders[kind].rank([ask_rows(self.encoder, rows)])
    named = run.dataset.raw_items(np.maximum(best.item, 0).reshape(-1))
    names = np.array(named, object).reshape(best.item.shape)
    return [
      [
        (name, float(logit))
        for name, logit, item in zip(*of_user, strict=True)
        if item != NO_ITEM
      ]
      for of_user in zip(
        names[:, :k], best.logit[:, :k], best.item[:, :k], strict=True
      )
    ]

  def _rows(
    self,
    users: Sequence[str],
    timestamps: Sequence[int] | None,
    context: Mapping[str, Sequence[str | None]] | None,
    items: Sequence[str] | None = None,
  ) -> Rows:
    """A row a user, without items where none are given."""
    last = self.run.dataset.manifest['last_timestamp'] + 1
    times = [last] * len(users) if timestamps is None else timestamps
    return make_rows(self.context, users, items, times, context)


def load_model(
  work_dir: str | Path, dataset_dir: str | Path | None = None
) -> LoadedModel:
  """Opens a run that `experiments.train` wrote, for use.

  Args:
    work_dir: the run.
    dataset_dir: its dataset, where that has moved.

  Raises:
    InputError: as `open_run`.
  """
  return LoadedModel(open_run(work_dir, dataset_dir))
