"""The report as files, all of them or none, and a manifest that says so.

    table1.json, table1.md, report.html, auc.png, training_curves.png,
    calibration.png
    differences.png  each model minus EAIN, where seeds are paired
    attention.png, attention_examples.png, gates.png, gates_examples.png
                   what EAIN looks at
    ablation.png   of an ablation that is shown with it
    times.json     what training took
    manifest.json  size and sha256 of each file, the dataset, version, flags

An ablation has ablation.json, ablation.md, ablation.png, report.html,
times.json and manifest.json.

Two reports of the same flags and data on one machine are the same to the last
bit, however often they were interrupted; times alone differ, so the manifest
says nothing of them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import eain_jax
from eain_jax.artifacts import (
  check_manifest,
  files_written_together,
  write_json,
  write_manifest,
  write_text,
)
from eain_jax.errors import InputError
from eain_jax.reporting.ablation import (
  ablation_lines,
  ablation_report,
  ablation_sections,
)
from eain_jax.reporting.calibration_plot import plot_calibration
from eain_jax.reporting.difference_plot import plot_differences
from eain_jax.reporting.document import table1_report
from eain_jax.reporting.inside_plots import (
  attention_figure,
  example_gates_figure,
  examples_figure,
  gates_figure,
)
from eain_jax.reporting.markdown import render_markdown
from eain_jax.reporting.measured import Line
from eain_jax.reporting.page import render_page
from eain_jax.reporting.plots import (
  plot_auc,
  plot_training_curves,
  save_figure,
)
from eain_jax.reporting.table1 import (
  build_table1,
  training_times,
)
from eain_jax.training.run_set import Run

TABLE_FILE, TEXT_FILE, PAGE_FILE = 'table1.json', 'table1.md', 'report.html'
CURVES_FILE, AUC_FILE = 'training_curves.png', 'auc.png'
DIFFERENCES_FILE = 'differences.png'
CALIBRATION_FILE = 'calibration.png'
ATTENTION_FILE, EXAMPLES_FILE = 'attention.png', 'attention_examples.png'
GATES_FILE, EXAMPLE_GATES_FILE = 'gates.png', 'gates_examples.png'
TIMES_FILE = 'times.json'
ABLATION_FILE, ABLATION_TEXT = 'ablation.json', 'ablation.md'
ABLATION_PICTURE = 'ablation.png'


def write_report(
  folder: Path,
  runs: Sequence[Run],
  manifest: Mapping[str, Any],
  ceilings: Mapping[str, Mapping[str, float] | None],
  flags: Mapping[str, Any],
  inside: Mapping[str, Any] | None = None,
  ablation: Mapping[str, Any] | None = None,
  notes: Sequence[str] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Writes all files of a report, or none.

  Args:
    folder: is there.
    runs: as for `build_table1`, like `manifest` and `ceilings`.
    manifest: of the dataset.
    ceilings: by part.
    flags: what the user asked for, ready for JSON.
    inside: as for `build_table1`.
    ablation: of `read_ablation`, to be shown with it.
    notes: as for `build_table1`.

  Returns:
    The table, and the times.

  Raises:
    InputError: the runs do not fit together, or a file cannot be written.
  """
  table = build_table1(runs, manifest, ceilings, inside, ablation, notes)
  times = training_times(runs)
  with files_written_together(folder, 'report') as beside:
    figures = _write_files(beside, table, times, runs, ceilings)
    write_manifest(
      beside,
      (TABLE_FILE, TEXT_FILE, PAGE_FILE, *figures),
      version=eain_jax.__version__,
      dataset=manifest['fingerprint'],
      flags=dict(flags),
    )
  return table, times


def write_ablation(
  folder: Path,
  table: Mapping[str, Any],
  flags: Mapping[str, Any],
  times: Mapping[str, Any],
) -> None:
  """Writes all files of an ablation, or none: a manifest vouches for them.

  Args:
    folder: is there.
    table: of `build_ablation`.
    flags: what the user asked for, ready for JSON.
    times: of `measured.times_of_rows`, by variant, and 'eain'.

  Raises:
    InputError: a file cannot be written.
  """
  with files_written_together(folder, 'report') as beside:
    picture = beside / ABLATION_PICTURE
    plot_differences(ablation_lines(table), 'EAIN', picture)
    write_json(beside / ABLATION_FILE, table)
    report = ablation_report(table)
    write_text(beside / ABLATION_TEXT, render_markdown(report))
    figures = {'What each change does': picture}
    write_text(beside / PAGE_FILE, render_page(report, figures))
    write_json(beside / TIMES_FILE, times)
    write_manifest(
      beside,
      (ABLATION_FILE, ABLATION_TEXT, PAGE_FILE, ABLATION_PICTURE),
      version=eain_jax.__version__,
      dataset=table['dataset']['fingerprint'],
      flags=dict(flags),
    )


def read_ablation(folder: Path, fingerprint: str) -> dict[str, Any]:
  """What `write_ablation` wrote.

  Args:
    folder: of the ablation.
    fingerprint: of the dataset that it is to be of.

  Raises:
    InputError: it is none or was changed, or it is of another dataset.
  """
  manifest = check_manifest(folder)
  if ABLATION_FILE not in manifest['files']:
    raise InputError(f'{folder} holds no ablation: {ABLATION_FILE} is missing')
  if manifest['version'] != eain_jax.__version__:
    raise InputError(
      f'the ablation in {folder} was written by version {manifest["version"]}: '
      'make it again'
    )
  if manifest['dataset'] != fingerprint:
    raise InputError(
      f'the ablation in {folder} is of another dataset: make it again on this '
      'one, or leave it out'
    )
  return json.loads((folder / ABLATION_FILE).read_text())


def _draw_inside(
  folder: Path, inside: Mapping[str, Any] | None
) -> dict[str, Path]:
  """The pictures of what EAIN looks at, those that there is something for."""
  drawn = {
    'Attention of EAIN': (ATTENTION_FILE, attention_figure),
    'Attention of EAIN: examples': (EXAMPLES_FILE, examples_figure),
    'Gates and masks of EAIN': (GATES_FILE, gates_figure),
    'Gates and masks of EAIN: examples': (
      EXAMPLE_GATES_FILE,
      example_gates_figure,
    ),
  }
  paths = {}
  for title, (name, draw) in drawn.items():
    figure = draw(inside) if inside and 'left_out' not in inside else None
    if figure is not None:
      paths[title] = folder / name
      save_figure(figure, paths[title])
  return paths


def _write_files(
  folder: Path,
  table: Mapping[str, Any],
  times: Mapping[str, Any],
  runs: Sequence[Run],
  ceilings: Mapping[str, Mapping[str, float] | None],
) -> list[str]:
  """Writes all but the manifest; the names of the figures."""
  bars, curves = folder / AUC_FILE, folder / CURVES_FILE
  figures = {'Test AUC': bars}
  plot_training_curves(runs, curves, ceilings['valid'])
  plot_auc(table, bars)
  compared = [row for row in table['rows'] if 'minus_eain' in row]
  if compared:
    differences = folder / DIFFERENCES_FILE
    lines = [Line(row['name'], row['minus_eain']) for row in compared]
    plot_differences(lines, 'EAIN', differences)
    figures['Each model minus EAIN'] = differences
  figures['Training curves'] = curves
  calibration = folder / CALIBRATION_FILE
  plot_calibration(table, calibration)
  figures['Calibration on test'] = calibration
  figures |= _draw_inside(folder, table['inside'])
  sections = ()
  if table['ablation']:
    changes = folder / ABLATION_PICTURE
    plot_differences(ablation_lines(table['ablation']), 'EAIN', changes)
    figures['What each change to EAIN does'] = changes
    sections = ablation_sections(table['ablation'])
  write_json(folder / TABLE_FILE, table)
  report = table1_report(table, sections)
  write_text(folder / TEXT_FILE, render_markdown(report))
  write_text(folder / PAGE_FILE, render_page(report, figures))
  write_json(folder / TIMES_FILE, times)
  return [path.name for path in figures.values()]
