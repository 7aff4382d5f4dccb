"""Decision accuracy, pair by pair."""

import math
from itertools import combinations


def loop_decision_accuracy(predicted, truth):
    credit, pairs = 0.0, 0
    for i, j in combinations(range(len(truth)), 2):
        if truth[i] != truth[j]:
            pairs += 1
            product = (predicted[i] - predicted[j]) * (truth[i] - truth[j])
            credit += 1 if product > 0 else 0.5 if product == 0 else 0
    return credit / pairs if pairs else math.nan
