"""A training that backs itself up, and may be killed.

Run as `python resumable.py OUTPUT BACKUP ORDER [EPOCH BATCH]`: ORDER is the place of the guard, and at the end of that
batch of that epoch the process kills itself.
"""

from __future__ import annotations

import os
import signal
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import gradrecipes as gr

EPOCHS, BATCH, SAMPLES = 5, 16, 320


class Die(keras.callbacks.Callback):
    """End the process as a crash of the machine would."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.place, self.epoch = (epoch, batch), 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.place:
            os.kill(os.getpid(), signal.SIGKILL)


def main(output, backup, order, *place):
    x, y = load_digits(return_X_y=True)
    x, y = (x[:SAMPLES] / 16).astype("float32"), y[:SAMPLES]
    x[100, 3] = np.nan  # a batch to be skipped in each epoch
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(16, activation="tanh"),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    guard = gr.GradientGuard(clipping=gr.clipping.by_percentile(50.0, window=64), backup_dir=backup)
    restore = keras.callbacks.BackupAndRestore(backup, delete_checkpoint=False)
    callbacks = [guard, restore] if order == "first" else [restore, guard]
    killer = [Die(*map(int, place))] if place else []
    model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=callbacks + killer)
    state = [*model.variables, *model.optimizer.variables]
    found = {f"weight_{index}": keras.ops.convert_to_numpy(variable) for index, variable in enumerate(state)}
    found |= {f"guard_{name}": v.numpy() for name, v in guard._session.pipeline.variables.items()}
    np.savez(output, events=np.array([event.reason for event in guard.events]), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
