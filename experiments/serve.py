"""Serves a trained model over HTTP.

  python -m experiments.serve --work_dir=W | --export=DIR [--port=8000]

POST /score and /recommend; GET /healthz, /metrics (Prometheus), /docs
(OpenAPI). It answers once all programs are compiled. On SIGTERM or Ctrl-C
/healthz says so for --drain_seconds, what was accepted is answered, and it ends
with 0.
"""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator

import uvicorn
from absl import flags

from eain_jax.errors import InputError
from eain_jax.reporting.console import console
from eain_jax.serving.encoder import Encoder
from eain_jax.serving.export import flat_batch
from eain_jax.serving.exported import open_export
from eain_jax.serving.service import Served, Service
from eain_jax.stopping import SIGNALS, stop_signals
from eain_jax.training.restore import open_run
from experiments import cli

WORK_DIR = flags.DEFINE_string(
  'work_dir', None, 'A run that train wrote; or name --export.'
)
EXPORT = flags.DEFINE_string(
  'export',
  None,
  'A folder that export wrote. It has no events: requests bring histories.',
)
DATASET_DIR = flags.DEFINE_string(
  'dataset_dir', None, "The run's dataset, where that has moved."
)
HOST = flags.DEFINE_string('host', '127.0.0.1', 'Address to listen at.')
PORT = flags.DEFINE_integer(
  'port', 8000, 'Port to listen at; 0: any free one.', 0, 65_535
)
DRAIN_SECONDS = flags.DEFINE_float(
  'drain_seconds',
  2.0,
  'How long it still takes requests after SIGTERM, so that whoever sends them '
  'can hear of it.',
  lower_bound=0.0,
)
ANSWER_SECONDS = flags.DEFINE_integer(
  'answer_seconds',
  30,
  'How long it may answer after that what it has accepted.',
  lower_bound=1,
)
cli.define_verify()


class Server(uvicorn.Server):
  """Drains before it shuts down, and leaves the process to its caller."""

  def __init__(self, config: uvicorn.Config, service: Service):
    super().__init__(config)
    self._service = service

  @contextlib.contextmanager
  def capture_signals(self) -> Iterator[None]:
    """In place of uvicorn's, which ends at once and raises them again."""
    before = {number: signal.signal(number, self._drain) for number in SIGNALS}
    try:
      yield
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)

  def _drain(self, *_) -> None:
    if self._service.is_draining:
      self.should_exit = True
      return
    self._service.is_draining = True
    loop = asyncio.get_event_loop()
    loop.call_soon_threadsafe(
      lambda: loop.call_later(DRAIN_SECONDS.value, self._exit)
    )

  def _exit(self) -> None:
    self.should_exit = True


def served() -> Served:
  """The model of the flags."""
  if (WORK_DIR.value is None) == (EXPORT.value is None):
    raise cli.FlagError('name --work_dir or --export, one of the two')
  if EXPORT.value is not None:
    model = open_export(EXPORT.value)
    return Served(
      model.facts['model'],
      model.encoder,
      lambda batch: model.score_batch(flat_batch(batch)),
      model.facts['dataset']['last_timestamp'],
      has_events=False,
    )
  run = open_run(WORK_DIR.value or '', DATASET_DIR.value, cli.FLAGS.verify)
  step = run.score_step()
  return Served(
    run.settings['model'],
    Encoder(run.dataset),
    lambda batch: step(run.params, run.stats, batch),
    run.dataset.manifest['last_timestamp'],
    has_events=True,
  )


def listener() -> socket.socket:
  """A socket that listens where the flags say, before anything is compiled.

  Raises:
    InputError: it cannot.
  """
  try:
    return socket.create_server((HOST.value, PORT.value), backlog=1024)
  except OSError as error:
    raise InputError(
      f'cannot listen at {HOST.value}:{PORT.value}: {error.strerror or error}'
    ) from error


def main() -> None:
  model = served()
  with listener() as own, stop_signals() as stop, stop.may_end():
    service = Service(model)
    with console.status('compiling'):
      service.warm_up()
    config = uvicorn.Config(
      service.app,
      log_level='warning',
      access_log=False,
      timeout_graceful_shutdown=ANSWER_SECONDS.value,
      lifespan='on',
      h11_max_incomplete_event_size=1 << 16,
    )
    host, port = own.getsockname()[:2]
    print(f'serving {model.name}: http://{host}:{port}/docs', flush=True)
    # The server hears of signals by itself.
    stop.can_end = False
    asyncio.run(Server(config, service).serve([own]))
  print('drained: all that was accepted is answered')


if __name__ == '__main__':
  cli.run(main)
