"""A web server on loopback that misbehaves when it is told to."""

import contextlib
import http.server
import re
import threading
from collections.abc import Callable
from typing import NamedTuple


class Request(NamedTuple):
  method: str
  path: str
  range: str | None
  if_range: str | None


class FileServer:
  """Serves bytes by their paths, with ETags and ranges as Apache does.

  Attributes:
    files: what there is.
    etag, last_modified: of each of them; '' for none.
    script: what is done at the next GETs, one each, in place of serving.
    requests: what was asked so far.
  """

  def __init__(self):
    self.files: dict[str, bytes] = {}
    self.etag, self.last_modified = '"v1"', 'Fri, 02 Jan 2015 10:00:00 GMT'
    self.script: list[Callable[[Handler], None]] = []
    self.requests: list[Request] = []
    self.released = threading.Event()
    self._http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self._http.daemon_threads = True
    self._http.owner = self
    self.url = f'http://127.0.0.1:{self._http.server_port}'

  def __enter__(self):
    threading.Thread(
      target=self._http.serve_forever, args=[0.01], daemon=True
    ).start()
    return self

  def __exit__(self, *exception):
    self.released.set()
    self._http.shutdown()
    self._http.server_close()

  @property
  def gets(self):
    """(path, range) of each GET so far."""
    return [(r.path, r.range) for r in self.requests if r.method == 'GET']


class Handler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    owner = self.server.owner
    owner.requests.append(
      Request(
        self.command,
        self.path,
        self.headers['Range'],
        self.headers['If-Range'],
      )
    )
    with contextlib.suppress(ConnectionError):
      if self.command == 'GET' and owner.script:
        owner.script.pop(0)(self)
      else:
        self.serve()

  do_HEAD = do_GET

  def log_message(self, *arguments):
    pass

  def answer(self, code, **headers):
    self.send_response(code)
    for name, value in headers.items():
      if value:
        self.send_header(name.replace('_', '-'), value)
    self.end_headers()

  def serve(self, *, ranges=True, cut=None, length=None, hang=False, **headers):
    """Sends the file, or of it what was asked, or `cut` bytes of that."""
    owner = self.server.owner
    content = owner.files.get(self.path)
    if content is None:
      self.answer(404, Content_Length='0')
      return
    code, start = 200, 0
    asked = re.fullmatch(r'bytes=(\d+)-', self.headers['Range'] or '')
    same = self.headers['If-Range'] in (None, owner.etag, owner.last_modified)
    headers |= {'ETag': owner.etag, 'Last_Modified': owner.last_modified}
    if asked and ranges and same:
      code, start = 206, int(asked[1])
      if start >= len(content):
        self.answer(416, Content_Range=f'bytes */{len(content)}')
        return
      piece = f'bytes {start}-{len(content) - 1}/{len(content)}'
      headers = {'Content_Range': piece} | headers
    sent = content[start:]
    self.answer(code, Content_Length=str(length or len(sent)), **headers)
    if self.command == 'GET':
      self.wfile.write(sent[:cut])
      self.wfile.flush()
      if hang:
        self.server.owner.released.wait(30)


def serving(**how):
  """An action: serve in some odd way."""
  return lambda handler: handler.serve(**how)


def answering(code, body=b'', **headers):
  """An action: a status, headers and a body."""

  def act(handler):
    handler.answer(code, Content_Length=str(len(body)), **headers)
    handler.wfile.write(body)

  return act


def sending(raw):
  """An action: these bytes and nothing else."""

  def act(handler):
    handler.wfile.write(raw)

  return act
