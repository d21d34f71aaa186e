"""Parquet files are decoded in a process of their own.

Polars trusts what it decodes. A damaged file makes it panic, with a trace on
standard error, or ask for memory that there is not, which ends its process. So
a child reads the files and hands over tables: what goes wrong there is a
sentence here.

The child runs this file alone, and asks for nothing of the package.
"""

import contextlib
import functools
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any, BinaryIO

import polars as pl


class Unreadable(Exception):
  """A file could not be decoded; the message says why."""


class _Child:
  """The process, started when it is first asked, and again if it has died."""

  def __init__(self):
    self._process: subprocess.Popen | None = None
    self._lock = threading.Lock()

  def ask(self, question: dict[str, Any]) -> tuple[pl.DataFrame, int]:
    """The table and the number that answer a question.

    Raises:
      Unreadable: there is none.
    """
    with self._lock:
      # Kept once it has answered: the rest of an answer is for nobody else.
      process, self._process = self._process or _start(), None
      assert process.stdin is not None
      assert process.stdout is not None
      with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(question).encode() + b'\n')
        process.stdin.flush()
      head = process.stdout.readline()
      answer = json.loads(head) if head.endswith(b'\n') else {'bytes': 1}
      num_bytes = answer.get('bytes', 0)
      data = process.stdout.read(num_bytes)
      if len(data) < num_bytes:
        code = process.wait()
        how = signal.Signals(-code).name if code < 0 else f'exit code {code}'
        raise Unreadable(f'it is damaged, and ended its reader with {how}')
      self._process = process
    if 'error' in answer:
      raise Unreadable(answer['error'])
    return pl.read_ipc_stream(io.BytesIO(data)), answer['rows']


def _start() -> subprocess.Popen:
  # -P: modules of this folder must not stand for those of others.
  return subprocess.Popen(
    [sys.executable, '-P', __file__],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
  )


_child = functools.cache(_Child)


def read_schema(path: str) -> tuple[pl.Schema, int]:
  """The columns of a Parquet file, and how many rows it says it has.

  Raises:
    Unreadable: it is damaged.
  """
  # The child may have started in another folder.
  frame, num_rows = _child().ask({'path': os.path.abspath(path)})
  return frame.schema, num_rows


def read_rows(
  path: str, columns: Sequence[str], first: int, size: int
) -> pl.DataFrame:
  """Some columns of some rows of a Parquet file.

  Args:
    path: the file.
    columns: of those that it has.
    first: the first row, from 0.
    size: how many rows it must have from there on.

  Raises:
    Unreadable: it is damaged.
  """
  question = {
    'path': os.path.abspath(path),
    'columns': list(columns),
    'first': first,
    'size': size,
  }
  frame, num_rows = _child().ask(question)
  if num_rows != size:
    raise Unreadable('it has not as many rows as it says')
  return frame


def _answer(
  path: str, columns: Sequence[str] | None = None, first: int = 0, size: int = 0
) -> tuple[pl.DataFrame, int]:
  scan = pl.scan_parquet(path, glob=False, hive_partitioning=False)
  if columns is None:
    num_rows = scan.select(pl.len()).collect().item()
    return pl.DataFrame(schema=scan.collect_schema()), num_rows
  frame = scan.select(columns).slice(first, size).collect()
  return frame, frame.height


def _first_line(error: BaseException) -> str:
  return (str(error).splitlines() or ['no reason given'])[0]


def _serve(questions: BinaryIO, answers: BinaryIO) -> None:
  """Answers questions, one a line, until there are no more."""
  for question in questions:
    data = io.BytesIO()
    try:
      frame, num_rows = _answer(**json.loads(question))
      frame.write_ipc_stream(data)
      answer = {'bytes': data.tell(), 'rows': num_rows}
    except OSError as error:
      answer = {'error': error.strerror or _first_line(error)}
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
      answer = {'error': _first_line(error)}
    except MemoryError:
      answer = {'error': 'it takes more memory than there is'}
    answers.write(json.dumps(answer).encode() + b'\n')
    if 'bytes' in answer:
      answers.write(data.getbuffer())
    answers.flush()


if __name__ == '__main__':
  with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
    _serve(sys.stdin.buffer, sys.stdout.buffer)
