"""The callback that ends a trial: what it judges a training by that another trial began."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from gradrecipes.tuning.watch import TrialWatch


@pytest.mark.parametrize(("before", "epochs"), [([0.5], 1), ([], 3)])
def test_a_training_that_is_taken_up_is_judged_by_all_of_its_epochs(before, epochs):
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e-6), "mse")  # it learns next to nothing
    # Earlier trials were at 1e-3 after their second epoch: the first here, if one epoch went before it.
    watch = TrialWatch("val_loss", maximize=False, earlier=lambda: [[0.4, 1e-3]] * 3, before=before)
    model.fit(
        x,
        x[:, :1],
        validation_data=(x, x[:, :1]),
        initial_epoch=1,
        epochs=4,
        batch_size=16,
        verbose=0,
        callbacks=[watch],
    )
    assert len(watch.values) == epochs and watch.hopeless == (epochs == 1)
    assert watch.failure is None
