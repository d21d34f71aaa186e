"""Scores a file of candidates with a trained model.

  python -m experiments.score --work_dir=W --input=F --output=F \\
      [--columns=user=..,item=..,timestamp=..] [--keep=..] [--time=..]

The input has a row a candidate: raw ids of a user and an item as the source of
the training had them, a time, and the log's own context columns. Scores come in
the order of the input. A command that was interrupted goes on.
"""

from pathlib import Path

from absl import flags

from eain_jax.reporting.progress import CountDisplay
from eain_jax.serving.candidates import CandidateFile
from eain_jax.serving.encoder import Encoder
from eain_jax.serving.score_file import score_file
from eain_jax.serving.scorer import Scorer
from experiments import cli, serving_flags

INPUT = flags.DEFINE_string(
  'input',
  None,
  'Candidates: CSV, TSV or JSON lines, plain or gzip, or Parquet, a file, a '
  'folder or a glob.',
  required=True,
)
OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'File of scores, .csv, .tsv, .jsonl or .parquet: user, item, timestamp and '
  "--keep, then score, the model's logit, and probability, its sigmoid.",
  required=True,
)
BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 4096, 'Candidates that are scored at once.', lower_bound=1
)
serving_flags.define_asking('--input, with item=..')


def main() -> None:
  output = Path(OUTPUT.value)
  serving_flags.check_output(output, INPUT.value)
  run = serving_flags.opened_run()
  columns = serving_flags.columns_of(run.dataset)
  time = serving_flags.time_of(run.dataset)
  kept = ['user', 'item', *([] if time is not None else ['timestamp'])]
  file = CandidateFile(
    INPUT.value,
    columns,
    serving_flags.kept_columns(columns, kept),
    serving_flags.reading(),
    time,
  )
  step = run.score_step()
  scorer = Scorer(
    Encoder(run.dataset),
    lambda batch: step(run.params, run.stats, batch),
    BATCH_SIZE.value,
  )
  plan = serving_flags.plan_of(
    run,
    columns=columns,
    time=time,
    batch_size=BATCH_SIZE.value,
  )
  with CountDisplay('score') as display:
    found = score_file(
      scorer, file, output, plan, lambda counts: display(counts.rows)
    )
  print(cli.describe(found['counts']))
  print(f'scores: {output}')


if __name__ == '__main__':
  cli.run(main)
