"""What a study costs beside the loop over arms and seeds that one would write instead, and whether the numbers agree.

    make bench ONLY=studies

Five arms and five seeds of a small net on the digits. The loop seeds, builds, fits, 25 times; the study does the same
with the same numbers. Both run in one process, in turn, and the ratio of their wall times is what counts.
"""

from __future__ import annotations

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sklearn.datasets import load_digits

import gradrecipes as gr

SEEDS = range(5)
FIT = {"epochs": 5, "batch_size": 64}
AT_MOST = 0.5  # of the loop's time
ARMS = {
    "as it is": {},
    "a tenth of the rate": {"learning_rate": 1e-3},
    "He initialization": {"initializer": "he_normal"},
    "clipping by global norm": {"clipping": 1.0},
    "no normalization": {"normalization": False},
}


def build(learning_rate=1e-2, initializer="glorot_uniform", clipping=None, normalization=True):
    layers = [keras.Input((64,))]
    for _ in range(2):
        layers.append(keras.layers.Dense(64, activation="relu", kernel_initializer=initializer))
        layers += [keras.layers.BatchNormalization()] if normalization else []
        layers.append(keras.layers.Dropout(0.2))
    model = keras.Sequential([*layers, keras.layers.Dense(10)])
    optimizer = keras.optimizers.Adam(learning_rate, global_clipnorm=clipping)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    return model


def loop(x, y, x_val, y_val):
    """Return the histories of 25 fits, one after the other, as one would write it without a study."""
    histories = {}
    for seed in SEEDS:
        for name, arm in ARMS.items():
            keras.utils.set_random_seed(seed)
            model = build(**arm)
            histories[name, seed] = model.fit(x, y, validation_data=(x_val, y_val), verbose=0, **FIT).history
    return histories


def study(x, y, x_val, y_val):
    """Return the same from a study, and how many of its runs used a compiled step again."""
    data = (x, y, x_val, y_val)
    done = gr.Study(build, arms=ARMS, data=data, seeds=SEEDS, fit=FIT, objective="val_accuracy")
    runs = [run for found in done.run(give_up=False, progress=False).runs.values() for run in found]
    return {(run.arm, run.seed): run.history for run in runs}, sum(run.reused for run in runs)


def timed(function, *arguments):
    begun = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - begun


def compare(rounds: int) -> tuple[list[float], bool, int]:
    """Return by round the wall time over that of the loop, whether all numbers agree, and runs that reused a step."""
    x, y = load_digits(return_X_y=True)
    split = gr.studies.frozen_split((x / 16).astype(np.float32), y)
    data = (split.x, split.y, split.x_val, split.y_val)
    build().fit(split.x[:64], split.y[:64], verbose=0)  # what TensorFlow does once in a process is neither's cost
    ratios, same, reused = [], True, 0
    for number in range(rounds):
        sides = [("study", study), ("loop", loop)] if number % 2 else [("loop", loop), ("study", study)]
        results = {name: timed(function, *data) for name, function in sides}
        (ours, reused), seconds = results["study"]
        theirs, loop_seconds = results["loop"]
        ratios.append(seconds / loop_seconds)
        same = same and ours == theirs
        print(
            f"round {number + 1}: loop {loop_seconds:.1f} s, study {seconds:.1f} s, ratio {ratios[-1]:.2f}; "
            f"numbers {'identical' if ours == theirs else 'DIFFERENT'}",
            flush=True,
        )
    return ratios, same, reused
