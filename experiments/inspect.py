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

from eain_jax.data.log_values import parse_columns
from eain_jax.errors import InputError
from eain_jax.reporting.inside_plots import inspection_figure
from eain_jax.reporting.inspection_tables import inspection_tables
from eain_jax.reporting.plots import save_figure
from eain_jax.serving.inspection import inspect
from eain_jax.serving.model import LoadedModel
from experiments import cli, serving_flags

USER = flags.DEFINE_string('user', None, 'Raw id of a user.', required=True)
ITEM = flags.DEFINE_string(
  'item', None, 'Raw id of an item; unset: the one that is recommended.'
)
CONTEXT = flags.DEFINE_list(
  'context', [], "The log's own context columns, as device=phone."
)
NEAREST = flags.DEFINE_integer(
  'nearest', 5, 'Items near to the item.', lower_bound=0
)
OUTPUT = flags.DEFINE_string('output', None, 'A PNG of it.')
serving_flags.define_run('last', 'When it is asked, the history ends before:')


def main() -> None:
  if OUTPUT.value and Path(OUTPUT.value).suffix != '.png':
    raise cli.FlagError(f'--output={OUTPUT.value} must end in .png')
  model = LoadedModel(serving_flags.opened_run())
  time = serving_flags.time_of(model.run.dataset)
  assert time is not None  # It has a default.
  user, times = [USER.value], [time]
  given = parse_columns(tuple(CONTEXT.value), '--context')
  context = {name: [value] for name, value in given.items()}
  item, how = ITEM.value, ''
  if item is None:
    [best] = model.recommend(user, 1, times, context)
    if not best:
      raise InputError(f'{USER.value} had every item: name one with --item')
    item, how = best[0][0], ', the best of all that the user had not'
  asked = model.ask(user, [item], times, context)
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
