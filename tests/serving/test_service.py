"""The HTTP service: answers against the model, and what it refuses."""

import asyncio
import json
import random
import threading

import anyio.to_thread
import hypothesis
import numpy as np
import pytest
import schemathesis
from fastapi.testclient import TestClient
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
  content_type_conformance,
  negative_data_rejection,
  response_schema_conformance,
  status_code_conformance,
)

import eain_jax
from eain_jax.config import DinConfig, TrainConfig
from eain_jax.serving import service as service_module
from eain_jax.serving.export import export_run, flat_batch
from eain_jax.serving.exported import open_export
from eain_jax.serving.service import MAX_BODY_BYTES, Served, Service
from eain_jax.training import loop


@pytest.fixture(scope='module')
def model(dataset, tmp_path_factory):
  folder = tmp_path_factory.mktemp('served') / 'run'
  config = DinConfig(embedding_dim=4, mlp=(8,), attention=(6,))
  train = TrainConfig(epochs=1, batch_size=512)
  loop.fit(dataset, 'din', config, train, folder)
  return eain_jax.load_model(folder)


@pytest.fixture(scope='module')
def service(model):
  run = model.run
  step = run.score_step()
  return Service(
    Served(
      'din',
      model.encoder,
      lambda batch: step(run.params, run.stats, batch),
      run.dataset.manifest['last_timestamp'],
      has_events=True,
    )
  )


@pytest.fixture(scope='module')
def client(service):
  with TestClient(service.app, raise_server_exceptions=False) as client:
    yield client


@pytest.fixture(scope='module')
def of_export(model, tmp_path_factory):
  folder = tmp_path_factory.mktemp('served') / 'export'
  export_run(model.run, folder)
  exported = open_export(folder)
  service = Service(
    Served(
      'din',
      exported.encoder,
      lambda batch: exported.score_batch(flat_batch(batch)),
      exported.facts['dataset']['last_timestamp'],
      has_events=False,
    )
  )
  with TestClient(service.app, raise_server_exceptions=False) as client:
    yield client


def ask(client, requests):
  answer = client.post('/score', json={'requests': requests})
  assert answer.status_code == 200, answer.text
  return answer.json()['requests']


@pytest.mark.parametrize('size', [1, 7, 1024])
def test_scores_are_those_of_the_model(client, model, dataset, size):
  rng = np.random.default_rng(size)
  users = [f'u{n:03}' for n in rng.integers(0, 220, size)]
  items = [f'i{n:02}' for n in rng.integers(0, 90, size)]
  times = rng.integers(1_400_000_000, 1_402_000_000, size).tolist()
  device = [['phone', None][n % 2] for n in range(size)]
  expected = model.score(users, items, times, {'device': device})
  requests = [
    {'user': u, 'items': [i], 'timestamp': t, 'context': {'device': d}}
    for u, i, t, d in zip(users, items, times, device, strict=True)
  ]
  found = [
    reply['logits'][0]
    for first in range(0, size, 256)
    for reply in ask(client, requests[first : first + 256])
  ]
  np.testing.assert_allclose(found, expected, atol=1e-6)
  unknown = [r['unknown_user'] for r in ask(client, requests[:256])]
  assert unknown == [u >= 'u200' for u in users[:256]]


def test_candidates_share_a_request_and_have_probabilities(client, model):
  items = [f'i{n:02}' for n in range(80)] + ['nothing']
  [reply] = ask(client, [{'user': 'u007', 'items': items}])
  expected = model.score(['u007'] * 81, items)
  np.testing.assert_allclose(reply['logits'], expected, atol=1e-6)
  np.testing.assert_allclose(
    reply['probabilities'], 1 / (1 + np.exp(-expected.astype(float))), atol=1e-6
  )
  assert (reply['unknown_user'], reply['unknown_items']) == (False, 1)


def test_an_export_is_served_with_the_same_scores(client, of_export):
  history = [
    {'item': f'i{n:02}', 'timestamp': 1_300_000_000 + n} for n in range(9)
  ]
  late = {'item': 'i40', 'timestamp': 1_400_000_000}
  requests = [
    {
      'user': f'u{n:03}',
      'items': ['i03', 'i77'],
      'timestamp': 1_400_000_000,
      # In any order, and what is not before the time does not count.
      'history': [late, *history[:n][::-1]],
    }
    for n in range(9)
  ]
  live, exported = ask(client, requests), ask(of_export, requests)
  for one, other in zip(live, exported, strict=True):
    np.testing.assert_allclose(one['logits'], other['logits'], atol=1e-6)
  without = [{**r, 'history': r['history'][1:]} for r in requests]
  for one, other in zip(live, ask(client, without), strict=True):
    np.testing.assert_allclose(one['logits'], other['logits'], atol=1e-6)
  assert live[3]['logits'] != live[4]['logits']


def test_an_export_needs_histories(of_export):
  body = {'requests': [{'user': 'u001', 'items': ['i05']}]}
  answer = of_export.post('/score', json=body)
  assert answer.status_code == 422
  assert 'give a history, [] for none' in answer.json()['detail']
  body['requests'][0]['history'] = []
  assert of_export.post('/score', json=body).status_code == 200


def test_too_much_at_once_is_refused(service, client, monkeypatch):
  one = {'user': 'u001', 'items': ['i05']}
  monkeypatch.setattr(service, 'waiting', 65_536)
  answer = client.post('/score', json={'requests': [one]})
  assert answer.status_code == 429
  assert answer.headers['retry-after'] == '1'
  monkeypatch.setattr(service, 'waiting', 0)
  monkeypatch.setattr(service, 'rankings', 8)
  answer = client.post('/recommend', json={'user': 'u001'})
  assert answer.status_code == 429
  assert answer.headers['retry-after'] == '1'
  monkeypatch.setattr(service, 'rankings', 0)
  monkeypatch.setattr(service, 'bytes_read', 32 << 20)
  answer = client.post('/score', json={'requests': [one]})
  assert answer.status_code == 429
  assert answer.headers['retry-after'] == '1'
  monkeypatch.setattr(service, 'bytes_read', 0)
  ask(client, [one])
  assert (service.waiting, service.unanswered, service.bytes_read) == (0, 0, 0)


def test_a_ranking_has_a_piece_waiting_and_shuts_nobody_out(
  service, client, monkeypatch
):
  """Of 80 items eight wait at a time, beside any that are asked for."""
  with monkeypatch.context() as patch:
    call = Recommendation(service, patch)
    seen = []

    async def leave():
      await call.has_begun()
      seen.append((service.waiting, service._ranked, service.rankings))
      # One that comes alone is taken however much it asks for.
      with service._admitted(1 << 18):
        pass

    client.portal.call(call.run, leave)
    call.may_end.set()
  assert seen == [(0, 8, 1)]
  ask(client, [{'user': 'u001', 'items': ['i05']}])
  assert (service.waiting, service._ranked, service.rankings) == (0, 0, 0)


def post_to(path):
  """The scope of a POST of JSON, as ASGI has it."""
  return {
    'type': 'http',
    'method': 'POST',
    'path': path,
    'query_string': b'',
    'headers': [(b'content-type', b'application/json')],
  }


async def body_in_pieces(service, pieces, then):
  """What /score answers to a body that comes so; `then` waits for the rest."""
  chunks, sent = list(pieces), []

  async def receive():
    if chunks:
      part = chunks.pop(0)
      return {'type': 'http.request', 'body': part, 'more_body': True}
    await then()
    return {'type': 'http.disconnect'}

  async def send(message):
    sent.append(message)

  await service.app(post_to('/score'), receive, send)
  return sent[0]['status'] if sent else None


def test_a_body_that_does_not_come_is_not_waited_for(
  service, client, monkeypatch
):
  never = lambda: asyncio.Event().wait()
  monkeypatch.setattr(service_module, 'BODY_SECONDS', 0.05)
  status = client.portal.call(body_in_pieces, service, [b'{'], never)
  assert status == 408
  monkeypatch.undo()
  counted = []

  async def end():
    """As the process does at its end."""
    counted.append(service.bytes_read)
    service.stop_reading()
    await never()

  status = client.portal.call(body_in_pieces, service, [b'{', b'"'], end)
  assert status == 408
  # What has come so far counts, and goes with the body.
  assert counted == [2]
  assert counts(service) == (0, 0, 0)


def test_bodies_that_come_slowly_count_together(service, client, monkeypatch):
  monkeypatch.setattr(service_module, 'MAX_BYTES_READ', 10)
  monkeypatch.setattr(service, 'bytes_read', 6)
  never = lambda: asyncio.Event().wait()
  pieces = [b'{', b'"req', b'uests"']
  assert client.portal.call(body_in_pieces, service, pieces, never) == 429
  assert service.bytes_read == 6


def test_a_fresh_history_needs_no_time(client, model, dataset):
  """Events after the data's last one are before a request without a time."""
  last = dataset.manifest['last_timestamp']
  events = [{'item': 'i02', 'timestamp': last + 500}]
  one = {'user': 'u001', 'items': ['i05'], 'history': events}
  stated = {**one, 'timestamp': last + 501}
  empty = {**one, 'history': []}
  [found, expected, without] = ask(client, [one, stated, empty])
  assert found == expected
  assert found['logits'] != without['logits']


def test_a_failure_is_counted_and_hurts_nobody_else(
  service, client, monkeypatch
):
  fails = lambda rows: 1 / 0
  monkeypatch.setattr(service._batcher, '_score', fails)
  body = {'requests': [{'user': 'u001', 'items': ['i05']}]}
  assert client.post('/score', json=body).status_code == 500
  monkeypatch.undo()
  ask(client, body['requests'])
  text = client.get('/metrics').text
  assert 'http_requests_total{path="/score",status="500"} 1.0' in text
  assert service.unanswered == 0


class Recommendation:
  """A call of /recommend whose scores wait until they are let go.

  Attributes:
    begun: the first piece is at the scorer.
    may_end: lets the pieces go.
    sizes: rows of the pieces.
    sent: what was answered.
    status: that was counted, or None.
  """

  def __init__(self, service, patch):
    self.begun, self.may_end = threading.Event(), threading.Event()
    self.sizes, self.sent, self.status = [], [], None
    self._app, observe = service.app, service.observe

    def score(rows):
      self.sizes.append(len(rows))
      self.begun.set()
      assert self.may_end.wait(30)
      return np.zeros(len(rows), np.float32)

    def count(path, status, seconds):
      self.status = status
      observe(path, status, seconds)

    patch.setattr(service._batcher, '_score', score)
    patch.setattr(service._scorer, 'max_rows', 8)
    patch.setattr(service, 'observe', count)

  async def has_begun(self):
    assert await anyio.to_thread.run_sync(self.begun.wait, 30)

  async def run(self, disconnect):
    """Calls the application; `disconnect` returns when the caller leaves."""
    body = [{'type': 'http.request', 'body': b'{"user": "u001"}'}]

    async def receive():
      if body:
        return body.pop()
      await disconnect()
      return {'type': 'http.disconnect'}

    async def send(message):
      self.sent.append(message['type'])
      await asyncio.sleep(0)

    await self._app(post_to('/recommend'), receive, send)


def counts(service):
  return service.waiting, service.unanswered, service.bytes_read


def test_what_nobody_waits_for_is_given_up(service, client, monkeypatch):
  """A caller who leaves at the first of ten pieces costs no second one."""
  with monkeypatch.context() as patch:
    call = Recommendation(service, patch)
    client.portal.call(call.run, call.has_begun)
    assert counts(service) == (0, 0, 0)
    call.may_end.set()
  ask(client, [{'user': 'u001', 'items': ['i05']}])
  assert (call.sizes, call.sent, call.status) == ([8], [], 499)


def test_a_caller_who_leaves_at_the_answer_has_it(service, client, monkeypatch):
  with monkeypatch.context() as patch:
    call = Recommendation(service, patch)
    call.may_end.set()

    async def when_it_begins():
      while not call.sent:
        await asyncio.sleep(0)

    client.portal.call(call.run, when_it_begins)
  assert sum(call.sizes) == 80
  assert call.sent == ['http.response.start', 'http.response.body']
  assert call.status == 200
  assert counts(service) == (0, 0, 0)


def test_what_the_end_of_the_process_cuts_is_unanswered(
  service, client, monkeypatch
):
  with monkeypatch.context() as patch:
    patch.setattr(service, 'unanswered', 0)
    call = Recommendation(service, patch)

    async def cut():
      task = asyncio.ensure_future(call.run(asyncio.Event().wait))
      await call.has_begun()
      task.cancel()
      await asyncio.wait({task})
      assert task.cancelled()

    client.portal.call(cut)
    assert counts(service) == (0, 1, 0)
    call.may_end.set()
  ask(client, [{'user': 'u001', 'items': ['i05']}])
  assert call.sizes == [8]


def test_requests_with_and_without_histories_keep_their_places(client, model):
  given = {'user': 'u001', 'items': ['i05'], 'history': []}
  plain = {'user': 'u001', 'items': ['i05', 'i06']}
  both = ask(client, [plain, given, plain])
  expected = model.score(['u001', 'u001'], ['i05', 'i06'])
  assert [len(reply['logits']) for reply in both] == [2, 1, 2]
  for place in (0, 2):
    np.testing.assert_allclose(both[place]['logits'], expected, atol=1e-6)
  assert abs(both[1]['logits'][0] - expected[0]) > 1e-6


@pytest.mark.parametrize('leave_out', [True, False])
def test_recommendations_are_the_models(client, model, leave_out):
  body = {'user': 'u003', 'k': 80, 'leave_out_had': leave_out}
  answer = client.post('/recommend', json=body)
  assert answer.status_code == 200
  [expected] = model.recommend(['u003'], 80, leave_out_had=leave_out)
  found = answer.json()['items']
  assert [one['item'] for one in found] == [item for item, _ in expected]
  np.testing.assert_allclose(
    [one['logit'] for one in found], [x for _, x in expected], atol=1e-6
  )


def test_health_and_metrics(service, client):
  answer = client.get('/healthz')
  assert (answer.status_code, answer.json()['status']) == (200, 'ok')
  client.get('/nowhere/at/all')
  text = client.get('/metrics').text
  assert 'eain_http_requests_total{path="/healthz",status="200"}' in text
  assert 'nowhere' not in text
  service.is_draining = True
  try:
    answer = client.get('/healthz')
    assert (answer.status_code, answer.json()['status']) == (503, 'draining')
    assert answer.headers['connection'] == 'close'
    ask(client, [{'user': 'u', 'items': ['i']}])
  finally:
    service.is_draining = False


REFUSED = {
  'empty': b'',
  'no JSON': b'{"requests": ',
  'no UTF-8': b'\xff\xfe{}',
  'a list': b'[]',
  'deep': b'[' * 100_000,
  'a number too long': b'{"requests": ' + b'9' * 10_000 + b'}',
  'no requests': b'{"requests": []}',
  'NaN': b'{"requests": [{"user": "u", "items": ["i"], "timestamp": NaN}]}',
  'infinite': b'{"requests": [{"user": 1e999, "items": ["i"]}]}',
  'half a pair': b'{"requests": [{"user": "\\ud800", "items": ["i"]}]}',
  'half a pair as a key': b'{"\\ud800": 1}',
  'a blank user': b'{"requests": [{"user": " ", "items": ["i"]}]}',
  'no items': b'{"requests": [{"user": "u", "items": []}]}',
  'time as text': b'{"requests":[{"user":"u","items":["i"],"timestamp":"1"}]}',
  'time beyond': b'{"requests":[{"user":"u","items":["i"],"timestamp":1e15}]}',
  'an unknown key': b'{"requests": [{"user": "u", "items": ["i"], "a": 1}]}',
  'no such context': b'{"requests":[{"user":"u","items":["i"],'
  b'"context":{"\\ud800":"b"}}]}',
  'half a pair as a value': b'{"requests":[{"user":"u","items":["i"],'
  b'"context":{"device":"\\ud800"}}]}',
  'NUL in a context': b'{"requests":[{"user":"u","items":["i"],'
  b'"context":{"device":"a\\u0000"}}]}',
  'a history without times': b'{"requests":[{"user":"u","items":["i"],'
  b'"history":[{"item":"i"}]}]}',
  'too many items': json.dumps(
    {'requests': [{'user': 'u', 'items': ['i'] * 1025}]}
  ).encode(),
  'too many requests': json.dumps(
    {'requests': [{'user': 'u', 'items': ['i']}] * 257}
  ).encode(),
  'a million empty events': json.dumps(
    {'requests': [{'user': 'u', 'items': ['i'], 'history': [{}] * 900}] * 256}
  ).encode(),
  'many items of no kind': json.dumps(
    {'requests': [{'user': 'u', 'items': [1] * 1024}] * 256}
  ).encode(),
  'many keys': json.dumps({str(n): 1 for n in range(60_000)}).encode(),
  'many context keys': json.dumps(
    {
      'requests': [
        {
          'user': 'u',
          'items': ['i'],
          'context': {str(n): '' for n in range(99)},
        }
      ]
    }
  ).encode(),
  'a long key': json.dumps({'k' * 1_000_000: 1}).encode(),
  'too many events': json.dumps(
    {
      'requests': [
        {
          'user': 'u',
          'items': ['i'] * 1000,
          'history': [{'item': 'i', 'timestamp': 1}] * 300,
        }
      ]
    }
  ).encode(),
  'too long an id': json.dumps(
    {'requests': [{'user': 'u' * 4097, 'items': ['i']}]}
  ).encode(),
}


@pytest.mark.parametrize('name', list(REFUSED))
def test_what_cannot_be_is_refused(client, name):
  headers = {'content-type': 'application/json'}
  answer = client.post('/score', content=REFUSED[name], headers=headers)
  assert answer.status_code in (400, 422), answer.text
  assert answer.json()['detail']
  assert len(answer.content) < 10_000


@pytest.mark.parametrize('is_chunked', [False, True])
def test_a_body_beyond_the_bound_is_refused(client, is_chunked):
  body = b' ' * (MAX_BODY_BYTES + 1)
  chunks = iter([body[:70_000], body[70_000:]])
  answer = client.post('/score', content=chunks if is_chunked else body)
  assert answer.status_code == 413
  assert answer.headers['connection'] == 'close'


def test_a_valid_request_beside_a_thousand_broken_ones(client):
  valid = {'user': 'u005', 'items': ['i01', 'i02']}
  [before] = ask(client, [valid])
  rng = random.Random(5)
  whole = json.dumps({'requests': [{**valid, 'context': {'device': 'phone'}}]})
  headers = {'content-type': 'application/json'}
  codes = set()
  for _ in range(1000):
    body = bytearray(whole.encode())
    for _ in range(rng.randint(1, 6)):
      place = rng.randrange(len(body))
      body[place : place + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 3))
    path = rng.choice(['/score', '/recommend'])
    answer = client.post(path, content=bytes(body), headers=headers)
    codes.add(answer.status_code)
  assert codes <= {200, 400, 422}
  assert {400, 422} <= codes
  assert ask(client, [valid]) == [before]


@pytest.mark.parametrize('mode', list(GenerationMode))
def test_the_service_is_as_its_openapi_says(service, mode):
  schema = schemathesis.openapi.from_asgi('/openapi.json', service.app)
  checks = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
  ]
  paths = []
  for found in schema.get_all_operations():
    operation = found.ok()
    paths.append(operation.path)
    if mode is GenerationMode.NEGATIVE and operation.method == 'get':
      continue  # They take nothing that could be wrong.

    @hypothesis.settings(
      max_examples=100,
      deadline=None,
      database=None,
      derandomize=True,
      suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def conforms(case):
      case.call_and_validate(checks=checks)

    conforms()
  assert {'/score', '/recommend', '/healthz', '/metrics'} <= set(paths)
