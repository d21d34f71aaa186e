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
from typing import Any

from eain_jax.config import PrepareConfig
from eain_jax.errors import InputError

BLOCK_BYTES = 1 << 22
MAX_LINE_BYTES = 1 << 24
REJECTED_TEXT = 200
# More than these, and most lines of a file among them, is the wrong file: to
# keep them all would take all memory.
MAX_REJECTED_KEPT = 200_000
# A gzip file is judged by how far it inflates once so much has come out.
JUDGED_BYTES = 1 << 22
BYTE_ORDER_MARK = b'\xef\xbb\xbf'
# Window bits of zlib's for gzip framing.
GZIP_WINDOW = 31
# How files begin that are no text, what they are, and what to do with them.
TO_LINES = 'write its rows as lines of text'
OTHER_FILES = (
  (b'PAR1', 'Parquet', 'only --events and --items take that'),
  (b'PK\x03\x04', 'a zip archive or a spreadsheet', 'unpack or export it'),
  (b'\xfd7zXZ\0', 'compressed with xz', 'unpack it with unxz'),
  (b'\x28\xb5\x2f\xfd', 'compressed with zstd', 'unpack it with unzstd'),
  (b'\x04\x22\x4d\x18', 'compressed with lz4', 'unpack it with unlz4'),
  (b'7z\xbc\xaf', 'a 7z archive', 'unpack it'),
  (b'\x1f\x8b', 'gzip within gzip', 'unpack it once with gunzip'),
  (b'\x89PNG', 'a PNG image', 'name the data'),
  (b'\xff\xd8\xff', 'a JPEG image', 'name the data'),
  (b'%PDF-', 'a PDF document', 'name the data'),
  (b'\x93NUMPY', 'a numpy array', TO_LINES),
  (b'ARROW1\0', 'an Arrow file', TO_LINES),
  (b'Obj\x01', 'an Avro file', TO_LINES),
  (b'SQLite format 3\0', 'an SQLite database', TO_LINES),
  *(
    (b'BZh%d1AY&SY' % level, 'compressed with bzip2', 'unpack it with bunzip2')
    for level in range(1, 10)
  ),
  *(
    (b'\x80%c' % protocol, 'a Python pickle, which is never loaded', TO_LINES)
    for protocol in range(2, 6)
  ),
)
TAR_MAGIC = slice(257, 262)


@dataclasses.dataclass(frozen=True)
class ReadOptions:
  """How forgiving a reader is.

  Attributes:
    allow_truncated: keep the complete lines of a gzip file that ends early.
    max_rejected: share of a file's lines that may be rejected.
    max_inflation: bytes that may come out of a gzip file for each of its own.
    max_inflated_gb: GB that may come out of a gzip file.
  """

  allow_truncated: bool = False
  max_rejected: float = 0.001
  max_inflation: float = 200.0
  max_inflated_gb: float = 1_000.0


def read_options(config: PrepareConfig) -> ReadOptions:
  """What the settings of a preparation say of it."""
  return ReadOptions(
    config.allow_truncated,
    config.max_rejected,
    config.max_inflation,
    config.max_inflated_gb,
  )


def check_file(path: str | Path) -> Path:
  """The path of a readable, non-empty file.

  Raises:
    InputError: it is missing, a folder, a pipe, unreadable or empty.
  """
  path = Path(path)
  try:
    if path.is_dir():
      raise InputError(f'{path} is a folder, a file was expected')
    if not path.exists():
      raise InputError(f'{path} does not exist')
    if not path.is_file():
      # Each file is read twice, to know what it is and to take it in.
      raise InputError(
        f'{path} is a pipe or a device: write it to a file first'
      )
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
    lines: lines with content, so far; whoever takes one for a header, or
      several for one record, takes them off.
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
    self._complete = 0  # Lines that ended, whatever became of them.

  @property
  def name(self) -> str:
    """What the file is called where it is told of."""
    return self.path.name

  def reject(self, line: int, reason: str, text: bytes | str) -> None:
    """Notes a line that is not used.

    Raises:
      InputError: so many that this must be the wrong file.
    """
    # A character takes four bytes at most.
    text = text[: 4 * REJECTED_TEXT]
    if isinstance(text, bytes):
      text = text.decode('utf-8', 'replace')
    self.rejected.append((line, reason[:REJECTED_TEXT], text[:REJECTED_TEXT]))
    allowed = max(self.options.max_rejected, 0.5) * self.lines
    if len(self.rejected) > max(MAX_REJECTED_KEPT, allowed):
      first, reason, _ = self.rejected[0]
      raise InputError(
        f'{self.path}: {len(self.rejected)} of the first {self.lines} lines '
        f'were rejected, the first in line {first}: {reason}; this is not the '
        'file that it should be'
      )

  def source(self, format_name: str) -> dict[str, Any]:
    """What the manifest says of the file, once all lines were read."""
    return {
      'name': self.name,
      'bytes': self.num_bytes,
      'sha256': self.sha256,
      'format': format_name,
      'lines': self.lines,
      'blank': self.blank,
      'rejected': len(self.rejected),
    }

  def notes(self) -> list[str]:
    """What the user must know of the file, once all lines were read."""
    if not self.truncated:
      return []
    return [
      f'{self.path.name}: a truncated gzip file; its {self.lines} complete '
      'lines were kept.'
    ]

  def blocks(self) -> Iterator[tuple[int, list[bytes]]]:
    """Number of the first line, from 1, and the lines of each block.

    Line ends and a byte order mark are stripped; blank lines are there, as
    empty bytes.

    Raises:
      InputError: the file is no text, a damaged or truncated gzip stream, or
        one that inflates too far, or has a line of more than 16 MiB.
    """
    return map(self.split, self.texts())

  def texts(self) -> Iterator[bytes]:
    """The lines of each block as they lie in the file, in one piece.

    The taker counts them, before it asks for more: with `split`, or with
    `count_filled` where it has found itself that no line is blank.

    Raises:
      InputError: as `blocks`.
    """
    carry, is_first = b'', True
    for block in self._inflated():
      if is_first:
        self._check_text(block)
        block = block.removeprefix(BYTE_ORDER_MARK)
        is_first = False
      end = block.rfind(b'\n') + 1
      text = carry + block[:end]
      text, carry = (text, block[end:]) if end else (b'', text + block)
      if len(text) + len(carry) > MAX_LINE_BYTES:
        self._check_lengths(text + carry)
      if text:
        yield text
    if carry and not self.truncated:
      yield carry
    if self.truncated and not self._complete:
      raise InputError(
        f'{self.path} is a truncated gzip file without one complete line: '
        'download it again'
      )

  def split(self, text: bytes) -> tuple[int, list[bytes]]:
    """Number of the first line of a text, and its lines, as `blocks` has them.

    Counts the lines.
    """
    lines = text.removesuffix(b'\n').split(b'\n')
    lines = [b'' if line.isspace() else line.rstrip(b'\r') for line in lines]
    blank = lines.count(b'')
    self.blank += blank
    first = self.count_filled(len(lines) - blank)
    self._complete += blank
    return first, lines

  def count_filled(self, num: int) -> int:
    """Counts `num` lines with content, and says the number of the first."""
    first = self._complete + 1
    self.lines += num
    self._complete += num
    return first

  def _check_lengths(self, text: bytes) -> None:
    for number, line in enumerate(text.split(b'\n'), self._complete + 1):
      if len(line) > MAX_LINE_BYTES:
        raise InputError(
          f'{self.path}, line {number}: longer than {MAX_LINE_BYTES >> 20} '
          'MiB, so this is not a file of records'
        )

  def _check_text(self, block: bytes) -> None:
    for magic, kind, remedy in OTHER_FILES:
      if block.startswith(magic):
        raise InputError(f'{self.path} is {kind}, not lines of text: {remedy}')
    if block[TAR_MAGIC] == b'ustar':
      raise InputError(f'{self.path} is a tar archive: unpack it with tar -xf')
    head = block[:4096]
    # In Latin text each second byte is 0, and none beside them.
    zeros = sorted((head[::2].count(0), head[1::2].count(0)))
    has_mark = head.startswith((b'\xff\xfe', b'\xfe\xff'))
    if has_mark or (not zeros[0] and zeros[1] > len(head) // 4):
      raise InputError(
        f'{self.path} is UTF-16 text: convert it with iconv -f UTF-16 -t UTF-8'
      )
    head = head.lstrip(BYTE_ORDER_MARK + b' \t\r\n').lower()
    if head.startswith((b'<!doctype', b'<html', b'<?xml', b'<head')):
      raise InputError(
        f'{self.path} is an HTML or XML page, not data: download the file again'
      )
    odd = sum(byte < 9 or 13 < byte < 32 for byte in head)
    if odd > len(head) // 20:
      raise InputError(
        f'{self.path} holds binary data, neither text nor gzip of text: name '
        'the file of records'
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
    inflater, num_in, num_out = None, 0, 0
    for block in itertools.chain([first], raw):
      num_in += len(block)
      while block:
        if inflater is None:
          # A file may hold several gzip members; zeros may pad its end.
          block = block.lstrip(b'\0')
          if not block:
            break
          inflater = zlib.decompressobj(GZIP_WINDOW)
        try:
          text = inflater.decompress(block, BLOCK_BYTES)
        except zlib.error as error:
          raise InputError(
            f'{self.path} is a damaged gzip file, after line '
            f'{self._complete}: download it again'
          ) from error
        block = inflater.unconsumed_tail
        if inflater.eof:
          block, inflater = inflater.unused_data, None
        if text:
          num_out += len(text)
          self._check_inflation(num_in - len(block), num_out)
          yield text
    if inflater is not None:
      if text := inflater.flush():
        num_out += len(text)
        yield text
      if not self.options.allow_truncated:
        raise InputError(
          f'{self.path} is a truncated gzip file: it ends within line '
          f'{self._complete + 1}; download it again, or keep its complete '
          'lines with --allow_truncated'
        )
      self.truncated = True
    elif not num_out:
      raise InputError(f'{self.path} is empty: a gzip file without content')

  def _check_inflation(self, num_in: int, num_out: int) -> None:
    """Raises InputError where a gzip file is made to fill the memory."""
    most, most_gb = self.options.max_inflation, self.options.max_inflated_gb
    if num_out >= JUDGED_BYTES and num_out > most * num_in:
      raise InputError(
        f'{self.path}: {num_out:,} bytes came out of its first {num_in:,}, '
        f'{num_out // num_in} times as many; no log inflates so far, and if '
        'this one does, raise --max_inflation'
      )
    if num_out > most_gb * 1e9:
      raise InputError(
        f'{self.path}: more than {most_gb:g} GB came out of it: split it, or '
        'raise --max_inflated_gb'
      )


def first_lines(
  path: str | Path, options: ReadOptions, num: int
) -> list[tuple[int, bytes]]:
  """The first lines with content of a file, at most `num`, numbered.

  Raises:
    InputError: the file cannot be read, or holds none.
  """
  found = []
  for first, lines in LineReader(path, options).blocks():
    found += [(n, line) for n, line in enumerate(lines, first) if line]
    if len(found) >= num:
      break
  if not found:
    raise InputError(f'{path} is empty: it holds no line')
  return found[:num]
