"""Serves a trained model over HTTP.

  python -m experiments.serve --work_dir=W | --export=DIR [--port=8000]

POST /score and /recommend; GET /healthz, /metrics (Prometheus), /docs
(OpenAPI). It answers once all programs are compiled. On SIGTERM or Ctrl-C
/healthz says so for --drain_seconds, what was accepted is answered, and it ends
with 0.
"""

import socket
from typing import Any

from absl import flags

from eain_jax.errors import InputError
from eain_jax.reporting.progress import console
from eain_jax.serving.encoder import Encoder
from eain_jax.serving.export import flat_batch
from eain_jax.serving.exported import open_export
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
KEEP_ALIVE_SECONDS = flags.DEFINE_integer(
  'keep_alive_seconds',
  75,
  'How long an idle connection is kept: longer than a proxy in front keeps it.',
  lower_bound=1,
)
cli.define_verify()


def served() -> dict[str, Any]:
  """What is to be served, as the fields of `service.Served`."""
  if (WORK_DIR.value is None) == (EXPORT.value is None):
    raise cli.FlagError('name --work_dir or --export, one of the two')
  if EXPORT.value is not None:
    for name in ('dataset_dir', 'verify'):
      if cli.FLAGS[name].present:
        raise cli.FlagError(f'--{name} goes with --work_dir')
    model = open_export(EXPORT.value)
    return {
      'name': model.facts['model'],
      'encoder': model.encoder,
      'score': lambda batch: model.score_batch(flat_batch(batch)),
      'last_timestamp': model.facts['dataset']['last_timestamp'],
      'has_events': False,
    }
  run = open_run(WORK_DIR.value or '', DATASET_DIR.value, cli.FLAGS.verify)
  step = run.score_step()
  return {
    'name': run.settings['model'],
    'encoder': Encoder(run.dataset),
    'score': lambda batch: step(run.params, run.stats, batch),
    'last_timestamp': run.dataset.manifest['last_timestamp'],
    'has_events': True,
  }


def listener() -> socket.socket:
  """A socket that listens where the flags say, before anything is compiled.

  Raises:
    InputError: it cannot.
  """
  try:
    found = socket.getaddrinfo(
      HOST.value, PORT.value, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    # A name may be both: most who ask for localhost mean 127.0.0.1.
    found.sort(key=lambda each: each[0] != socket.AF_INET)
    family, *_, address = found[0]
    is_any = HOST.value == '::' and socket.has_dualstack_ipv6()
    own = socket.create_server(
      address, family=family, backlog=1024, dualstack_ipv6=is_any
    )
  except (OSError, UnicodeError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise InputError(
      f'cannot listen at {HOST.value}:{PORT.value}: {reason}'
    ) from error
  # What it accepts inherits it. Else an answer waits 40 ms for the peer's
  # acknowledgement: asyncio sets it on sockets of a stated protocol alone.
  own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
  return own


def main() -> None:
  # Here, for the rest of the project does without a server.
  try:
    from eain_jax.serving.draining import serve
    from eain_jax.serving.service import Served, Service
  except ModuleNotFoundError as error:
    raise InputError(
      f"needs {error.name}: pip install -e '.[serve]'"
    ) from error
  model = Served(**served())
  with listener() as own:
    service = Service(model)
    with console.status('compiling'):
      service.warm_up()
    host, port = own.getsockname()[:2]
    host = f'[{host}]' if ':' in host else host
    print(f'serving {model.name}: http://{host}:{port}/docs', flush=True)
    left = serve(
      service,
      own,
      DRAIN_SECONDS.value,
      ANSWER_SECONDS.value,
      KEEP_ALIVE_SECONDS.value,
    )
  if left:
    raise InputError(
      f'{left} requests were not answered within '
      f'--answer_seconds={ANSWER_SECONDS.value}'
    )
  print('drained: all that was accepted is answered')


if __name__ == '__main__':
  cli.run(main)
