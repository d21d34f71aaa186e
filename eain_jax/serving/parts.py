"""A file that is made in parts, so that a command that was stopped goes on.

A part is written whole in a folder beside the file, and all are joined at the
end. An interruption costs a part. Memory is that of a part, however long the
file is.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from eain_jax.artifacts import write_json, written_whole
from eain_jax.data.columns import written_by_polars
from eain_jax.errors import InputError
from eain_jax.locking import locked_folder

FORMATS = ('csv', 'tsv', 'jsonl', 'parquet')
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


class Parts:
  """The parts of a file, those of an earlier call among them."""

  def __init__(self, output: Path, folder: Path):
    """Made by `made_in_parts`."""
    self.format = output_format(output)
    self._output, self._folder = output, folder
    self._count = 0

  def is_done(self) -> bool:
    """Whether the next part is there; if so it is passed over."""
    done = self._path(self._count).is_file()
    self._count += done
    return done

  def add(self, table: pl.DataFrame) -> None:
    """Writes the next part."""
    with written_whole(self._next()) as beside, written_by_polars():
      if self.format == 'parquet':
        table.write_parquet(beside)
      elif self.format == 'jsonl':
        table.write_ndjson(beside)
      else:
        table.write_csv(
          beside,
          separator='\t' if self.format == 'tsv' else ',',
          include_header=self._count == 1,
        )

  def add_lines(self, lines: Iterator[bytes]) -> None:
    """Writes the next part, of a file of lines."""
    with written_whole(self._next()) as beside, beside.open('wb') as out:
      out.writelines(lines)

  def join(self) -> None:
    """Makes the file of its parts, whole or not at all."""
    paths = [self._path(number) for number in range(self._count)]
    with written_whole(self._output) as beside:
      if self.format == 'parquet':
        with written_by_polars():
          pl.scan_parquet(paths, glob=False).sink_parquet(beside)
      else:
        with beside.open('wb') as out:
          for path in paths:
            with path.open('rb') as part:
              shutil.copyfileobj(part, out, 1 << 20)
    # The last first: those that an interruption leaves are the first ones.
    for path in reversed(paths):
      path.unlink()

  def _next(self) -> Path:
    self._count += 1
    return self._path(self._count - 1)

  def _path(self, number: int) -> Path:
    return self._folder / f'part-{number:07}.{self.format}'


def _claim(folder: Path, plan: Mapping[str, Any]) -> None:
  """Makes the folder this plan's.

  Raises:
    InputError: it has parts of another file.
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
      f'{folder} has the beginning of something else: of another run, input or '
      'flags; go on with those, or remove it'
    )


@contextlib.contextmanager
def made_in_parts(output: Path, plan: Mapping[str, Any]) -> Iterator[Parts]:
  """The parts of `output`, in the folder `output.unfinished` beside it.

  Args:
    output: a file of one of `FORMATS`.
    plan: what decides its content, ready for JSON.

  Raises:
    InputError: its ending is unknown, the folder has parts of another plan, or
      cannot be written.
  """
  output_format(output)
  folder = output.with_name(f'{output.name}.unfinished')
  with locked_folder(folder, '--output'):
    try:
      _claim(folder, plan)
      yield Parts(output, folder)
    finally:
      if not any(folder.glob('part-*')):
        (folder / _PLAN_FILE).unlink(missing_ok=True)
  # Where it was there before, the lock has left it.
  with contextlib.suppress(OSError):
    folder.rmdir()
