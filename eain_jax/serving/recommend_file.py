"""A file of users to a file of what they are recommended."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from eain_jax.data.dataset import Dataset
from eain_jax.serving.candidates import CandidateFile, Rows
from eain_jax.serving.encoder import Asked, Encoder
from eain_jax.serving.lookup import raw_ids
from eain_jax.serving.parts import Parts, made_in_parts, output_format
from eain_jax.serving.recommender import NO_ITEM, Best, Recommender
from eain_jax.serving.score_file import (
  PROBABILITY,
  SCORE,
  add_part,
  score_columns,
  write_beside,
)
from eain_jax.serving.scorer import ask_rows

USERS_A_PART = 256


def every_user(dataset: Dataset, time: int, num_rows: int) -> Iterator[Rows]:
  """All users of a dataset at one time; what they would be on is unknown."""
  users = raw_ids(dataset, 'user')
  for begin in range(0, len(users), num_rows):
    of_block = users[begin : begin + num_rows].to_list()
    # A context that is none stands for the unknown value.
    unknown: list[str | None] = [None] * len(of_block)
    context = {name: unknown for name in dataset.context_ids}
    yield Rows(
      of_block,
      [],
      [time] * len(of_block),
      context,
      None,
      None,
      {'user': of_block},
    )


def _ranked(best: Best, items: pl.Series) -> tuple[np.ndarray, list[pl.Series]]:
  """Whose each recommended item is, and its columns: by user, then by rank."""
  is_item = best.item != NO_ITEM
  row, place = np.nonzero(is_item)
  return row, [
    pl.Series('rank', place + 1, pl.Int32),
    items.gather(best.item[is_item]).alias('recommended'),
    *score_columns(best.logit[is_item]),
  ]


def recommend_file(
  encoder: Encoder,
  recommender: Recommender,
  users: CandidateFile | None,
  time: int | None,
  output: Path,
  plan: Mapping[str, Any],
  report: Callable[[int], None],
) -> dict[str, Any]:
  """Ranks the catalogue for each user of a file, in its order.

  Args:
    encoder: of the dataset.
    recommender: of the run.
    users: not read yet; None for all of the dataset.
    time: of all requests; None where the file has a column of times.
    output: where the items go, see `made_in_parts`.
    plan: what decides them, ready for JSON.
    report: is told how many users are done, after each part.

  Returns:
    'counts' and 'sources', as of `write_beside`.

  Raises:
    InputError: the file is damaged, too many rows are rejected, or nothing can
      be written.
    Interrupted: told to stop; the same call goes on.
  """
  dataset = encoder.dataset
  items = raw_ids(dataset, 'item')
  if users is None:
    assert time is not None
    blocks = every_user(dataset, time, USERS_A_PART)
  else:
    blocks = users.blocks(USERS_A_PART)
  counts: dict[str, int] = dict.fromkeys(
    ('users', 'unknown_users', 'without_history'), 0
  )

  def count(asked: Asked) -> None:
    counts['users'] += len(asked.user)
    counts['unknown_users'] += int(np.sum(asked.user < 0))
    counts['without_history'] += int(
      np.sum(encoder.history_lengths(asked) == 0)
    )

  pending: list[Rows] = []

  def to_rank(parts: Parts) -> Iterator[Asked]:
    is_done = True
    for rows in blocks:
      asked = ask_rows(encoder, rows)
      count(asked)
      # Not asked again: blocks are taken ahead of their parts.
      is_done = is_done and parts.is_done()
      if is_done:
        continue
      pending.append(rows)
      yield asked

  if users is not None:
    own = ('rank', 'recommended', SCORE, PROBABILITY)
    users.check_kept(output_format(output), own)
    plan = {**plan, 'input': users.identity()}
  made = {**plan, 'users_a_part': USERS_A_PART}
  with made_in_parts(output, made) as parts:
    done = 0
    for best in recommender.rank(to_rank(parts)):
      rows = pending.pop(0)
      row, made = _ranked(best, items)
      if users:
        add_part(parts, rows, row, made, users)
      else:
        user = pl.Series('user', rows.kept['user'], pl.String)
        parts.add(pl.DataFrame([user.gather(row), *made]))
      done += len(rows)
      report(done)
    parts.join()
  return write_beside(output, users, plan, counts)
