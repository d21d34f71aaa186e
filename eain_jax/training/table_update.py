"""Dense or row-wise updates of the embedding tables: which, and why.

Dense: the optimizer sees whole tables, so moments decay and penalties act on
every row at every step. Row-wise: it sees the batch's rows alone. For SGD
without a penalty both are the same; Adam's rows outside of the batch keep their
moments row-wise, and a penalty (14) acts on the batch's rows alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from eain_jax.data.features import Feature

# A value that is gathered, updated and scattered back costs about as much as
# four that a dense Adam streams through: measured on a CPU, 2.4 to 5.9 for
# tables of 2 to 20 times the batch's rows.
ROW_COST = 4.0
# With a penalty on the tables the two learn different models: dense, it shrinks
# every row at every step. On Amazon Beauty that is worth half a point of GAUC
# (DIN, validation), so it is kept while it costs less than some 50 ms a step.
MAX_PENALISED_VALUES = 2**25


@dataclasses.dataclass(frozen=True)
class TableUpdate:
  """What one step has to update, either way.

  The choice rests on sizes and settings alone and is the same on every machine,
  so that what a run computes does not depend on where it runs.

  Attributes:
    table_values: of all tables.
    planned_values: of the rows that a batch plans.
    is_penalised: an L2 penalty or a decay of weights acts on the tables.
  """

  table_values: int
  planned_values: int
  is_penalised: bool

  @property
  def choice(self) -> str:
    """'dense' or 'rowwise'."""
    is_cheaper = ROW_COST * self.planned_values < self.table_values
    is_kept = self.is_penalised and self.table_values <= MAX_PENALISED_VALUES
    return 'rowwise' if is_cheaper and not is_kept else 'dense'

  def describe(self, chosen: str) -> str:
    """One line for a person: what is done, and what either way costs."""
    line = (
      f'table update {chosen}: dense touches {self.table_values:,} values a '
      f'step, row-wise {self.planned_values:,} at {ROW_COST:g} times the cost '
      'of each'
    )
    if not self.is_penalised:
      return line
    acts_on = 'all rows' if chosen == 'dense' else "the batch's rows alone"
    return f'{line}; the penalty acts on {acts_on}'


def measure_update(
  features: Sequence[Feature],
  planned: Mapping[str, int],
  table_width: int,
  is_penalised: bool,
) -> TableUpdate:
  """The sizes of both updates.

  Args:
    features: that the model reads, one table each.
    planned: rows that a batch plans, by feature.
    table_width: W.
    is_penalised: an L2 penalty or a decay of weights acts on the tables.
  """
  return TableUpdate(
    table_width * sum(feature.num_rows for feature in features),
    table_width * sum(planned[feature.name] for feature in features),
    is_penalised,
  )
