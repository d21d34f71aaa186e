"""Variants: each is one change that can be made, or it is said why not."""

import dataclasses

import pytest

from eain_jax.config import EainConfig, TrainConfig
from eain_jax.data.skip_above import with_skip_above
from eain_jax.training import table_update
from eain_jax.training.setup import resolve_config
from eain_jax.training.variants import VARIANTS, changed_configs, why_not


@pytest.mark.parametrize('name', VARIANTS)
def test_a_variant_changes_what_it_says_and_no_more(name):
  variant = VARIANTS[name]
  # What takes the match away starts with one.
  has_match = variant.model.get('match_dim') == 0
  model, train = EainConfig(match_dim=64 * has_match), TrainConfig()
  changed = changed_configs(variant, model, train)
  differing = {
    key: value
    for before, after in zip((model, train), changed, strict=True)
    for key, value in dataclasses.asdict(after).items()
    if value != getattr(before, key)
  }
  assert differing == {**variant.model, **variant.train}
  assert differing
  # What it needs is there by default, and it is not what it takes away.
  assert all(getattr(model, k) == v for k, v in variant.needs.items())
  assert not set(variant.needs) & set(variant.model)


def test_with_default_flags_all_but_the_wrong_skip_above_can_be(dataset):
  of = lambda name, data: why_not(
    VARIANTS[name], EainConfig(), TrainConfig(), data
  )
  whys = {name: of(name, dataset) for name in VARIANTS}
  assert {n: why for n, why in whys.items() if why} == {
    'no_match': 'EAIN is so already, by its flags',
    'no_skip_above': 'Skip Above is off already',
  }
  on = with_skip_above(dataset, 'on')
  assert of('no_skip_above', on) is None
  assert of('skip_above', on) is not None


def test_what_would_change_nothing_is_refused_with_its_reason(dataset):
  why = lambda name, data=dataset, decay=0.9, **settings: (
    why_not(
      VARIANTS[name],
      EainConfig(**settings),
      TrainConfig(ema_decay=decay),
      data,
    )
    or ''
  )
  assert 'so already' in why('no_se', use_se=False)
  assert 'user match already' in why('with_match', match_dim=32)
  assert not why('no_match', match_dim=32)
  assert '--use_paim' in why('no_position', use_paim=False)
  assert '--use_attention' in why('no_softmax', use_attention=False)
  assert 'so already' in why('no_average', decay=0.0)
  assert not why('no_average')
  # One of several changes is enough.
  assert not why('as_printed', mask_norm=False)
  bare = dataclasses.replace(dataset, context_ids={})
  assert 'no context features' in why('no_context', bare)
  manifest = {**dataset.manifest, 'task': 'rating'}
  log = dataclasses.replace(dataset, manifest=manifest)
  assert 'negatives of a rating dataset' in why('skip_above', log)
  assert 'negatives of a rating dataset' in why('negatives_once', log)


def test_a_change_of_how_tables_are_updated_is_a_second_change(
  dataset, monkeypatch
):
  model, given = EainConfig(), TrainConfig(batch_size=64)
  variant = VARIANTS['no_linear']
  chosen = resolve_config(dataset, 'eain', model, given)
  assert chosen.table_update == 'dense'
  assert why_not(variant, model, chosen, dataset, given) is None
  # 32 columns fit in, 33 do not.
  rows = sum(f.num_rows for f in dataset.features if f.kind != 'user')
  monkeypatch.setattr(table_update, 'MAX_PENALISED_VALUES', 32 * rows)
  monkeypatch.setattr(table_update, 'ROW_COST', 0.0)
  rowwise = resolve_config(dataset, 'eain', model, given)
  assert rowwise.table_update == 'rowwise'
  why = why_not(variant, model, rowwise, dataset, given)
  assert why is not None
  assert 'choose dense, and for EAIN rowwise' in why
  named = dataclasses.replace(given, table_update='dense')
  assert why_not(variant, model, named, dataset, named) is None
