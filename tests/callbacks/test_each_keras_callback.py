"""With the guard beside it, each of Keras' own callbacks sees, keeps and does what it would without a NaN."""

from __future__ import annotations

import csv
import functools
import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from tests.training.nets import all_finite, digits, layers, seeded

BATCH, EPOCHS = 32, 4
NO_PART = {"Callback", "CallbackList"}  # the base class, and what holds the callbacks of a fit


def net() -> keras.Model:
    return keras.Sequential([keras.Input((64,)), layers.Dense(16, activation="tanh"), layers.Dense(10)])


class Poison(keras.callbacks.Callback):
    """Make the loss of the first validation NaN."""

    def __init__(self):
        super().__init__()
        self.value, self.epoch = tf.Variable(0.0, trainable=False), 0

    def loss(self, y, logits):
        return keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True) + self.value

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_test_begin(self, logs=None):
        self.value.assign(np.nan if self.epoch == 0 else 0.0)

    def on_test_end(self, logs=None):
        self.value.assign(0.0)


def fit(callbacks, case):
    """Fit with NaN in all data of the first epoch and in a batch of each, or in the loss of the first validation."""
    x, y = digits(EPOCHS * 4 * BATCH)
    if case == "data":
        x[: 4 * BATCH, 3] = x[:: 4 * BATCH, 3] = np.nan

    def batches():
        for start in range(0, len(x), BATCH):
            yield x[start : start + BATCH], y[start : start + BATCH]

    poison = Poison()
    optimizer = keras.optimizers.Adam(
        0.01, use_ema=any(isinstance(one, keras.callbacks.SwapEMAWeights) for one in callbacks)
    )
    model = seeded(net, optimizer, loss=poison.loss)
    callbacks = [gr.GradientGuard(), *callbacks, *([poison] if case == "validation" else [])]
    how = {"steps_per_epoch": 4, "epochs": EPOCHS, "shuffle": False, "verbose": 0, "validation_data": digits(2 * BATCH)}
    history = model.fit(batches(), callbacks=callbacks, **how)
    assert math.isnan(history.history["val_loss"][0]) == (case == "validation")
    return model, history


def early_stopping(callback, model, history, folder):
    assert np.isfinite(callback.best)
    assert callback.best_epoch == EPOCHS - 1


def checkpoint(callback, model, history, folder):
    assert callback.best == min(value for value in history.history["val_loss"] if math.isfinite(value))
    saved = keras.saving.load_model(folder / "best.keras", compile=False)
    for one, other in zip(saved.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def plateau(callback, model, history, folder):
    assert np.isfinite(callback.best)
    assert float(model.optimizer.learning_rate.numpy()) == pytest.approx(0.01)


def backup(callback, model, history, folder):
    saved = seeded(net)
    saved.optimizer.build(saved.trainable_variables)
    saved.load_weights(folder / "latest.weights.h5")
    assert all_finite(saved)


def csv_log(callback, model, history, folder):
    with open(folder / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == history.history["loss"]
    assert len(rows) == EPOCHS


def board(callback, model, history, folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "train"), size_guidance={"tensors": 0}).Reload()
    assert len(found.Tensors("epoch_loss")) == EPOCHS


def ran_to_its_end(callback, model, history, folder):
    assert len(history.epoch) == EPOCHS


def averaged(callback, model, history, folder):
    assert len(history.epoch) == EPOCHS
    assert all(
        np.isfinite(keras.ops.convert_to_numpy(value)).all()
        for value in model.optimizer._model_variables_moving_average
    )


def scheduled(callback, model, history, folder):
    assert float(model.optimizer.learning_rate.numpy()) == pytest.approx(0.01 * 0.9**EPOCHS)


def history_kept(callback, model, history, folder):
    assert all(math.isfinite(value) for value in callback.history["loss"])


def sent(callback, model, history, folder):
    for numbers in callback.sent:
        assert math.isfinite(numbers["loss"])
    assert len(callback.sent) == EPOCHS


class Remote(keras.callbacks.RemoteMonitor):
    """Keep what would be sent, as JSON, which has no word for NaN."""

    def __init__(self):
        super().__init__(send_as_json=True)
        self.sent = []

    def on_epoch_end(self, epoch, logs=None):
        self.sent.append(json.loads(json.dumps({"epoch": epoch, "loss": logs["loss"]}, allow_nan=False)))


K = keras.callbacks
CASES = {
    "BackupAndRestore": (lambda folder: K.BackupAndRestore(str(folder), delete_checkpoint=False), backup),
    "CSVLogger": (lambda folder: K.CSVLogger(str(folder / "log.csv")), csv_log),
    "EarlyStopping": (lambda folder: K.EarlyStopping(patience=9, restore_best_weights=True), early_stopping),
    "History": (lambda folder: K.History(), history_kept),
    "LambdaCallback": (lambda folder: K.LambdaCallback(), ran_to_its_end),
    "LearningRateScheduler": (lambda folder: K.LearningRateScheduler(lambda epoch, rate: 0.9 * rate), scheduled),
    "ModelCheckpoint": (lambda folder: K.ModelCheckpoint(str(folder / "best.keras"), save_best_only=True), checkpoint),
    "ProgbarLogger": (lambda folder: K.ProgbarLogger(), ran_to_its_end),
    "ReduceLROnPlateau": (lambda folder: K.ReduceLROnPlateau(patience=1), plateau),
    "RemoteMonitor": (lambda folder: Remote(), sent),
    "SwapEMAWeights": (lambda folder: K.SwapEMAWeights(), averaged),
    "TensorBoard": (lambda folder: K.TensorBoard(str(folder)), board),
    "TerminateOnNaN": (lambda folder: K.TerminateOnNaN(), ran_to_its_end),
}  # fmt: skip
ALONE = {"LearningRateScheduler", "SwapEMAWeights"}  # they change the training; the others share one
NOT_OF_TENSORFLOW = {"OrbaxCheckpoint"}


def test_every_callback_of_keras_has_a_row():
    assert {name for name in vars(keras.callbacks) if name[0].isupper()} - NO_PART - NOT_OF_TENSORFLOW == set(CASES)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    @functools.cache
    def fitted(names, case):
        folder = tmp_path_factory.mktemp("fit")
        for name in names:
            (folder / name).mkdir()
        callbacks = {name: CASES[name][0](folder / name) for name in names}
        return callbacks, *fit(list(callbacks.values()), case), folder

    return fitted


@pytest.mark.slow
@pytest.mark.parametrize("case", ["data", "validation"])
@pytest.mark.parametrize("name", CASES)
def test_it_is_safe_beside_a_guard(name, case, fitted):
    together = (name,) if name in ALONE else tuple(other for other in CASES if other not in ALONE)
    callbacks, model, history, folder = fitted(together, case)
    assert all_finite(model)
    CASES[name][1](callbacks[name], model, history, folder / name)
