"""The files of flags that the project brings: models take what they say."""

from pathlib import Path

import pytest

from eain_jax.config import MODEL_CONFIGS, PrepareConfig, TrainConfig
from experiments import cli
from experiments.flag_files import read_flags

CONFIGS = Path(__file__).parents[2] / 'experiments' / 'configs'
FILES = sorted(CONFIGS.glob('*/*.flags'))


def test_there_are_some():
  assert FILES


@pytest.mark.parametrize(
  'file', FILES, ids=[f'{file.parent.name}/{file.name}' for file in FILES]
)
def test_every_flag_is_a_setting(file):
  given = set(read_flags(file))
  assert file.read_text().startswith('# ')
  if file.stem == 'prepare':
    assert given <= cli.setting_names(PrepareConfig)
    return
  known = cli.setting_names(MODEL_CONFIGS[file.stem])
  assert given <= known | cli.setting_names(TrainConfig) - {'seed'}
