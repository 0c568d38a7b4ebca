"""Whether weights or data are bad, judged by a batch that is tried again."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest

from gradrecipes.core.trace import APPLIED, SKIPPED_GRADIENT, SKIPPED_LOSS, SKIPPED_LOSS_OUTLIER, SKIPPED_OVERFLOW
from gradrecipes.training.fit.kept_batches import KeptBatches, Retrial

GOOD = np.full(16, 0.5, np.float32)


def kept(optimizer="sgd") -> KeptBatches:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer, "mse")
    return KeptBatches(model, each=False, reference=True)


@pytest.mark.parametrize(
    ("outcome", "loss", "norm", "first_loss", "consecutive", "at_fault"),
    [
        (APPLIED, 0.5, 1.0, 1.0, 3, False),
        (SKIPPED_LOSS, math.nan, 1.0, 1.0, 0, True),
        (SKIPPED_GRADIENT, 0.5, math.inf, 1.0, 0, True),
        (SKIPPED_OVERFLOW, 0.5, 1e20, 1.0, 0, True),
        (SKIPPED_LOSS_OUTLIER, 2.0, 1.0, 1.0, 3, True),  # worse than at first, where steps were skipped
        (SKIPPED_LOSS_OUTLIER, 2.0, 1.0, 1.0, 0, False),
        (SKIPPED_LOSS_OUTLIER, 1.9, 1.0, 1.0, 3, False),
        (APPLIED, 101.0, 1.0, 1.0, 0, True),  # a hundred times all that was seen
        (SKIPPED_LOSS_OUTLIER, math.nan, 2.0, math.nan, 3, True),  # by the norm, where the step shows no loss
        (SKIPPED_LOSS_OUTLIER, math.nan, 1.9, math.nan, 3, False),
    ],
)
def test_a_batch_that_once_was_good_tells_bad_weights(outcome, loss, norm, first_loss, consecutive, at_fault):
    retrial = Retrial(outcome, loss, norm, first_loss, 1.0)
    assert kept().weights_at_fault(retrial, consecutive, GOOD) is at_fault


def test_nothing_is_known_without_a_batch_or_while_a_loss_scale_comes_down():
    assert kept().weights_at_fault(None, 3, GOOD) is None
    scaled = kept(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()))
    scaled._model.optimizer.build(scaled._model.trainable_variables)
    retrial = Retrial(SKIPPED_GRADIENT, 0.5, math.inf, 1.0, 1.0)
    assert scaled.weights_at_fault(retrial, 3, GOOD) is None


def test_batches_are_run_one_by_one_and_the_next_one_is_not_lost():
    batches = kept()
    each = KeptBatches(batches._model, each=True, reference=False)
    data, seen = iter(range(5)), []
    for taken, steps in each.executions(data, 2, None):
        seen.append((taken, steps, each.batch, each.before))
    assert seen == [([0], 1, 0, None), ([1], 1, 1, 0)]
    assert each.next_batch() == 2
    assert [taken for taken, _ in each.executions(data, 2, None)] == [[2], [3]]
    assert [taken for taken, _ in each.executions(data, 2, None)] == [[4]]
    assert each.next_batch() is None
    assert list(each.executions(data, 2, None)) == []
