"""Early stopping side by side with Keras': equal on finite runs, right where Keras' latches on a NaN."""

from __future__ import annotations

import copy
import logging

import keras
import numpy as np
import pytest

from gradrecipes.callbacks.nanproof_early_stopping import NanProofEarlyStopping

nan, inf = float("nan"), float("inf")


class Net:
    """Stands for a model whose weight says which epoch it is from."""

    metrics = ()

    def __init__(self):
        self.weight, self.stop_training = np.zeros(1), False

    def get_weights(self):
        return [self.weight.copy(), np.array([3])]

    def set_weights(self, weights):
        self.weight = weights[0]


def run(callback, values, *, weights=None, key="val_loss"):
    """Drive a callback as `fit` does; return (epochs run, weight at the end)."""
    net = Net()
    callback.set_model(net)
    callback.on_train_begin()
    for epoch, value in enumerate(values):
        net.weight = np.array([float(epoch if weights is None else weights[epoch])])
        callback.on_epoch_end(epoch, {key: value})
        if net.stop_training:
            break
    callback.on_train_end()
    return epoch + 1, float(net.weight[0])


@pytest.mark.parametrize("seed", range(25))
def test_on_finite_runs_it_is_keras_own(seed):
    random = np.random.default_rng(seed)
    values = list(np.round(random.normal(size=15), 2))
    arguments = dict(
        patience=int(random.integers(0, 5)),
        min_delta=float(random.choice([0, 0.1])),
        mode=str(random.choice(["auto", "min", "max"])),
        baseline=random.choice([None, -0.5]),
        restore_best_weights=bool(random.integers(2)),
        start_from_epoch=int(random.integers(0, 4)),
    )
    ours, theirs = NanProofEarlyStopping(**arguments), keras.callbacks.EarlyStopping(**arguments)
    assert run(ours, values) == run(theirs, values)
    assert (ours.best, ours.best_epoch, ours.wait, ours.stopped_epoch) == (
        (theirs.best, theirs.best_epoch, theirs.wait, theirs.stopped_epoch)
    )


@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_first_epoch_that_is_not_finite_is_not_the_best(bad, mode):
    sign = 1 if mode == "min" else -1
    values = [bad, 3 * sign, 2 * sign, 1 * sign, 1.5 * sign]
    arguments = dict(patience=3, restore_best_weights=True, mode=mode)
    stopping = NanProofEarlyStopping(**arguments)
    assert run(stopping, values) == (5, 3.0)
    assert (stopping.best, stopping.best_epoch, stopping.nonfinite_epochs) == (sign, 3, [0])
    if np.isnan(bad):  # what it is for
        theirs = keras.callbacks.EarlyStopping(**arguments)
        assert run(theirs, values) == (4, 0.0) and np.isnan(theirs.best)


def test_epochs_that_are_not_finite_use_up_the_patience():
    stopping = NanProofEarlyStopping(patience=3, restore_best_weights=True)
    assert run(stopping, [2, 1, nan, nan, nan, 0.5]) == (5, 1.0)
    assert stopping.stopped_epoch == 4
    assert run(NanProofEarlyStopping(patience=3), [2, nan, nan, 1, nan, nan, 3]) == (7, 6.0)
    assert run(NanProofEarlyStopping(patience=2, start_from_epoch=3), [nan, nan, nan, 1, 2, 3, 4]) == (6, 5.0)


def test_a_finite_accuracy_of_nan_weights_is_not_the_best():
    values, weights = [0.9, 0.5, 0.6], [nan, 1, 2]
    stopping = NanProofEarlyStopping("val_accuracy", mode="max", patience=5, restore_best_weights=True)
    assert run(stopping, values, weights=weights, key="val_accuracy") == (3, 2.0)
    assert stopping.best == 0.6


def test_when_nothing_was_ever_finite_it_says_so(caplog):
    stopping = NanProofEarlyStopping(patience=2, restore_best_weights=True)
    with caplog.at_level(logging.WARNING):
        assert run(stopping, [nan] * 9)[0] == 2
    assert "No epoch had a finite val_loss" in caplog.text
    assert stopping.best is None and stopping.best_weights is None


def test_it_begins_anew_with_every_fit_and_can_be_copied():
    stopping = NanProofEarlyStopping(patience=2)
    run(stopping, [nan, 1, 2, 3])
    twin = copy.deepcopy(stopping)
    assert run(twin, [1, 2]) == (2, 1.0) and twin.nonfinite_epochs == []
    assert stopping.nonfinite_epochs == [0]


def test_a_missing_value_is_reported_as_keras_does():
    with pytest.warns(UserWarning, match="val_loss.*not available"):
        run(NanProofEarlyStopping(), [1.0], key="loss")
    with pytest.raises(ValueError, match=r"auto, min, max.*'minimum'"):
        NanProofEarlyStopping(mode="minimum")
    with pytest.raises(AttributeError, match="no_such"):
        NanProofEarlyStopping().no_such  # noqa: B018


def test_in_a_real_fit_that_begins_badly_and_recovers():
    x = np.linspace(-1, 1, 32, dtype=np.float32)[:, None]
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    good = model.get_weights()

    class BadFirstEpoch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch < 2:
                self.model.set_weights([w * nan for w in good] if epoch == 0 else good)

    stopping = NanProofEarlyStopping("loss", patience=3, restore_best_weights=True)
    history = model.fit(x, 2 * x, epochs=8, callbacks=[BadFirstEpoch(), stopping], verbose=0).history["loss"]
    assert np.isnan(history[0]) and len(history) == 8
    assert stopping.best == min(history[1:]) and np.isfinite(model.get_weights()[0]).all()
