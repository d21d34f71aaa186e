"""Which update of the tables is chosen, by hand."""

import pytest

from eain_jax.data.features import Feature
from eain_jax.training.table_update import TableUpdate, measure_update


@pytest.mark.parametrize(
  ('table', 'planned', 'is_penalised', 'choice'),
  [
    # 4 x 100 against 401, and against 400.
    (401, 100, False, 'rowwise'),
    (400, 100, False, 'dense'),
    # A penalty is meant for all rows, while that is affordable.
    (2**25, 1_000, True, 'dense'),
    (2**25 + 1, 1_000, True, 'rowwise'),
    (2**25, 1_000, False, 'rowwise'),
    (2**30, 2**29, True, 'dense'),
  ],
)
def test_the_cheaper_one_unless_a_penalty_keeps_all_rows(
  table, planned, is_penalised, choice
):
  update = TableUpdate(table, planned, is_penalised)
  assert update.choice == choice
  assert update.describe(choice).startswith(f'table update {choice}:')
  assert ('penalty' in update.describe(choice)) == is_penalised


def test_sizes_are_rows_times_width():
  features = [Feature('user', 'user', 50), Feature('item', 'item', 1_000)]
  update = measure_update(features, {'user': 20, 'item': 300}, 8, True)
  assert update == TableUpdate(8 * 1_050, 8 * 320, True)
