"""EAIN: attention (1-3), SE gates (5-6), masked pairs (4), PAIM (7-12), MLP.

history, target --attention--> h_u --+--> fields --SE--> masked pairs --+
user, context -----------------------+       |                          |
h_u, position t --PAIM--> h_final            +------------+-------------+
                             +----------------------------+--> MLP --> logit

The logit may have two more terms: a weight a feature value, and a user match.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from eain_jax.config import EainConfig
from eain_jax.data.features import Feature
from eain_jax.layers.attention import AdditiveAttention
from eain_jax.layers.embedding import EmbeddedBatch
from eain_jax.layers.mask_block import MaskBlock
from eain_jax.layers.mlp import MLP
from eain_jax.layers.position_cross import PositionAwareInteraction
from eain_jax.layers.squeeze_excitation import SqueezeExcitation
from eain_jax.layers.user_match import UserMatch
from eain_jax.models.fields import (
  example_rows,
  features_read,
  first_order,
  flat_history,
  flat_target,
  make_fields,
  per_example,
  pooled_history,
)


class EAIN(nn.Module):
  """The attention-driven interaction network.

  Attributes:
    config: its settings; every module is behind a switch.
    axis_name: mapped axis of the devices, for Dice.
  """

  config: EainConfig
  axis_name: str | None = None

  @property
  def table_width(self) -> int:
    return self.config.embedding_dim + int(self.config.use_linear)

  @property
  def compute_dtype(self) -> str:
    return self.config.compute_dtype

  def reads(self, features: Sequence[Feature]) -> tuple[Feature, ...]:
    """Of a dataset's features those that have a table."""
    config = self.config
    return features_read(features, config.use_user, config.use_context)

  @nn.compact
  def __call__(self, inputs: EmbeddedBatch, train: bool = False) -> jax.Array:
    """float32 logits [R, C]."""
    config = self.config
    dim, dtype = config.embedding_dim, config.compute_dtype
    num_candidates = inputs.shape_RC[1]
    target_RCE = flat_target(inputs, dim)
    if config.use_attention:
      h_u_RCE = AdditiveAttention(
        config.attention_dim,
        config.attention_product,
        dtype,
        config.use_softmax,
        config.attention_recency,
        name='attention',
      )(flat_history(inputs, dim), target_RCE, inputs.segment_N, inputs.age_N)
      h_u_BE = h_u_RCE.reshape(-1, h_u_RCE.shape[-1])
    else:
      h_u_BE = per_example(pooled_history(inputs, dim), num_candidates)

    fields_BFD = make_fields(inputs, h_u_BE, dim)
    batch = fields_BFD.shape[0]
    raw_BX = fields_BFD.reshape(batch, -1)
    if config.use_se:
      fields_BFD = SqueezeExcitation(
        config.se_reduction, dtype, name='squeeze_excitation'
      )(fields_BFD)
    head = [fields_BFD.reshape(batch, -1)]
    if config.use_mask_block:
      pairs_BPD = MaskBlock(
        config.mask_hidden_dim, config.mask_norm, dtype, name='mask_block'
      )(fields_BFD, raw_BX)
      head.append(pairs_BPD.reshape(batch, -1))
    if config.use_paim:
      f_BG = h_u_BE
      if config.paim_input == 'history_and_target':
        f_BG = jnp.concatenate([f_BG, target_RCE.reshape(batch, -1)], axis=-1)
      h_final_BH = PositionAwareInteraction(
        config.paim_layers,
        config.paim_dim,
        config.position,
        config.position_dim,
        use_norm=config.paim_norm,
        compute_dtype=dtype,
        name='position_cross',
      )(f_BG, per_example(inputs.position_R, num_candidates))
      head.append(h_final_BH)
    logit_B = MLP(
      config.mlp,
      config.activation,
      config.dropout,
      dtype,
      self.axis_name,
      name='mlp',
    )(
      head,
      example_rows(inputs),
      inputs.valid_RC.reshape(-1),
      train,
    )
    logit_RC = logit_B.reshape(inputs.shape_RC)
    if config.match_dim:
      context_RKD = inputs.context_RKW[..., :dim]
      logit_RC += UserMatch(config.match_dim, dtype, name='user_match')(
        flat_history(inputs, dim),
        target_RCE,
        inputs.segment_N,
        context_RKD.reshape(context_RKD.shape[0], -1),
      )
    if config.use_linear:
      logit_RC += first_order(inputs, dim)
    return logit_RC
