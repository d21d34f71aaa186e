"""Ranks the whole catalogue for each user with a trained model, exactly.

  python -m experiments.recommend --work_dir=W --output=F [--users=F] \\
      [--k=10] [--time=..] [--noleave_out_had]

Without --users it is for all users of the dataset. A command that was
interrupted goes on.
"""

from pathlib import Path

from absl import flags

from eain_jax.data.log_values import parse_columns
from eain_jax.reporting.progress import CountDisplay
from eain_jax.serving.candidates import CandidateFile
from eain_jax.serving.encoder import Encoder
from eain_jax.serving.recommend_file import recommend_file
from eain_jax.serving.recommender import Recommender
from eain_jax.training.step import make_score_step
from experiments import cli, serving_flags

USERS = flags.DEFINE_string(
  'users',
  None,
  'Users, a row each, in any format that --input of score takes; unset: all of '
  'the dataset.',
)
OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'File of items, .csv, .tsv, .jsonl or .parquet: user (of --users timestamp, '
  'too, if it is named, and --keep), rank from 1, recommended, score, the '
  "model's logit, and probability, its sigmoid.",
  required=True,
)
K = flags.DEFINE_integer('k', 10, 'Items a user.', lower_bound=1)
LEAVE_OUT_HAD = flags.DEFINE_bool(
  'leave_out_had', True, 'Leave out the items that the user had before.'
)
BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 8_192, 'Scores that are computed at once.', lower_bound=1
)
serving_flags.define_asking(
  '--users; without timestamp=.. and --time all are asked for at last'
)


def main() -> None:
  output = Path(OUTPUT.value)
  serving_flags.check_output(output, USERS.value)
  if not USERS.value:
    for name in ('columns', 'keep'):
      if cli.FLAGS[name].present:
        raise cli.FlagError(f'--{name} goes with --users')
  run = serving_flags.opened_run()
  named = parse_columns(tuple(cli.FLAGS.columns))
  if 'item' in named:
    raise cli.FlagError('--columns names an item, but users are asked of')
  # A context that is not named is unknown.
  columns = {
    name: column
    for name, column in serving_flags.columns_of(run.dataset).items()
    if name in named or name in ('user', 'timestamp')
  }
  time = serving_flags.time_of(run.dataset)
  if time is None and 'timestamp' not in named:
    time = run.dataset.manifest['last_timestamp'] + 1
  file = None
  if USERS.value:
    kept = ['user', *([] if time is not None else ['timestamp'])]
    file = CandidateFile(
      USERS.value,
      columns,
      serving_flags.kept_columns(columns, kept),
      serving_flags.reading(),
      time,
    )
  encoder = Encoder(run.dataset)
  k = min(K.value, run.dataset.num_items)
  recommender = Recommender(
    encoder,
    make_score_step(run.model, run.dataset.features),
    run.params,
    run.stats,
    k,
    LEAVE_OUT_HAD.value,
    BATCH_SIZE.value,
  )
  plan = serving_flags.plan_of(
    run,
    columns=columns if file else None,
    time=time,
    k=k,
    leave_out_had=LEAVE_OUT_HAD.value,
    batch_size=BATCH_SIZE.value,
  )
  with CountDisplay('recommend') as display:
    found = recommend_file(
      encoder, recommender, file, time, output, plan, display
    )
  print(cli.describe(found['counts']))
  print(f'recommendations: {output}')


if __name__ == '__main__':
  cli.run(main)
