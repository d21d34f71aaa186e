"""The HTTP service: what it takes, what it answers, what it refuses."""

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import anyio.to_thread
import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import (
  CONTENT_TYPE_LATEST,
  CollectorRegistry,
  Counter,
  Gauge,
  Histogram,
  generate_latest,
)
from pydantic import (
  AfterValidator,
  BaseModel,
  BeforeValidator,
  ConfigDict,
  Field,
  model_validator,
)

import eain_jax
from eain_jax.data.batches import Batch
from eain_jax.data.events import MAX_ID_LENGTH
from eain_jax.serving.asked_rows import MAX_SECONDS
from eain_jax.serving.batcher import Batcher
from eain_jax.serving.candidates import Rows, category
from eain_jax.serving.encoder import Encoder
from eain_jax.serving.lookup import raw_ids
from eain_jax.serving.scorer import ask_rows
from eain_jax.serving.shaped import ShapedScorer

# Bounds of a request; what is beyond is refused before it is parsed or scored.
MAX_BODY_BYTES = 1 << 20
MAX_ASKED, MAX_CANDIDATES, MAX_HISTORY, MAX_K = 256, 1024, 1024, 1000
MAX_ROWS_WAITING = 65_536
# Each candidate is scored with its history: what a call may come to.
MAX_EVENTS = 1 << 18
MAX_KEYS, MAX_BYTES_READ = 64, 32 << 20
# Rankings of the whole catalogue, each of which has a piece of it waiting.
MAX_RANKINGS = 8
# From the head of a request to the last byte of its body.
BODY_SECONDS = 30.0


def _encodable(value: str) -> str:
  """Text that the readers of files take, too.

  Raises:
    ValueError: it has NUL, or half of a surrogate pair.
  """
  value.encode()
  if '\0' in value or '\ufffd' in value:
    raise ValueError('must not hold NUL or U+FFFD')
  return value


def _identifier(value: str) -> str:
  """An id, as it is.

  Raises:
    ValueError: it is blank.
  """
  if not value.strip():
    raise ValueError('must not be blank')
  return value


def _few(value: Any) -> Any:
  """A mapping with few keys: each unknown one would cost an error.

  Raises:
    ValueError: it has many.
  """
  if isinstance(value, dict) and len(value) > MAX_KEYS:
    raise ValueError(f'must not have more than {MAX_KEYS} keys')
  return value


Text = Annotated[
  str, Field(max_length=MAX_ID_LENGTH), AfterValidator(_encodable)
]
Id = Annotated[Text, Field(min_length=1), AfterValidator(_identifier)]
Seconds = Annotated[int, Field(ge=0, le=MAX_SECONDS, strict=True)]


class _Strict(BaseModel):
  model_config = ConfigDict(extra='forbid')
  # Lists stop at their first error: a million of them would hold up everybody.
  few_keys = model_validator(mode='before')(_few)


class Event(_Strict):
  """An item that a user had."""

  item: Id
  timestamp: Seconds


class _AskedUser(_Strict):
  user: Id
  timestamp: Seconds | None = Field(
    None,
    description="Seconds UTC; unset: just after the data's last event and the "
    "history's.",
  )
  context: Annotated[dict[str, Text | None], BeforeValidator(_few)] = Field(
    {}, description='Context columns of the model; unset ones are unknown.'
  )
  history: list[Event] | None = Field(
    None,
    max_length=MAX_HISTORY,
    fail_fast=True,
    description="In place of the data's events; what is not before the time "
    'does not count.',
  )


class Asked(_AskedUser):
  """A user with candidates."""

  items: list[Id] = Field(
    min_length=1, max_length=MAX_CANDIDATES, fail_fast=True
  )


class ScoreBody(_Strict):
  """What /score takes."""

  requests: list[Asked] = Field(
    min_length=1, max_length=MAX_ASKED, fail_fast=True
  )


class Scores(BaseModel):
  """Of each candidate, in the order of the items."""

  logits: list[float]
  probabilities: list[float]
  unknown_user: bool
  unknown_items: int


class ScoreReply(BaseModel):
  """What /score answers, in the order of the requests."""

  requests: list[Scores]


class RecommendBody(_AskedUser):
  """What /recommend takes."""

  k: int = Field(10, ge=1, le=MAX_K, strict=True)
  leave_out_had: bool = Field(True, strict=True)


class Recommended(BaseModel):
  """An item of the catalogue."""

  item: str
  logit: float


class RecommendReply(BaseModel):
  """The best items, the best first."""

  items: list[Recommended]
  unknown_user: bool


class Health(BaseModel):
  """Whether requests are taken."""

  status: str
  model: str
  version: str


class Problem(BaseModel):
  """Why a request was not answered."""

  detail: Any


_PROBLEMS: dict[int | str, dict[str, Any]] = {
  status: {'model': Problem, 'description': what}
  for status, what in (
    (400, 'the body cannot be read'),
    (408, f'the body did not come within {BODY_SECONDS:g} seconds'),
    (413, f'the body has more than {MAX_BODY_BYTES} bytes'),
    (422, 'the body is not what is asked for'),
    (429, 'too much waits: ask again'),
  )
}


@dataclasses.dataclass
class Served:
  """A model to be served.

  Attributes:
    name: of the model.
    encoder: of its data.
    score: logits [R, 1] of a batch of one candidate a row.
    last_timestamp: of its data, seconds UTC.
    has_events: users have histories in the data.
  """

  name: str
  encoder: Encoder
  score: Callable[[Batch], Any]
  last_timestamp: int
  has_events: bool


_ASK_AGAIN = {'Retry-After': '1'}


class _Metrics:
  """What /metrics tells; no label comes from a request."""

  def __init__(self):
    self.registry = CollectorRegistry()
    make = {'registry': self.registry, 'namespace': 'eain'}
    self.requests = Counter(
      'http_requests', 'Requests answered.', ['path', 'status'], **make
    )
    self.seconds = Histogram(
      'http_request_seconds',
      'From the first byte to the last.',
      ['path'],
      **make,
    )
    self.batch_rows = Histogram(
      'batch_rows',
      'Rows that were scored together.',
      buckets=[2**i for i in range(0, 17, 2)],
      **make,
    )
    self.unknown = Counter(
      'unknown',
      'Users and items that the model does not know.',
      ['what'],
      **make,
    )
    self.waiting = Gauge('waiting_rows', 'Rows not scored yet.', **make)


class Service:
  """A model behind HTTP.

  Attributes:
    app: the ASGI application.
    is_draining: no more requests are wanted: connections close after each
      answer, and /healthz says so.
    waiting: rows whose scores were asked for and are not answered.
    rankings: of the whole catalogue, under way.
    unanswered: requests that were read and are not answered.
    bytes_read: of bodies of such requests, and of those that are being read.
  """

  def __init__(self, served: Served):
    """Compiles nothing yet; see `warm_up`."""
    self._served = served
    self._scorer = ShapedScorer(served.encoder, served.score)
    self._metrics = _Metrics()
    self._items = raw_ids(served.encoder.dataset, 'item').to_list()
    self._batcher: Batcher | None = None
    self.is_draining = False
    self.waiting = self.rankings = self.unanswered = self.bytes_read = 0
    self._ranked = 0
    self._reading: set[asyncio.Timeout] = set()
    self.app = self._make_app()

  def warm_up(self) -> None:
    """Compiles all programs."""
    self._scorer.warm_up()

  @contextlib.asynccontextmanager
  async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
    self._batcher = Batcher(
      self._scorer.score,
      self._scorer.max_rows,
      self._metrics.batch_rows.observe,
    )
    self._metrics.waiting.set_function(lambda: self.waiting + self._ranked)
    yield
    self._batcher.close()

  def _make_app(self) -> FastAPI:
    app = FastAPI(
      title='eain-jax',
      version=eain_jax.__version__,
      description=f'Scores and recommendations of {self._served.name}.',
      lifespan=self._lifespan,
    )
    app.add_exception_handler(RequestValidationError, _refuse)
    app.add_middleware(_Guard, service=self)

    @app.post('/score', responses=_PROBLEMS)
    async def score(body: ScoreBody) -> ScoreReply:
      """The logit of each candidate, and its sigmoid."""
      with self._admitted(sum(len(one.items) for one in body.requests)):
        return await self._score(body)

    @app.post('/recommend', responses=_PROBLEMS)
    async def recommend(body: RecommendBody) -> RecommendReply:
      """The best items of the whole catalogue for one user, exactly."""
      if self.rankings >= MAX_RANKINGS:
        raise _too_much('too many rankings are under way: ask again')
      self.rankings += 1
      try:
        return await self._recommend(body)
      finally:
        self.rankings -= 1

    @app.get('/healthz', responses={503: {'model': Health}})
    async def healthz(response: Response) -> Health:
      """Whether requests are taken: 503 while the process ends."""
      if self.is_draining:
        response.status_code = 503
      status = 'draining' if self.is_draining else 'ok'
      return Health(
        status=status, model=self._served.name, version=eain_jax.__version__
      )

    @app.get('/metrics', response_class=Response)
    async def metrics() -> Response:
      """For Prometheus."""
      text = generate_latest(self._metrics.registry)
      return Response(text, media_type=CONTENT_TYPE_LATEST)

    return app

  def _rows(self, asked: list[_AskedUser], items: list[list[str]]) -> Rows:
    """A row for each candidate of each request; all with histories, or none.

    Raises:
      HTTPException: a context column is unknown.
    """
    known = self._served.encoder.categories
    users, flat, times = [], [], []
    context: dict[str, list[str | None]] = {name: [] for name in known}
    histories, before = [], []
    for one, candidates in zip(asked, items, strict=True):
      if unknown := one.context.keys() - known.keys():
        raise HTTPException(
          422,
          f'{min(unknown)[:100]!a} is no context of the model: '
          f'{", ".join(known) or "it has none"}',
        )
      if one.history is None and not self._served.has_events:
        raise HTTPException(
          422, 'an exported model has no events: give a history, [] for none'
        )
      timestamp = one.timestamp
      if timestamp is None:
        own = (event.timestamp for event in one.history or ())
        timestamp = max(self._served.last_timestamp, *own, 0) + 1
      events = sorted(
        (e for e in one.history or [] if e.timestamp < timestamp),
        key=lambda event: event.timestamp,
      )
      count = len(candidates)
      users += [one.user] * count
      flat += candidates
      times += [timestamp] * count
      for name, column in context.items():
        value = one.context.get(name)
        column += [category(name, value)] * count
      histories += [[e.item for e in events]] * count
      before += [[e.timestamp for e in events]] * count
    if asked[0].history is None:
      return Rows(users, flat, times, context, None, None, {})
    return Rows(users, flat, times, context, histories, before, {})

  async def _logits(self, rows: Rows) -> np.ndarray:
    """Piece by piece, so that what others ask comes in between."""
    assert self._batcher is not None
    parts = [np.zeros(0, np.float32)]
    while len(rows):
      parts.append(await self._batcher.score(rows.take(self._scorer.max_rows)))
    return np.concatenate(parts)

  @contextlib.contextmanager
  def _admitted(self, num_rows: int) -> Iterator[None]:
    """Counts rows among those that wait, all of a call at once.

    Raises:
      HTTPException: too many wait already.
    """
    # One that comes alone is taken however much it asks for.
    if self.waiting and self.waiting + num_rows > MAX_ROWS_WAITING:
      raise _too_much('too many rows wait: ask again')
    self.waiting += num_rows
    try:
      yield
    finally:
      self.waiting -= num_rows

  async def _score(self, body: ScoreBody) -> ScoreReply:
    events = sum(
      len(one.items) * (1 + len(one.history or ())) for one in body.requests
    )
    if events > MAX_EVENTS:
      raise HTTPException(
        422,
        f'items times history events come to {events}, at most {MAX_EVENTS} '
        'may be asked for at once',
      )
    # Rows of one kind at a time: with histories of their own, or without.
    kinds = [one.history is not None for one in body.requests]
    found: list[np.ndarray] = [np.zeros(0)] * len(kinds)
    for kind in set(kinds):
      chosen = [n for n, own in enumerate(kinds) if own == kind]
      asked = [body.requests[n] for n in chosen]
      rows = self._rows([*asked], [one.items for one in asked])
      logits = await self._logits(rows)
      ends = np.cumsum([len(one.items) for one in asked])[:-1]
      for n, part in zip(chosen, np.split(logits, ends), strict=True):
        found[n] = part
    encoder = self._served.encoder
    users = encoder.users.find([one.user for one in body.requests])
    replies = []
    for one, user, logits in zip(body.requests, users, found, strict=True):
      unknown_items = int((encoder.items.find(one.items) < 0).sum())
      self._metrics.unknown.labels('user').inc(int(user < 0))
      self._metrics.unknown.labels('item').inc(unknown_items)
      exact = logits.astype(np.float64)
      replies.append(
        Scores(
          logits=exact.tolist(),
          probabilities=(0.5 * (1 + np.tanh(exact / 2))).tolist(),
          unknown_user=bool(user < 0),
          unknown_items=unknown_items,
        )
      )
    return ScoreReply(requests=replies)

  async def _recommend(self, body: RecommendBody) -> RecommendReply:
    encoder = self._served.encoder
    size, count = self._scorer.max_rows, len(self._items)
    parts = []
    # A row has its history with it: so few are made at a time.
    for first in range(0, count, size):
      rows = self._rows([body], [self._items[first : first + size]])
      num_rows = len(rows)
      self._ranked += num_rows
      try:
        parts.append(await self._logits(rows))
      finally:
        self._ranked -= num_rows
    logits = np.concatenate(parts).astype(np.float64)
    left = np.ones(count, bool)
    if body.leave_out_had:
      left[await anyio.to_thread.run_sync(self._had, body)] = False
    [user] = encoder.users.find([body.user])
    self._metrics.unknown.labels('user').inc(int(user < 0))
    order = np.argsort(-logits, kind='stable')
    best = order[left[order]][: body.k]
    return RecommendReply(
      items=[
        Recommended(item=self._items[n], logit=float(logits[n])) for n in best
      ],
      unknown_user=bool(user < 0),
    )

  def _had(self, body: RecommendBody) -> np.ndarray:
    """Numbers of the items that the user had before."""
    asked = ask_rows(
      self._served.encoder, self._rows([body], [self._items[:1]])
    )
    _, item = self._served.encoder.had(asked)
    return item[item >= 0]

  @contextlib.asynccontextmanager
  async def reading(self) -> AsyncIterator[None]:
    """Bounds the time that a body takes to come.

    Raises:
      TimeoutError: it took too long, or the process ends.
    """
    async with asyncio.timeout(BODY_SECONDS) as deadline:
      self._reading.add(deadline)
      try:
        yield
      finally:
        self._reading.discard(deadline)

  def stop_reading(self) -> None:
    """Bodies that have not come by now are not waited for."""
    now = asyncio.get_running_loop().time()
    for deadline in self._reading:
      if not deadline.expired():
        deadline.reschedule(now)

  @contextlib.contextmanager
  def answering(self) -> Iterator[None]:
    """Counts a request that was read until it is answered, or nobody waits."""
    self.unanswered += 1
    try:
      yield
    except asyncio.CancelledError:
      raise  # By the end of the process: it stays unanswered.
    except BaseException:
      self.unanswered -= 1
      raise
    else:
      self.unanswered -= 1

  def observe(self, path: str, status: int, seconds: float) -> None:
    """Counts an answer."""
    self._metrics.requests.labels(path, str(status)).inc()
    self._metrics.seconds.labels(path).observe(seconds)


async def _refuse(request: Request, error: Exception) -> Response:
  """What is wrong with a body, without its values: they may be anything."""
  assert isinstance(error, RequestValidationError)
  details = [
    {
      'loc': [str(part)[:100] for part in each['loc']],
      'msg': each['msg'][:200],
      'type': each['type'],
    }
    for each in error.errors()[:20]
  ]
  return _json_response(422, details)


def _too_much(why: str) -> HTTPException:
  return HTTPException(429, why, headers=_ASK_AGAIN)


def _json_response(status: int, detail: Any) -> Response:
  # In ASCII: half of a surrogate pair has no UTF-8.
  text = json.dumps({'detail': detail})
  headers = _ASK_AGAIN if status == 429 else None
  return Response(text, status, headers, 'application/json')


@dataclasses.dataclass(frozen=True)
class _Refused:
  """Why a body is not read."""

  status: int
  why: str


@dataclasses.dataclass
class _Body:
  """What has come of a body.

  Attributes:
    parts: of it, until they are taken.
    size: in bytes.
    is_whole: all has come.
  """

  parts: list[bytes] = dataclasses.field(default_factory=list)
  size: int = 0
  is_whole: bool = False

  def take(self) -> bytes:
    whole = b''.join(self.parts)
    self.parts.clear()
    return whole


class _Gone(Exception):
  """Nobody waits for an answer any more."""


class _Guard:
  """Reads a body up to its bound, counts answers, and closes while draining.

  What nobody waits for any more is given up. An ASGI middleware.
  """

  def __init__(self, app: Any, service: Service):
    self._app, self._service = app, service

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    if scope['type'] != 'http':
      await self._app(scope, receive, send)
      return
    begin, status, body = time.perf_counter(), 0, _Body()

    async def answer(message: Any) -> None:
      nonlocal status
      if message['type'] == 'http.response.start':
        status = message['status']
        # After a body that was not read the next request cannot be found.
        if self._service.is_draining or not body.is_whole:
          headers = [*message.get('headers', ()), (b'connection', b'close')]
          message = {**message, 'headers': headers}
      await send(message)

    service = self._service
    try:
      if refused := await self._read(body, scope, receive):
        await _json_response(refused.status, refused.why)(
          scope, receive, answer
        )
        return
      with service.answering():
        await self._app_on(
          body.take(), scope, receive, answer, lambda: status > 0
        )
    except _Gone:
      status = 499  # As proxies have it: nobody waits for an answer.
    finally:
      service.bytes_read -= body.size
      path = getattr(scope.get('route'), 'path', 'other')
      seconds = time.perf_counter() - begin
      service.observe(path, status or 500, seconds)

  async def _app_on(
    self,
    body: bytes,
    scope: Any,
    receive: Any,
    send: Any,
    has_begun: Callable[[], bool],
  ) -> None:
    """Runs the application on a body that was read.

    Raises:
      _Gone: the connection ended before the answer had begun.
    """
    is_gone = asyncio.Event()
    chunks = iter([{'type': 'http.request', 'body': body}])

    async def replay() -> Any:
      for chunk in chunks:
        return chunk
      await is_gone.wait()
      return {'type': 'http.disconnect'}

    async def watch() -> None:
      while (await receive())['type'] != 'http.disconnect':
        pass
      is_gone.set()

    app = asyncio.ensure_future(self._app(scope, replay, send))
    watcher = asyncio.ensure_future(watch())
    try:
      await asyncio.wait({app, watcher}, return_when=asyncio.FIRST_COMPLETED)
      # After an answer the connection's end is no news.
      if not app.done() and not has_begun():
        raise _Gone
      await app
    finally:
      for task in (app, watcher):
        task.cancel()
      await asyncio.wait({app, watcher})

  async def _read(
    self, body: '_Body', scope: Any, receive: Any
  ) -> _Refused | None:
    """Reads into `body`, which counts among `bytes_read`; or why not.

    Raises:
      _Gone: the connection ended before it.
    """
    too_long = _Refused(413, f'the body has more than {MAX_BODY_BYTES} bytes')
    for name, value in scope['headers']:
      if name == b'content-length' and int(value) > MAX_BODY_BYTES:
        return too_long
    service, more = self._service, True
    try:
      async with service.reading():
        while more:
          message = await receive()
          if message['type'] == 'http.disconnect':
            raise _Gone
          part, more = message.get('body', b''), message.get('more_body', False)
          if body.size + len(part) > MAX_BODY_BYTES:
            return too_long
          # What a body becomes takes many times its bytes.
          if service.bytes_read + len(part) > MAX_BYTES_READ:
            return _Refused(429, 'too much waits: ask again')
          body.parts.append(part)
          body.size += len(part)
          service.bytes_read += len(part)
    except TimeoutError:
      return _Refused(408, 'the body did not come in time')
    body.is_whole = True
    return None
