"""Unigram and bigram models against counting by hand."""

import itertools
import math
from collections import Counter, defaultdict

import pytest
import torch

from stitch_utils.data.text import TokenBatch
from stitch_utils.stitching.baselines import ngram_cross_entropy


def batch(rows, special=0):
    tokens = torch.tensor(rows)
    return TokenBatch(tokens, tokens != special, torch.zeros_like(tokens))


def test_against_counting_by_hand():
    vocabulary = 6
    training = [batch([[0, 1, 2, 1, 2, 3], [0, 2, 1, 2, 0, 3]]), batch([[0, 4, 4, 1, 2, 2]])]
    evaluation = [batch([[0, 1, 2, 5, 4, 4], [0, 3, 1, 0, 2, 2]])]
    counts, successors = Counter(), defaultdict(Counter)
    for part in training:
        for row in part.tokens.tolist():
            for before, token in itertools.pairwise(row):
                if token != 0:
                    counts[token] += 1
                    successors[before][token] += 1
    total = sum(counts.values()) + vocabulary
    losses = {"unigram": [], "bigram": []}
    for row in evaluation[0].tokens.tolist():
        for before, token in itertools.pairwise(row):
            if token == 0:
                continue
            unigram = (counts[token] + 1) / total
            seen, kinds = sum(successors[before].values()), len(successors[before])
            bigram = unigram
            if seen:
                bigram = seen / (seen + kinds) * successors[before][token] / seen + kinds / (seen + kinds) * unigram
            losses["unigram"].append(-math.log(unigram))
            losses["bigram"].append(-math.log(bigram))
    found = ngram_cross_entropy(training, evaluation, vocabulary)
    for name, values in losses.items():
        assert found[name] == pytest.approx(sum(values) / len(values), rel=1e-12)


def test_without_text():
    with pytest.raises(ValueError, match="no ordinary token after another"):
        ngram_cross_entropy([batch([[0, 0, 0]])], [batch([[0, 1, 2]])], 4)
