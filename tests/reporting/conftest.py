"""Runs and a manifest whose numbers are known by hand, and a terminal."""

import io

import pytest
from rich.console import Console

from eain_jax.config import MODEL_CONFIGS, PrepareConfig, TrainConfig
from eain_jax.training.run_set import Run

FINGERPRINT = 'f0' * 32

# By model, test AUC of seeds 0, 1, 2. Differences from EAIN, seed by seed:
# LR .10 .11 .12, MF .10 .10 .10, DIN .005 .01 .015, DeepFM .02 .02 .02.
AUC = {
  'lr': (0.70, 0.70, 0.70),
  'mf': (0.70, 0.71, 0.72),
  'dnn': (0.60, 0.61, 0.62),
  'din': (0.795, 0.80, 0.805),
  'deepfm': (0.78, 0.79, 0.80),
  'eain': (0.80, 0.81, 0.82),
}


def make_console(*, terminal=False, width=80):
  """A console without colours that keeps what it shows, see `shown`."""
  return Console(
    file=io.StringIO(),
    force_terminal=terminal,
    width=width,
    highlight=False,
    color_system=None,
  )


def shown(console):
  return console.file.getvalue()


def make_metrics(auc, **changed):
  """Ten requests of one positive and 99 negatives; recall is the AUC."""
  return {
    'auc': auc,
    'auc_ci95': 0.002,
    'gauc': auc - 0.01,
    'gauc_users': 120,
    'gauc_users_skipped': 1,
    'logloss': 1 - auc,
    'calibration': 1.01,
    'ece': 0.02,
    'precision@10': auc / 10,
    'recall@10': auc,
    'f1': 2 * auc / 11,
    'f1_per_request': 2 * auc / 11,
    'ndcg@10': auc / 2,
    'hit_rate@10': auc,
    'mrr': auc / 3,
    'mrr@10': auc / 4,
    'requests': 10,
    'requests_without_positive': 0,
    'examples': 1000,
    **changed,
  }


def make_bins(auc):
  """Two bins of 10, of which the model predicts .2 and its AUC."""
  return [
    {
      'predicted': predicted,
      'observed': observed,
      'weight': 10.0,
      'count': count,
      'number': number,
    }
    for number, predicted, observed, count in (
      (0, 0.2, 0.25, 700),
      (1, auc, 0.75, 300),
    )
  ]


def make_run(model='eain', seed=0, *, test=None, seconds=12.5, **settings):
  """One run of two epochs of two training records."""
  auc = AUC[model][seed]
  records = []
  for epoch in (1, 2):
    for half, loss in ((0.5, 0.9), (1.0, 0.7)):
      records.append(
        {
          'kind': 'train',
          'step': int(20 * (epoch - 1 + half)),
          'epoch': epoch - 1 + half,
          'loss': loss / epoch,
          'total_loss': loss,
          'gradient_norm': 1.0,
          'seconds': epoch - 1 + half,
          'seconds_waiting': 0.0,
          'peak_memory_bytes': 1_500_000_000,
        }
      )
    records.append(
      {
        'kind': 'valid',
        'step': 20 * epoch,
        'epoch': float(epoch),
        'learning_rate_factor': 0.1,
        'seconds': 3.0 * epoch,
        **make_metrics(auc + 0.01 * epoch),
      }
    )
  return Run(
    model,
    seed,
    {
      'version': '0.1.0',
      'dataset': {'fingerprint': FINGERPRINT},
      'model': model,
      'model_config': MODEL_CONFIGS[model]().to_dict(),
      'train_config': TrainConfig(seed=seed, **settings).to_dict(),
    },
    {
      'model': model,
      'version': '0.1.0',
      'dataset': FINGERPRINT,
      'seed': seed,
      'parameters': 1234,
      'best_step': 40,
      'best_epoch': 2.0,
      'steps': 40,
      'valid': make_metrics(auc + 0.02),
      'test': make_metrics(auc) if test is None else test,
      'reliability': make_bins(auc),
      'seconds': seconds,
      'examples_per_second': 1000 / seconds,
    },
    records,
  )


def make_inside(**changed):
  """Of three fields, one example of two events, and one without a negative."""
  mask = [[None, 0.5, 1.5], [0.5, None, 1.0], [1.5, 1.0, None]]
  candidate = lambda item, attention: {
    'item': item,
    'attributes': {'brand': [f'brand of {item}'], 'tags': []},
    'logit': 0.5,
    'attention': attention,
    'gate': [0.2, 0.4, 0.6],
    'mask': mask,
  }
  event = lambda item, days: {
    'item': item,
    'attributes': {'brand': ['acme'], 'tags': ['acme', 'new']},
    'days_before': days,
  }
  example = {
    'row': 3,
    'candidates': 100,
    'rank': 7,
    'history': [event('late', 0.25), event('early', 1234.5)],
    'positive': candidate('taken', [0.75, 0.25]),
    'negative': candidate('left', [0.5, 0.5]),
  }
  return {
    'seed': 0,
    'fields': ['item', 'history item', 'hour'],
    'weights_are_shares': True,
    'average': {
      'requests': 2000,
      'attention': [
        {'rank': 1, 'weight': 0.4, 'even': 0.3, 'requests': 2000},
        {'rank': 2, 'weight': 0.2, 'even': 0.25, 'requests': 1500},
      ],
      'same': [
        {
          'feature': 'brand',
          'same': 1.25,
          'events_same': 400,
          'other': 0.9,
          'events_other': 3000,
        },
        {
          'feature': 'tags',
          'same': None,
          'events_same': 4,
          'other': 1.0,
          'events_other': 3396,
        },
      ],
      'gate': [
        {'field': 'item', 'mean': 0.5, 'low': 0.4, 'high': 0.6},
        {'field': 'history item', 'mean': 0.7, 'low': 0.65, 'high': 0.8},
        {'field': 'hour', 'mean': 0.3, 'low': 0.1, 'high': 0.35},
      ],
      'mask': mask,
    },
    'examples': [example, {**example, 'negative': None}],
    **changed,
  }


def make_manifest(**changed):
  """Of `next_item` with 4 negatives in training and 99 in evaluation."""
  part = lambda positives, negatives: {
    'positives': positives,
    'examples': positives * (1 + negatives),
    'requests': positives,
    'dropped_short_history': 0,
    'dropped_by_skip_above': 0,
    'requests_without_positive': 0,
  }
  return {
    'version': '0.1.0',
    'task': 'next_item',
    'split': 'last_out',
    'min_history': 1,
    'seed': 0,
    'fingerprint': FINGERPRINT,
    'config': PrepareConfig(events='log.csv').to_dict(),
    'counts': {
      'lines': 1_000,
      'events': 990,
      'users': 10,
      'items': 50,
      'duplicates': 7,
      'rejected': 3,
      'train': part(900, 4),
      'valid': part(10, 99),
      'test': part(10, 99),
    },
    'sources': [
      {'name': 'log.csv', 'bytes': 4321, 'sha256': 'ab' * 32, 'format': 'csv'}
    ],
    'notes': ['Requests are simulated.'],
    'features': [
      {
        'name': 'item',
        'kind': 'item',
        'num_rows': 52,
        'max_values': 1,
        'multi_valued': False,
      }
    ],
    'first_timestamp': 0,
    'last_timestamp': 86_400,
    **changed,
  }


@pytest.fixture
def fake():
  """The makers above, for tests cannot import one another."""
  return type(
    'Fake',
    (),
    {
      'AUC': AUC,
      'metrics': staticmethod(make_metrics),
      'run': staticmethod(make_run),
      'inside': staticmethod(make_inside),
      'manifest': staticmethod(make_manifest),
      'runs': staticmethod(
        lambda seeds=3, models=tuple(AUC): [
          make_run(model, seed) for seed in range(seeds) for model in models
        ]
      ),
      'no_ceilings': {'valid': None, 'test': None},
    },
  )
