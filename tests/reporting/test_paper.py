"""Table 1's arithmetic, worked by hand."""

import fractions
import itertools
import re

import pytest

from eain_jax.reporting import paper


def test_table_is_the_printed_one():
  # Typed from the paper a second time, by column.
  assert list(paper.TABLE_1) == ['lr', 'mf', 'din', 'deepfm', 'eain']
  columns = {
    metric: [row[metric] for row in paper.TABLE_1.values()]
    for metric in paper.METRICS
  }
  assert columns == {
    'auc': [0.752, 0.785, 0.782, 0.812, 0.845],
    'precision@10': [0.75, 0.71, 0.721, 0.75, 0.49],
    'recall@10': [0.42, 0.48, 0.489, 0.51, 0.55],
    'f1': [0.383, 0.436, 0.771, 0.478, 0.506],
  }


def test_no_printed_f1_follows_from_24():
  # 2PR/(P+R): .63/1.17, .6816/1.19, .705138/1.21, .765/1.26, .539/1.04.
  by_hand = {
    'lr': 0.5384615,
    'mf': 0.5727731,
    'din': 0.5827587,
    'deepfm': 0.6071429,
    'eain': 0.5182692,
  }
  checks = paper.check_table()
  assert {model: check.computed for model, check in checks.items()} == (
    pytest.approx(by_hand, abs=1e-7)
  )
  assert not any(check.follows for check in checks.values())
  assert [model for model, check in checks.items() if check.exceeds] == ['din']


def test_what_rounding_allows():
  # P = .5 and R = .3 lie in [.4995, .5005] and [.2995, .3005]; (24) of the ends
  # is .37447 and .37553, so .374 (up to .3745) and .376 (from .3755) follow,
  # .373 and .377 do not.
  verdicts = {
    f1: (check.follows, check.exceeds)
    for f1 in (0.373, 0.374, 0.375, 0.376, 0.377)
    for check in [paper.check_f1(0.5, 0.3, f1)]
  }
  assert verdicts == {
    0.373: (False, False),
    0.374: (True, False),
    0.375: (True, False),
    0.376: (True, False),
    0.377: (False, True),
  }
  assert paper.check_f1(0.0, 0.0, 0.0).follows
  assert paper.f1_score(0.0, 0.0) == 0.0


def test_averaging_f1_over_requests_never_exceeds_24_of_the_averages():
  # The concavity that `exceeds` rests on, for every pair of requests with h
  # hits in the top 10 of m relevant items, in exact fractions.
  def f1(precision, recall):
    total = precision + recall
    return 2 * precision * recall / total if total else fractions.Fraction(0)

  requests = [
    (fractions.Fraction(hits, 10), fractions.Fraction(hits, relevant))
    for relevant in range(1, 16)
    for hits in range(min(10, relevant) + 1)
  ]
  for one, two in itertools.combinations(requests, 2):
    precision, recall = (one[0] + two[0]) / 2, (one[1] + two[1]) / 2
    assert (f1(*one) + f1(*two)) / 2 <= f1(precision, recall)


def test_relevant_items_a_request():
  assert paper.hits_per_request(0.75) == 7.5
  # Two requests, 4 and 2 hits in the top 10, of 5 and 10 relevant items:
  # P = .3, pooled R = 6/15, and 15/2 relevant items a request.
  assert paper.relevant_per_request(0.3, 6 / 15) == pytest.approx(7.5)
  implied = [
    paper.relevant_per_request(row['precision@10'], row['recall@10'])
    for row in paper.TABLE_1.values()
  ]
  # 7.5/.42, 7.1/.48, 7.21/.489, 7.5/.51, 4.9/.55
  by_hand = [17.857, 14.792, 14.744, 14.706, 8.909]
  assert implied == pytest.approx(by_hand, abs=1e-3)
  with pytest.raises(ValueError, match='recall is 0'):
    paper.relevant_per_request(0.1, 0.0)


def test_who_is_ahead_of_whom():
  assert paper.beaten_by('eain') == {
    'precision@10': ('lr', 'mf', 'din', 'deepfm'),
    'f1': ('din',),
  }
  # Equal precision, LR's .750, is not ahead.
  assert 'lr' not in paper.beaten_by('deepfm')['f1']
  assert 'precision@10' not in paper.beaten_by('deepfm')


def test_findings_carry_their_figures():
  found = paper.findings()
  assert len(found) == 5
  for sentence, figures in zip(
    found,
    (
      'lr 2*.750*.420/1.170 = .538, printed .383',
      'din .771 over .583',
      '.750 (lr) puts 7.5 relevant items',
      'lr 17.9, mf 14.8, din 14.7, deepfm 14.7, eain 8.9',
      'f1 of .506 is below din .771',
    ),
    strict=True,
  ):
    assert figures in sentence
    assert re.fullmatch(r'[^\n]+[^.]\.', sentence)
  assert found[0].count('printed .') == 5
  assert 'eain 2*.490*.550/1.040 = .518, printed .506' in found[0]
