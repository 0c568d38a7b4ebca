"""One worker of two, or one process that stands for both: trains a RecipeModel and writes down what came of it.

Run as `python worker.py CONFIG`, a JSON file with `mode` ("worker" or "alone"), `output`, `epochs`, and perhaps
`backup` and `die_at` (epoch, batch).
"""

from __future__ import annotations

import contextlib
import json
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

BATCH, SAMPLES = 32, 160


class Die(keras.callbacks.Callback):
    """End the process as a crash of the machine would."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.place, self.epoch = (epoch, batch), 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == tuple(self.place):
            os.kill(os.getpid(), signal.SIGKILL)


def main(config):
    strategy = None
    if config["mode"] == "worker":
        options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=config.get("timeout", 60))
        strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    x, y = load_digits(return_X_y=True)
    x, y = (x[:SAMPLES] / 16).astype("float32"), y[:SAMPLES]
    x[70, 5] = np.nan  # of the third batch; one worker's half of it
    with strategy.scope() if strategy is not None else contextlib.nullcontext():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((64,))
        outputs = keras.layers.Dense(10)(keras.layers.Dense(16, activation="tanh")(inputs))
        model = gr.RecipeModel(inputs, outputs, clipping=gr.clipping.by_global_norm(0.5))
        model.compile(
            keras.optimizers.SGD(0.3, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    data = data.with_options(options)
    monitor, guard = gr.GradientMonitor(), gr.GradientGuard(backup_dir=config.get("backup"))
    callbacks = [monitor, guard]
    if config.get("backup"):
        callbacks.append(keras.callbacks.BackupAndRestore(config["backup"], delete_checkpoint=False))
    if config.get("die_at"):
        callbacks.append(Die(*config["die_at"]))
    validation = tf.data.Dataset.from_tensor_slices((np.nan_to_num(x), y)).batch(BATCH).with_options(options)
    history = model.fit(
        data, epochs=config["epochs"], verbose=0, callbacks=callbacks, validation_data=validation
    ).history
    found = {f"weight_{index}": value for index, value in enumerate(model.get_weights())}
    found |= {"gradient_norm": monitor.trace.gradient_norm, "skipped": monitor.trace.skipped}
    found |= {f"history_{name}": np.array(values) for name, values in history.items()}
    np.savez(config["output"], **found)


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        main(json.load(file))
