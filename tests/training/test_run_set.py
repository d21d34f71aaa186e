"""A folder of runs takes one plan, and says what differs in another."""

import json

import pytest

from eain_jax.errors import InputError
from eain_jax.training.run_set import PLAN_FILE, check_plan


def test_another_plan_is_refused_by_what_differs(tmp_path):
  plan = {'seeds': 2, 'models': ['lr'], 'version': '1'}
  (tmp_path / PLAN_FILE).write_text(json.dumps(plan))
  check_plan(tmp_path, plan)
  other = {'seeds': 3, 'models': ['lr'], 'optuna': '4'}
  with pytest.raises(InputError, match=r'\(other optuna, seeds, version, see'):
    check_plan(tmp_path, other)


@pytest.mark.parametrize('text', ['', '{', 'null', '[{}]', '3'])
def test_a_damaged_plan_is_one_sentence(tmp_path, text):
  (tmp_path / PLAN_FILE).write_text(text)
  with pytest.raises(InputError, match='is damaged: name another'):
    check_plan(tmp_path, {'seeds': 1})
