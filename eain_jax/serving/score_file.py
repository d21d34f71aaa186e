"""A file of candidates to a file of scores."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from eain_jax.artifacts import write_json, written_whole
from eain_jax.data.columns import written_by_polars
from eain_jax.serving.candidates import CandidateFile, Rows, as_series
from eain_jax.serving.parts import Parts, made_in_parts, output_format
from eain_jax.serving.scorer import Counts, Scorer

ROWS_A_PART = 1 << 16
SCORE, PROBABILITY = 'score', 'probability'


def score_columns(logits: np.ndarray) -> list[pl.Series]:
  """Logits and their sigmoid, as columns of an output."""
  probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
  return [
    pl.Series(SCORE, logits, pl.Float32),
    pl.Series(PROBABILITY, probability.astype(np.float32), pl.Float32),
  ]


def _kept_columns(rows: Rows, file: CandidateFile) -> list[pl.Series]:
  """What passes through, as columns of an output."""
  return [
    as_series(name, values, file.kept[name])
    for name, values in rows.kept.items()
  ]


def _lines(columns: Mapping[str, Sequence[Any]]) -> Iterator[bytes]:
  encode = msgspec.json.Encoder().encode
  for values in zip(*columns.values(), strict=True):
    yield encode(dict(zip(columns, values, strict=True))) + b'\n'


def add_part(
  parts: Parts,
  rows: Rows,
  chosen: np.ndarray,
  made: Sequence[pl.Series],
  file: CandidateFile,
) -> None:
  """Writes what passes through of some rows, and what was made of them.

  From JSON to JSON numbers stay numbers, lists stay lists.

  Args:
    parts: of the output.
    rows: of the input.
    chosen: int [m], which of them.
    made: columns of m values.
    file: of the rows.
  """
  if parts.format == 'jsonl' and None in file.kept.values():
    kept = {
      name: [values[row] for row in chosen.tolist()]
      for name, values in rows.kept.items()
    }
    parts.add_lines(_lines({**kept, **{s.name: s.to_list() for s in made}}))
  else:
    kept = [column.gather(chosen) for column in _kept_columns(rows, file)]
    parts.add(pl.DataFrame([*kept, *made]))


def write_beside(
  output: Path,
  file: CandidateFile | None,
  plan: Mapping[str, Any],
  counts: Mapping[str, int],
) -> dict[str, Any]:
  """OUTPUT.json, what the output was made of, and OUTPUT.rejected.jsonl.

  Args:
    output: that is there.
    file: what was read, to its end; None where nothing was.
    plan: what decided the output.
    counts: of what was met.

  Returns:
    'counts', rejected rows among them, and 'sources'.
  """
  rejected = file.rejected() if file else pl.DataFrame()
  found = {
    'counts': {**counts, 'rejected': len(rejected)},
    'sources': file.sources() if file else [],
  }
  refused = output.with_name(f'{output.name}.rejected.jsonl')
  refused.unlink(missing_ok=True)
  if len(rejected):
    with written_whole(refused) as beside, written_by_polars():
      rejected.write_ndjson(beside)
  write_json(output.with_name(f'{output.name}.json'), {**plan, **found})
  return found


def score_file(
  scorer: Scorer,
  file: CandidateFile,
  output: Path,
  plan: Mapping[str, Any],
  report: Callable[[Counts], None],
) -> dict[str, Any]:
  """Scores every row of a file, in its order.

  Args:
    scorer: of the run.
    file: not read yet.
    output: where the scores go, see `made_in_parts`.
    plan: what decides the scores, ready for JSON.
    report: is told of what was scored, after each part.

  Returns:
    'counts' and 'sources', as of `write_beside`.

  Raises:
    InputError: the file is damaged, too many rows are rejected, or nothing can
      be written.
    Interrupted: told to stop; the same call goes on.
  """
  file.check_kept(output_format(output), (SCORE, PROBABILITY))
  plan = {**plan, 'input': file.identity()}
  with made_in_parts(output, {**plan, 'rows_a_part': ROWS_A_PART}) as parts:
    total = Counts()
    blocks = file.blocks(ROWS_A_PART)
    left: list[Rows] = []
    for rows in blocks:
      if not parts.is_done():
        left.append(rows)
        break
      total += scorer.count(rows)
    for rows, logits, counts in scorer.score(itertools.chain(left, blocks)):
      add_part(parts, rows, np.arange(len(rows)), score_columns(logits), file)
      total += counts
      report(total)
    parts.join()
  return write_beside(output, file, plan, dataclasses.asdict(total))
