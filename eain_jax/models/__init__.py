"""EAIN and the models that it is compared with.

A model is the features that it reads, the width of their tables and a Linen
module over embedded inputs.
"""

from eain_jax.config import MODEL_CONFIGS, ModelConfig
from eain_jax.errors import InputError
from eain_jax.models.deepfm import DeepFM
from eain_jax.models.din import DIN
from eain_jax.models.dnn import DNN
from eain_jax.models.eain import EAIN
from eain_jax.models.logistic_regression import LogisticRegression
from eain_jax.models.matrix_factorization import MatrixFactorization

Model = LogisticRegression | MatrixFactorization | DNN | DIN | DeepFM | EAIN

MODELS = {
  'lr': LogisticRegression,
  'mf': MatrixFactorization,
  'dnn': DNN,
  'din': DIN,
  'deepfm': DeepFM,
  'eain': EAIN,
}


def make_model(
  name: str, config: ModelConfig | None = None, axis_name: str | None = None
) -> Model:
  """The model of a name, by default with the default settings.

  Raises:
    InputError: there is no model of that name.
  """
  if name not in MODELS:
    raise InputError(f'model {name!r} is unknown: {", ".join(MODELS)}')
  return MODELS[name](config or MODEL_CONFIGS[name](), axis_name=axis_name)
