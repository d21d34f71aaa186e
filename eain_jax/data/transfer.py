"""One file over HTTP: cut anywhere, it goes on where it was cut.

Bytes are appended to FILE.part. FILE.part.json beside it holds what the server
said of the file when the first byte came; a server is asked to go on only
where it says the same still (Range with If-Range), else the file begins anew.
So a whole .part is never pieced together from two versions.
"""

import contextlib
import dataclasses
import email.message
import email.utils
import errno
import functools
import gzip
import http
import http.client
import json
import math
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from rich.filesize import decimal

from eain_jax import __version__
from eain_jax.artifacts import write_json, writing
from eain_jax.config import DownloadConfig
from eain_jax.data.catalogue import RemoteFile
from eain_jax.errors import InputError

_CHUNK_BYTES = 1 << 16
# Enough to tell a page from data, and to show its beginning.
_HEAD_BYTES = 64
# Failures count as being in a row unless so much has come between them.
_PROGRESS_BYTES = 1 << 20
_LONGEST_PAUSE = 60.0
_GZIP_MAGIC = b'\x1f\x8b'
# Busy, or broken for a moment: RFC 9110 and 6585.
_PASSING_CODES = (408, 425, 429, 500, 502, 503, 504)
_ERRNO_WORDS = {
  errno.ECONNREFUSED: 'nobody answers there (connection refused)',
  errno.ENETUNREACH: 'there is no route to the network',
  errno.EHOSTUNREACH: 'there is no route to it',
  errno.EPIPE: 'the connection was cut',
}


class Show(Protocol):
  """Who tells the user how it goes."""

  def progress(self, name: str, done: int, total: int | None) -> None:
    """So many bytes of a file are here; `total` is None where nobody knows."""

  def note(self, text: str) -> None:
    """Something worth a line."""


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a server says of a file.

  Attributes:
    num_bytes: its size, None where the server does not say.
    etag: its strong entity tag with the quotes, or ''.
    last_modified: a date as the server writes it, or ''.
  """

  num_bytes: int | None
  etag: str = ''
  last_modified: str = ''

  @property
  def validator(self) -> str:
    """What If-Range takes; '' where it cannot be known that it is the same."""
    return self.etag or self.last_modified

  def difference(self, other: 'Answer') -> str:
    """How the file differs from what was said of it before, or ''."""
    for name, now, before in (
      ('size', self.num_bytes, other.num_bytes),
      ('ETag', self.etag, other.etag),
      ('date', self.last_modified, other.last_modified),
    ):
      if now and before and now != before:
        return f'its {name} was {before}, and is {now}'
    return ''


class _PassingError(Exception):
  """A failure that may pass.

  Attributes:
    wait: seconds that the server asks for, None where it does not.
    is_half_bad: there is no going on from the half that is here.
  """

  def __init__(
    self, why: str, wait: float | None = None, is_half_bad: bool = False
  ):
    super().__init__(why)
    self.wait, self.is_half_bad = wait, is_half_bad


class _Redirects(urllib.request.HTTPRedirectHandler):
  """Follows redirects to the web alone, and never out of encryption."""

  def http_error_302(self, req, fp, code, msg, headers):
    target = urllib.parse.urljoin(req.full_url, headers.get('location', ''))
    allowed = ('https',) if req.type == 'https' else ('http', 'https')
    if urllib.parse.urlsplit(target).scheme not in allowed:
      raise InputError(
        f'{req.full_url} redirects to {target!r}, which is not followed: only '
        f'{" and ".join(allowed)} are'
      )
    return super().http_error_302(req, fp, code, msg, headers)

  http_error_301 = http_error_303 = http_error_302
  http_error_307 = http_error_308 = http_error_302


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
  """Of urllib's handlers those for the web: no file:, no ftp:."""
  opener = urllib.request.OpenerDirector()
  for handler in (
    urllib.request.ProxyHandler,
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.HTTPErrorProcessor,
    _Redirects,
  ):
    opener.add_handler(handler())
  # Whatever says it is gzip is a file of gzip, and stays so.
  opener.addheaders = [
    ('User-Agent', f'eain-jax/{__version__}'),
    ('Accept-Encoding', 'identity'),
  ]
  return opener


def _header(headers: email.message.Message, name: str, pattern: str) -> str:
  """A header as it came if it has that form, else ''."""
  value = (headers.get(name) or '').strip()
  return value if re.fullmatch(pattern, value) else ''


def _answer(headers: email.message.Message) -> Answer:
  size = _header(headers, 'Content-Length', r'\d{1,18}')
  return Answer(
    int(size) if size else None,
    # A weak tag, W/"..", does not promise equal bytes.
    _header(headers, 'ETag', r'"[!#-~]*"'),
    _header(headers, 'Last-Modified', r'[ -~]{1,80}'),
  )


def _seconds_asked(headers: email.message.Message) -> float | None:
  """Retry-After in seconds, which may be given as a date."""
  text = headers.get('Retry-After', '')
  if re.fullmatch(r'\d{1,9}', text):
    return float(text)
  try:
    date = email.utils.parsedate_to_datetime(text)
    return max(0.0, date.timestamp() - time.time())
  except (ValueError, OverflowError):
    return None


def _refusal(error: urllib.error.HTTPError, file: RemoteFile) -> Exception:
  """What an HTTP status that is no success means for the user."""
  code, elsewhere = error.code, f'see {file.page}, and --mirror'
  if code in _PASSING_CODES:
    wait = _seconds_asked(error.headers)
    if wait is not None and wait > _LONGEST_PAUSE:
      return InputError(
        f'{file.url}: the server is busy ({code}) and asks for {wait:,.0f} '
        'seconds: the same command goes on then'
      )
    return _PassingError(f'the server is busy or broken ({code})', wait)
  if code == 416:
    return _PassingError('the file is shorter there now', is_half_bad=True)
  if code in (404, 410):
    return InputError(
      f'{file.url} is not there ({code}): it may have moved, {elsewhere}'
    )
  if code in (401, 403, 407, 451):
    return InputError(
      f'{file.url} is refused ({code}): it may need a login, or your network '
      f'blocks it; {elsewhere}'
    )
  if 300 <= code < 400:
    return InputError(
      f'{file.url} is redirected without end, or to nowhere ({code}): it may '
      f'have moved, {elsewhere}'
    )
  return InputError(
    f'{file.url}: the server answers {code}, which is no file: {elsewhere}'
  )


def _reason(error: BaseException | str, timeout: int) -> str:
  """A failure of the network in plain words."""
  if isinstance(error, TimeoutError):
    return f'the server was silent for {timeout} seconds'
  if isinstance(error, socket.gaierror):
    return 'its host name is not known here (no network?)'
  if isinstance(error, OSError) and error.errno in _ERRNO_WORDS:
    return _ERRNO_WORDS[error.errno]
  # That an answer ends before it begins is a reset too, without a number.
  if isinstance(error, (ConnectionResetError, http.client.IncompleteRead)):
    return 'the connection was cut'
  return f'the connection failed ({str(error) or type(error).__name__!r})'


@contextlib.contextmanager
def _opened(
  file: RemoteFile, timeout: int, method: str = 'GET', **headers: str
) -> Iterator[http.client.HTTPResponse]:
  """The server's answer, where it has the file.

  Raises:
    _PassingError: not now.
    InputError: not at all.
  """
  request = urllib.request.Request(
    file.url,
    headers={name.replace('_', '-'): text for name, text in headers.items()},
    method=method,
  )
  try:
    response = _opener().open(request, timeout=timeout)
  except urllib.error.HTTPError as error:
    error.close()
    raise _refusal(error, file) from error
  # ValueError: of a redirect to a host that cannot be.
  except (OSError, http.client.HTTPException, ValueError) as error:
    cause = error
    if isinstance(error, urllib.error.URLError):
      cause = error.reason
    if isinstance(cause, ssl.SSLCertVerificationError):
      raise InputError(
        f'{file.url}: its certificate is not trusted '
        f'({cause.verify_message}): is your clock right, does your network '
        'rewrite connections'
      ) from error
    raise _PassingError(_reason(cause, timeout)) from error
  with response:
    yield response


def ask(file: RemoteFile, timeout: int) -> Answer:
  """What the server says of a file, asked once.

  Raises:
    InputError: it does not say.
  """
  try:
    with _opened(file, timeout, 'HEAD') as response:
      return _answer(response.headers)
  except _PassingError as error:
    raise InputError(f'{file.url}: {error}') from error


def _read(response: http.client.HTTPResponse, timeout: int) -> bytes:
  """What came next, b'' at the end."""
  try:
    # Not `read`, which would lose what has come before a cut.
    return response.read1(_CHUNK_BYTES)
  except (OSError, http.client.HTTPException) as error:
    raise _PassingError(_reason(error, timeout)) from error


def _record_of(part: Path) -> Path:
  return part.with_name(f'{part.name}.json')


def _size(path: Path) -> int:
  try:
    return path.stat().st_size
  except FileNotFoundError:
    return 0


def discard(part: Path) -> None:
  """Removes a half, or what turned out to be no good."""
  with writing(part):
    part.unlink(missing_ok=True)
    _record_of(part).unlink(missing_ok=True)


def _kept(part: Path, url: str) -> Answer | None:
  """What the server said of the half that is here, if that can be used."""
  try:
    values: Any = json.loads(_record_of(part).read_bytes())
    if values.pop('url') != url:
      return None
    answer = Answer(**values)
  except (OSError, ValueError, TypeError, KeyError, AttributeError):
    return None
  is_good = type(answer.num_bytes) in (int, type(None)) and all(
    isinstance(text, str) for text in (answer.etag, answer.last_modified)
  )
  if not is_good or _size(part) > (answer.num_bytes or math.inf):
    return None
  return answer


def _check_room(part: Path, file: RemoteFile, total: int | None) -> None:
  with writing(part):
    free = shutil.disk_usage(part.parent).free
  needed = (total or 0) - _size(part)
  if needed > free:
    raise InputError(
      f'{file.name} needs {decimal(needed)} more, and {part.parent} has '
      f'{decimal(free)} left: make room, and the same command goes on'
    )


def _refuse_page(head: bytes, file: RemoteFile) -> None:
  """Raises InputError where a file begins as no data does."""
  if file.name.endswith('.gz'):
    what, is_data = 'no gzip file', head.startswith(_GZIP_MAGIC)
  else:
    what, is_data = 'no table', head.strip()[:1] not in (b'', b'<')
  if not is_data:
    raise InputError(
      f'{file.url} is {what}, it begins with {head[:40]!r}: open it in a '
      'browser, for a login or a notice that it moved looks so, and see '
      f'{file.page}'
    )


def _continued(
  response: http.client.HTTPResponse, start: int, kept: Answer
) -> Answer:
  """What is known of the file, if the piece is the one that was asked for.

  Raises:
    _PassingError: it is another, or of another file.
  """
  piece = _header(
    response.headers, 'Content-Range', r'bytes \d+-\d+/(\d{1,18}|\*)'
  )
  first, _, size = piece.removeprefix('bytes ').partition('/')
  said = dataclasses.replace(
    _answer(response.headers), num_bytes=int(size) if size.isdigit() else None
  )
  if first.partition('-')[0] != str(start) or said.difference(kept):
    raise _PassingError('the server went on elsewhere', is_half_bad=True)
  return dataclasses.replace(kept, num_bytes=kept.num_bytes or said.num_bytes)


def _begun(
  response: http.client.HTTPResponse,
  head: bytes,
  file: RemoteFile,
  part: Path,
  show: Show,
) -> Answer:
  """Makes way for a file that comes from its first byte.

  Raises:
    _PassingError: it was cut at once.
    InputError: it is not what it should be; a half that is here stays.
  """
  answer = _answer(response.headers)
  if response.status != 200:
    raise InputError(
      f'{file.url}: the server answers {response.status}, which is no file: '
      f'see {file.page}, and --mirror'
    )
  if answer.num_bytes is None and not response.chunked:
    raise InputError(
      f'{file.url}: the server does not say how long it is, so a cut would '
      f'not show: see {file.page}, and --mirror'
    )
  if len(head) < _HEAD_BYTES and answer.num_bytes not in (None, len(head)):
    raise _PassingError('the connection was cut')
  _refuse_page(head, file)
  if _size(part):
    kept = _kept(part, file.url)
    why = 'nothing vouches for the half that is here'
    if kept:
      why = answer.difference(kept) or 'the server cannot go on within a file'
    show.note(f'{file.name} begins anew: {why}')
  _check_room(part, file, answer.num_bytes)
  discard(part)
  write_json(_record_of(part), {'url': file.url, **dataclasses.asdict(answer)})
  return answer


def _attempt(file: RemoteFile, part: Path, timeout: int, show: Show) -> Answer:
  """Fetches what is not here yet.

  Raises:
    _PassingError: something is still missing.
  """
  kept, start = _kept(part, file.url), _size(part)
  if kept and kept.num_bytes == start:
    return kept  # It was stopped when all had come.
  asked = {}
  if kept and kept.validator and start:
    asked = {'Range': f'bytes={start}-', 'If_Range': kept.validator}
  with _opened(file, timeout, **asked) as response:
    head = b''
    if kept and asked and response.status == http.HTTPStatus.PARTIAL_CONTENT:
      answer = _continued(response, start, kept)
      _check_room(part, file, answer.num_bytes)
    else:
      start = 0
      # Read before anything is given up: a page of a hotel's network may come
      # in the place of the rest.
      while len(head) < _HEAD_BYTES and (more := _read(response, timeout)):
        head += more
      answer = _begun(response, head, file, part, show)
    done, total = start, answer.num_bytes
    show.progress(file.name, done, total)
    with writing(part), part.open('ab') as to:
      while chunk := head or _read(response, timeout):
        head = b''
        to.write(chunk)
        done += len(chunk)
        show.progress(file.name, done, total)
  if total not in (None, done):
    raise _PassingError(
      f'the connection was cut at {done:,} of {total:,} bytes'
    )
  return dataclasses.replace(answer, num_bytes=done)


def fetch(
  file: RemoteFile, part: Path, config: DownloadConfig, show: Show
) -> Answer:
  """Fetches a file to `part`, and goes on with what is there.

  Args:
    file: what, and from where.
    part: where its bytes are gathered; it stays when something fails.
    config: how long to wait, and how often to try.
    show: told of bytes, and of what is odd.

  Returns:
    What the server said of it, with the bytes that came.

  Raises:
    InputError: it cannot be had, or not now.
  """
  failures = most = 0
  while True:
    try:
      return _attempt(file, part, config.timeout, show)
    except _PassingError as error:
      size = _size(part)
      # Beyond what any attempt had: else a file that ends too early each time
      # would be fetched for ever.
      failures = 1 if size >= most + _PROGRESS_BYTES else failures + 1
      most = max(most, size)
      if error.is_half_bad:
        discard(part)
      if failures >= config.attempts:
        remedy = f'try again later, or see {file.page}, and --mirror'
        if _size(part):
          remedy = f'{decimal(size)} are kept, and the same command goes on'
        raise InputError(
          f'{file.url}: {error}, {failures} times in a row: {remedy}'
        ) from error
      pause = error.wait
      if pause is None:
        pause = min(2.0 ** (failures - 1), _LONGEST_PAUSE)
      show.note(f'{file.name}: {error}; again in {pause:.0f} s')
    time.sleep(pause)


def check_whole(path: Path) -> None:
  """Reads a gzip file to its end: its own checksums are all that vouch for it.

  Raises:
    InputError: it is damaged or ends early.
  """
  try:
    with gzip.open(path) as file:
      while file.read(1 << 20):
        pass
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise InputError(f'{path} is no whole gzip file ({error})') from error
  except OSError as error:
    raise InputError(f'{path} cannot be read: {error.strerror}') from error
