"""Flags from config dataclasses, and how every binary ends.

Exit codes: 0 success; 1 bad input, with one sentence; 2 bad flags; 75 told to
stop, and saved.
"""

import contextlib
import dataclasses
import os
import shlex
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags, logging

from eain_jax.config import (
  MODEL_CONFIGS,
  ModelConfig,
  Settings,
  TrainConfig,
)
from eain_jax.data.dataset import Dataset, open_dataset
from eain_jax.errors import InputError, Interrupted
from eain_jax.stopping import STOPPED, stop_signals

FLAGS = flags.FLAGS
# Else --help of a binary leaves out what is defined here for it.
flags.disclaim_key_flags()


class FlagError(Exception):
  """A flag that this command does not take."""


def _define(name: str, kind: Any, default: Any, field, help_text: str) -> None:
  """One absl flag for a field of a config."""
  choices = field.metadata['choices']
  low, high = field.metadata['at_least'], field.metadata['at_most']
  if kind is bool:
    flags.DEFINE_bool(name, default, help_text)
  elif kind is int:
    flags.DEFINE_integer(name, default, help_text, low, high)
  elif kind is float:
    flags.DEFINE_float(name, default, help_text, low, high)
  elif kind is str and choices:
    flags.DEFINE_enum(name, default, choices, help_text)
  elif kind is str:
    flags.DEFINE_string(name, default, help_text)
  else:
    text = None if default is None else [str(value) for value in default]
    flags.DEFINE_list(name, text, help_text)


def _fields(config: type[Settings]):
  """(field, its type) of a config dataclass."""
  hints = typing.get_type_hints(config)
  for field in dataclasses.fields(typing.cast(Any, config)):
    yield field, hints[field.name]


def _convert(name: str, kind: Any, value: Any) -> Any:
  """A flag's value as its field's type; absl leaves list entries as text."""
  if typing.get_origin(kind) is not tuple:
    return value
  entry = typing.get_args(kind)[0]
  try:
    return tuple(entry(text) for text in value)
  except ValueError as error:
    raise FlagError(
      f'--{name}={",".join(value)} must list values of type {entry.__name__}'
    ) from error


def define_config(
  config: type[Settings],
  *,
  shared: Sequence[str] = (),
  without: Sequence[str] = (),
  **defaults: Any,
) -> None:
  """Defines a flag for every field of a config.

  Names in `shared` are flags of another config already, one flag for both;
  those in `without` are no flags of this binary.
  `defaults` are this binary's own, where they differ.
  """
  for field, kind in _fields(config):
    if field.name not in (*shared, *without):
      default = defaults.get(field.name, field.default)
      _define(field.name, kind, default, field, field.metadata['help'])


def config_from_flags(
  config: type[Settings],
  beneath: Mapping[str, Any] = types.MappingProxyType({}),
  **given: Any,
) -> Any:
  """The config that the flags describe.

  Args:
    config: of which.
    beneath: values in place of the defaults, for flags that are not set.
    **given: values that override flags.
  """
  values = {}
  for field, kind in _fields(config):
    name = field.name
    if name in given or name not in FLAGS:
      continue
    if name in beneath and not FLAGS[name].present:
      values[name] = beneath[name]
    else:
      values[name] = _convert(name, kind, FLAGS[name].value)
  return config(**values, **given)


def setting_names(config: type[Settings]) -> set[str]:
  """Of the flags of a config."""
  return {field.name for field, _ in _fields(config)}


def parsed(name: str, text: str) -> Any:
  """The value of a setting that a text stands for, as its flag reads it.

  Raises:
    ValueError: the flag cannot have it.
  """
  value = FLAGS[name].parser.parse(text)
  for config in (TrainConfig, *MODEL_CONFIGS.values()):
    for field, kind in _fields(config):
      if field.name == name:
        return _convert(name, kind, value)
  raise ValueError('it is no setting')


def refuse_flags_of(
  config: type[Settings], because_of: str, but: Sequence[str] = ()
) -> None:
  """Raises FlagError where a flag of `config` is given beside `because_of`."""
  for field, _ in _fields(config):
    if field.name not in but and FLAGS[field.name].present:
      raise FlagError(f'--{field.name} goes without {because_of}')


def define_models(**own_defaults: Any) -> None:
  """Defines a flag for every setting of any model, unset by default.

  `own_defaults` are this binary's, for all models that have the setting.
  """
  owners: dict[str, list[str]] = {}
  fields = {}
  for model, config in MODEL_CONFIGS.items():
    for field, kind in _fields(config):
      owners.setdefault(field.name, []).append(model)
      fields.setdefault(field.name, (field, kind))
  for name, (field, kind) in fields.items():
    models = owners[name]
    defaults = {
      model: MODEL_CONFIGS[model].__dataclass_fields__[name].default
      for model in models
    }
    if name in own_defaults:
      default_text = str(own_defaults[name])
    elif len({repr(default) for default in defaults.values()}) == 1:
      default_text = str(field.default)
    else:
      default_text = str(defaults)
    used_by = 'all' if len(models) == len(MODEL_CONFIGS) else ', '.join(models)
    help_text = (
      f'{field.metadata["help"]} Models: {used_by}. Default: {default_text}.'
    )
    _define(name, kind, own_defaults.get(name), field, help_text)


def model_config_from_flags(
  model: str,
  *,
  beside: Sequence[str] = (),
  beneath: Mapping[str, Any] = types.MappingProxyType({}),
) -> ModelConfig:
  """The settings of one model from the flags that are set.

  Args:
    model: of `MODEL_CONFIGS`.
    beside: all models that the flags are for, where they are several.
    beneath: values in place of the defaults, for flags that are not set.

  Raises:
    FlagError: a flag is set that none of these models has.
  """
  for name in (model, *beside):
    if name not in MODEL_CONFIGS:
      raise FlagError(f'--model={name} is unknown: {", ".join(MODEL_CONFIGS)}')
  config, values = MODEL_CONFIGS[model], dict(beneath)
  own = {field.name: kind for field, kind in _fields(config)}
  of_others = {
    name for other in beside for name in setting_names(MODEL_CONFIGS[other])
  }
  every = {f.name for c in MODEL_CONFIGS.values() for f, _ in _fields(c)}
  for name in sorted(every):
    value = FLAGS[name].value
    if value is None:
      continue
    if name in own:
      values[name] = _convert(name, own[name], value)
    elif FLAGS[name].present and name not in of_others:
      models = ', '.join(beside or (model,))
      raise FlagError(f'--{name} is not a setting of {models}')
  return config(**values)


def given_settings(model: str) -> dict[str, str]:
  """By name the flags of a model and of training that are set, as text.

  Without those that decide no number: where a run runs, and its seed.
  """
  # Here, for preparation needs no jax.
  from eain_jax.training.run_folder import FREE_SETTINGS

  names = [
    field.name
    for config in (MODEL_CONFIGS[model], TrainConfig)
    for field, _ in _fields(config)
  ]
  return {
    name: FLAGS[name].serialize().partition('=')[2]
    or str(FLAGS[name].value).lower()
    for name in names
    if FLAGS[name].present and name not in (*FREE_SETTINGS, 'seed')
  }


def command(binary: str, without: Sequence[str] = ()) -> str:
  """The command line that the flags that are set make."""
  own = FLAGS.flags_by_module_dict()
  given = [
    flag.serialize()
    for module, of_module in own.items()
    if not module.startswith('absl')
    for flag in of_module
    if flag.present and flag.name not in without
  ]
  words = ['python', '-m', f'experiments.{binary}', *sorted(given)]
  return ' '.join(shlex.quote(word) for word in words)


def _parse_flags(argv: list[str]) -> list[str]:
  """absl's parser, with exit code 2 for what it refuses."""
  try:
    return app.parse_flags_with_usage(argv)
  except SystemExit as error:
    # absl exits with 1 on a bad flag, and on --help, which is none.
    asked = {'--help', '-help', '--helpfull', '-helpfull', '--helpshort'}
    is_help = bool(asked & set(argv)) and error.code == 1
    raise SystemExit(0 if is_help else 2) from error


def _end(code: int, name: str = '', why: str = '') -> None:
  """Ends the process at once.

  An orderly end would wait for threads, and for other processes, which may wait
  for this one.
  """
  if why:
    print(f'{name}: {why}', file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _hush_orbax() -> None:
  """What it prints beside what it raises: each step, each failure thrice."""
  logging.set_verbosity(logging.FATAL)
  before = sys.unraisablehook

  def hook(unraisable) -> None:
    code = getattr(unraisable.object, 'cr_code', None)
    # Writes that go on after another has failed find nobody to tell.
    is_late = str(unraisable.exc_value) == 'Event loop is closed'
    if not is_late and (code is None or 'orbax' not in code.co_filename):
      before(unraisable)

  sys.unraisablehook = hook


_NEVER_EMPTY = ('input', 'output', 'export', 'users', 'host')


def _refuse_empty() -> None:
  """An empty value is mostly a variable of the shell that was not set.

  Of some it would be taken for much: all users, all interfaces.
  """
  for name in FLAGS:
    is_meant = name.endswith('_dir') or name in _NEVER_EMPTY
    value = FLAGS[name].value
    # Not a number of users, which is a flag of that name, too.
    if is_meant and FLAGS[name].present and value != 0 and not value:
      raise FlagError(f'--{name} is empty')


def run(main: Callable[[], None], *, takes_processes: bool = False) -> None:
  """Runs a binary: parses flags, calls `main`, turns errors to exit codes.

  With `takes_processes` it joins the processes that the environment names; see
  `training.processes`. Other binaries refuse to run in several.
  """

  def wrapped(argv: list[str]) -> None:
    name = argv[0].rsplit('/', 1)[-1].removesuffix('.py')
    is_joined, code = False, 0
    with stop_signals() as stop, contextlib.ExitStack() as stack:
      try:
        if len(argv) > 1:
          raise FlagError(f'{argv[1]!r} is not a flag: write --name=value')
        _refuse_empty()
        _hush_orbax()
        if takes_processes:
          # Here, for preparation needs no jax.
          from eain_jax.training import processes

          is_joined = processes.join_cluster(lambda why: _end(1, name, why))
        elif int(os.environ.get('JAX_NUM_PROCESSES') or 1) > 1 or (
          os.environ.get('EAIN_DISTRIBUTED')
        ):
          raise InputError('runs in one process: start it without a launcher')
        stop.can_end = not is_joined
        if is_joined:
          # None of them stops by itself: all do, before one step.
          stack.enter_context(stop.held())
        main()
      except FlagError as error:
        print(f'{name}: {error}', file=sys.stderr)
        code = 2
      except InputError as error:
        print(f'{name}: {error}', file=sys.stderr)
        code = 1
      except Interrupted as error:
        print(f'{name}: {error}; the same command goes on', file=sys.stderr)
        code = STOPPED
      except Exception:
        if not is_joined:
          raise
        traceback.print_exc()
        code = 1
      if code == STOPPED:
        stop.ignore()
    # Threads of a save or of a disk that does not answer hold up nobody, and a
    # compiler's threads outlive no interpreter that ends in order.
    ends_in_order = code == 0 or (code == STOPPED if is_joined else code == 2)
    if not ends_in_order:
      _end(code)
    sys.exit(code)

  app.run(wrapped, flags_parser=_parse_flags)


def define_verify() -> None:
  """Defines --verify, of binaries that open a dataset."""
  flags.DEFINE_enum(
    'verify',
    'full',
    ('full', 'quick'),
    'How a dataset is checked when it is opened. full: every byte and every '
    'id. quick: that its files are there and of their sizes, for datasets that '
    'take long to read and were checked before.',
  )


def open_together(dataset_dir: str) -> Dataset:
  """The dataset of all processes, of which the first looks as --verify says.

  Raises:
    InputError: one of them cannot open it.
  """
  # Here, for preparation needs no jax.
  from eain_jax.training import processes

  verify = FLAGS.verify if processes.is_first() else 'quick'
  return processes.together(lambda: open_dataset(dataset_dir, verify=verify))


def describe(values: Mapping[str, Any]) -> str:
  """A line of name value pairs, numbers with thousands separators."""
  return ', '.join(
    f'{name} {value:,}' if isinstance(value, int) else f'{name} {value}'
    for name, value in values.items()
  )
