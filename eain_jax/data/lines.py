"""Text files as numbered lines: streamed, bounded, hashed, and never trusted.

Plain or gzip, told apart by content. What is wrong with a whole file is one
InputError; what is wrong with a line is for the caller to reject and count.
"""

import dataclasses
import hashlib
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path

from eain_jax.errors import InputError

BLOCK_BYTES = 1 << 22
MAX_LINE_BYTES = 1 << 24
REJECTED_TEXT = 200
# Window bits of zlib's for gzip framing.
GZIP_WINDOW = 31


@dataclasses.dataclass(frozen=True)
class ReadOptions:
  """How forgiving a reader is.

  Attributes:
    allow_truncated: keep the complete lines of a gzip file that ends early.
    max_rejected: share of a file's lines that may be rejected.
  """

  allow_truncated: bool = False
  max_rejected: float = 0.001


def check_file(path: str | Path) -> Path:
  """The path of a readable, non-empty file.

  Raises:
    InputError: it is missing, a folder, unreadable or empty.
  """
  path = Path(path)
  try:
    if path.is_dir():
      raise InputError(f'{path} is a folder, a file was expected')
    if not path.exists():
      raise InputError(f'{path} does not exist')
    with path.open('rb') as file:
      if not file.read(1):
        raise InputError(f'{path} is empty')
  except OSError as error:
    raise InputError(f'{path} cannot be read: {error.strerror}') from error
  return path


def hash_file(path: Path) -> str:
  """sha256 of a file, in hexadecimal."""
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


class LineReader:
  """Reads one text file once, block by block.

  Attributes:
    path: the file.
    num_bytes: its size, as it lies on the disk.
    sha256: of its bytes, once all lines were read.
    lines: lines with content, so far.
    blank: lines without, so far.
    truncated: the gzip stream ended early, and that was allowed.
    rejected: (line number, reason, text) of each line that was refused.
  """

  def __init__(self, path: str | Path, options: ReadOptions):
    self.path = check_file(path)
    self.options = options
    self.num_bytes = self.path.stat().st_size
    self.sha256 = ''
    self.lines = self.blank = 0
    self.truncated = False
    self.rejected: list[tuple[int, str, str]] = []

  def reject(self, line: int, reason: str, text: bytes | str) -> None:
    """Notes a line that is not used."""
    if isinstance(text, bytes):
      text = text[:REJECTED_TEXT].decode('utf-8', 'replace')
    self.rejected.append((line, reason, text[:REJECTED_TEXT]))

  def blocks(self) -> Iterator[tuple[int, list[bytes]]]:
    """Number of the first line, from 1, and the lines of each block.

    Line ends are stripped; blank lines are there, as empty bytes.

    Raises:
      InputError: the file is no text, a damaged or truncated gzip stream, or
        has a line of more than 16 MiB.
    """
    number, carry = 1, b''
    for block in self._inflated():
      if number == 1 and not carry:
        self._check_text(block)
      *lines, carry = (carry + block).split(b'\n')
      if len(carry) > MAX_LINE_BYTES:
        raise InputError(
          f'{self.path}, line {number + len(lines)}: longer than '
          f'{MAX_LINE_BYTES >> 20} MiB, so this is not a file of records'
        )
      if lines:
        yield number, self._count(lines)
        number += len(lines)
    if self.truncated:
      return
    if carry:
      yield number, self._count([carry])

  def _count(self, lines: list[bytes]) -> list[bytes]:
    lines = [line.strip(b'\r \t\xef\xbb\xbf') for line in lines]
    blank = lines.count(b'')
    self.lines += len(lines) - blank
    self.blank += blank
    return lines

  def _check_text(self, block: bytes) -> None:
    head = block[:4096].lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    if head.startswith((b'<!doctype', b'<html', b'<?xml', b'<head')):
      raise InputError(
        f'{self.path} is an HTML or XML page, not data: download the file again'
      )
    odd = sum(byte < 9 or 13 < byte < 32 for byte in head)
    if odd > len(head) // 20:
      raise InputError(
        f'{self.path} holds binary data, neither text nor gzip of text'
      )

  def _raw(self) -> Iterator[bytes]:
    digest = hashlib.sha256()
    with self.path.open('rb') as file:
      while block := file.read(BLOCK_BYTES // 4):
        digest.update(block)
        yield block
    self.sha256 = digest.hexdigest()

  def _inflated(self) -> Iterator[bytes]:
    raw = self._raw()
    first = next(raw)
    if not first.startswith(b'\x1f\x8b'):
      yield first
      yield from raw
      return
    inflater, any_output = None, False
    for block in itertools.chain([first], raw):
      while block:
        inflater = inflater or zlib.decompressobj(GZIP_WINDOW)
        try:
          text = inflater.decompress(block, BLOCK_BYTES)
        except zlib.error as error:
          raise InputError(
            f'{self.path} is a damaged gzip file, after line '
            f'{self.lines + self.blank}: download it again'
          ) from error
        if text:
          any_output = True
          yield text
        block = inflater.unconsumed_tail
        if inflater.eof:
          # A file may hold several gzip members; zeros may pad its end.
          block = inflater.unused_data.lstrip(b'\0')
          inflater = None
    if inflater is not None:
      if text := inflater.flush():
        any_output = True
        yield text
      if not self.options.allow_truncated:
        raise InputError(
          f'{self.path} is a truncated gzip file: it ends within line '
          f'{self.lines + self.blank + 1}; download it again, or keep its '
          'complete lines with --allow_truncated'
        )
      self.truncated = True
    if not any_output:
      raise InputError(f'{self.path} is empty: a gzip file without content')
