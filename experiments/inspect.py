"""What a trained model makes of a user and an item.

  python -m experiments.inspect --work_dir=W --user=U [--item=I] [--time=..] \\
      [--context=device=phone] [--output=F.png]

The history with its attention, SE gates, masks of pairs, and the items whose
embeddings are nearest; without --item it is the item that is recommended.
"""

from pathlib import Path

import numpy as np
import rich
from absl import flags

from eain_jax.data.log_values import Refused, parse_columns
from eain_jax.errors import InputError
from eain_jax.reporting.inside_plots import inspection_figure
from eain_jax.reporting.inspection_tables import inspection_tables
from eain_jax.reporting.plots import save_figure
from eain_jax.serving.candidates import seconds
from eain_jax.serving.inspection import inspect
from eain_jax.serving.model import LoadedModel
from eain_jax.training.restore import open_run
from experiments import cli

WORK_DIR = flags.DEFINE_string(
  'work_dir', None, 'A run that train wrote.', required=True
)
DATASET_DIR = flags.DEFINE_string(
  'dataset_dir', None, 'Its dataset, where that has moved.'
)
USER = flags.DEFINE_string('user', None, 'Raw id of a user.', required=True)
ITEM = flags.DEFINE_string(
  'item', None, 'Raw id of an item; unset: the one that is recommended.'
)
TIME = flags.DEFINE_string(
  'time',
  'last',
  'When it is asked, seconds or an ISO 8601 date: the history ends before; '
  "last: the second after the dataset's last event.",
)
CONTEXT = flags.DEFINE_list(
  'context', [], "The log's own context columns, as device=phone."
)
NEAREST = flags.DEFINE_integer(
  'nearest', 5, 'Items near to the item.', lower_bound=0
)
OUTPUT = flags.DEFINE_string('output', None, 'A PNG of it.')
cli.define_verify()


def time_of(model: LoadedModel) -> int:
  """Seconds of the flag."""
  if TIME.value == 'last':
    return model.run.dataset.manifest['last_timestamp'] + 1
  try:
    return seconds('time', TIME.value)
  except Refused as error:
    raise cli.FlagError(f'--time: {error}') from error


def main() -> None:
  if OUTPUT.value and Path(OUTPUT.value).suffix != '.png':
    raise cli.FlagError(f'--output={OUTPUT.value} must end in .png')
  model = LoadedModel(
    open_run(WORK_DIR.value, DATASET_DIR.value, cli.FLAGS.verify)
  )
  time, user = [time_of(model)], [USER.value]
  context = {n: [v] for n, v in parse_columns(tuple(CONTEXT.value)).items()}
  item, how = ITEM.value, ''
  if item is None:
    [best] = model.recommend(user, 1, time, context)
    if not best:
      raise InputError(f'{USER.value} had every item: name one with --item')
    item, how = best[0][0], ', the best of all that the user had not'
  asked = model.ask(user, [item], time, context)
  if asked.item[0, 0] < 0:
    raise InputError(f'--item={item} is not in {model.run.dataset.path}')
  if asked.user[0] < 0:
    how += '; the user is unknown'
  found = inspect(model.run, model.encoder, asked, NEAREST.value)
  probability = 1 / (1 + np.exp(-found.logit))
  name = model.run.settings['model']
  print(
    f'{name}: user {USER.value}, item {item}{how}: logit {found.logit:.4f}, '
    f'probability {probability:.4f}'
  )
  rich.print(inspection_tables(found))
  if OUTPUT.value:
    figure = inspection_figure(found)
    if figure is None:
      raise InputError('the model has no attention, gates or masks to draw')
    save_figure(figure, Path(OUTPUT.value))
    print(f'picture: {OUTPUT.value}')


if __name__ == '__main__':
  cli.run(main)
