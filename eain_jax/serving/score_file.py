"""A file of candidates to a file of scores, in parts, so that it can go on.

A part is some rows; it is written whole beside the output, and joined with the
others at the end. An interruption costs a part. Memory is that of a part,
however long the file is.
"""

import contextlib
import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from eain_jax.artifacts import write_json, written_whole
from eain_jax.data.columns import written_by_polars
from eain_jax.errors import InputError
from eain_jax.locking import locked_folder
from eain_jax.serving.candidates import CandidateFile, Rows, as_series
from eain_jax.serving.scorer import Counts, Scorer

ROWS_A_PART = 1 << 16
FORMATS = ('csv', 'tsv', 'jsonl', 'parquet')
SCORE, PROBABILITY = 'score', 'probability'
_PLAN_FILE = 'plan.json'


def output_format(path: Path) -> str:
  """By the ending of a name.

  Raises:
    InputError: it has none of those that are known.
  """
  ending = path.suffix.removeprefix('.')
  if ending not in FORMATS:
    raise InputError(
      f'{path} must end in one of {", ".join(f".{name}" for name in FORMATS)}'
    )
  return ending


def _table(rows: Rows, logits: np.ndarray, file: CandidateFile) -> pl.DataFrame:
  kept = [
    as_series(name, values, file.kept[name])
    for name, values in rows.kept.items()
  ]
  return pl.DataFrame([*kept, *_scores(logits)])


def _scores(logits: np.ndarray) -> list[pl.Series]:
  probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
  return [
    pl.Series(SCORE, logits, pl.Float32),
    pl.Series(PROBABILITY, probability.astype(np.float32), pl.Float32),
  ]


def _write_part(
  path: Path,
  kind: str,
  rows: Rows,
  logits: np.ndarray,
  file: CandidateFile,
  with_header: bool,
) -> None:
  """Writes the rows of a part in the format of the output."""
  if kind == 'jsonl' and None in file.kept.values():
    # As they were: numbers stay numbers, lists stay lists.
    scores = [series.to_list() for series in _scores(logits)]
    names = (*rows.kept, SCORE, PROBABILITY)
    encode = msgspec.json.Encoder().encode
    with written_whole(path) as beside, beside.open('wb') as out:
      for values in zip(*rows.kept.values(), *scores, strict=True):
        out.write(encode(dict(zip(names, values, strict=True))) + b'\n')
    return
  table = _table(rows, logits, file)
  with written_whole(path) as beside, written_by_polars():
    if kind == 'parquet':
      table.write_parquet(beside)
    elif kind == 'jsonl':
      table.write_ndjson(beside)
    else:
      separator = '\t' if kind == 'tsv' else ','
      table.write_csv(beside, separator=separator, include_header=with_header)


def _join(parts: Iterable[Path], kind: str, output: Path) -> None:
  """Makes the output of its parts, whole or not at all."""
  with written_whole(output) as beside:
    if kind == 'parquet':
      with written_by_polars():
        pl.scan_parquet(list(parts), glob=False).sink_parquet(beside)
      return
    with beside.open('wb') as out:
      for part in parts:
        with part.open('rb') as file:
          shutil.copyfileobj(file, out, 1 << 20)


def _claim(folder: Path, plan: Mapping[str, Any]) -> None:
  """Makes the folder this plan's.

  Raises:
    InputError: it has parts of other scores.
  """
  file = folder / _PLAN_FILE
  try:
    found = json.loads(file.read_text()) if file.is_file() else None
  except (OSError, ValueError, RecursionError):
    found = {}
  if found is None or not any(folder.glob('part-*')):
    write_json(file, plan)
  elif found != json.loads(json.dumps(plan)):
    raise InputError(
      f'{folder} has the beginning of other scores: of another run, input or '
      'flags; go on with those, or remove it'
    )


@contextlib.contextmanager
def _nothing_left(folder: Path) -> Iterator[None]:
  """Removes the plan at the end, where there is no part that it is of."""
  try:
    yield
  finally:
    if not any(folder.glob('part-*')):
      (folder / _PLAN_FILE).unlink(missing_ok=True)


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
    output: where the scores go; `output.unfinished`, a folder beside it, has
      the parts until then.
    plan: what decides the scores, ready for JSON; parts of another are refused.
    report: is told of what was scored, after each part.

  Returns:
    'counts' of `Counts` and of rejected rows, and 'sources'; OUTPUT.json has
    them beside the plan, and OUTPUT.rejected.jsonl the rejected rows.

  Raises:
    InputError: the file is damaged, too many rows are rejected, or nothing can
      be written.
    Interrupted: told to stop; the same call goes on.
  """
  kind = output_format(output)
  folder = output.with_name(f'{output.name}.unfinished')
  with locked_folder(folder, '--output'), _nothing_left(folder):
    _claim(folder, {**plan, 'rows_a_part': ROWS_A_PART})
    total, parts = Counts(), []
    blocks = file.blocks(ROWS_A_PART)
    left: list[Rows] = []
    for rows in blocks:
      part = _part(folder, len(parts), kind)
      if not part.is_file():
        left.append(rows)
        break
      total += scorer.count(rows)
      parts.append(part)
    for rows, logits, counts in scorer.score(itertools.chain(left, blocks)):
      part = _part(folder, len(parts), kind)
      _write_part(part, kind, rows, logits, file, with_header=not parts)
      parts.append(part)
      total += counts
      report(total)
    rejected = file.rejected()
    found = {
      'counts': {**dataclasses.asdict(total), 'rejected': len(rejected)},
      'sources': file.sources(),
    }
    _join(parts, kind, output)
    if len(rejected):
      refused = output.with_name(f'{output.name}.rejected.jsonl')
      with written_whole(refused) as beside, written_by_polars():
        rejected.write_ndjson(beside)
    write_json(output.with_name(f'{output.name}.json'), {**plan, **found})
    for path in parts:
      path.unlink()
  with contextlib.suppress(OSError):
    folder.rmdir()
  return found


def _part(folder: Path, number: int, kind: str) -> Path:
  return folder / f'part-{number:07}.{kind}'
