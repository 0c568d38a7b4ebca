"""What a study costs beside the loop over arms and seeds that one would write instead, and whether the numbers agree.

    python benchmarks/studies.py            # three rounds
    python benchmarks/studies.py 1 out.json # one round; the figures also as JSON

Five arms and five seeds of a small net on the digits. The loop seeds, builds, fits, 25 times; the study does the same
with the same numbers. Both run in one process, in turn, and the median ratio of their wall times is what counts. The
exit code is 1 if that ratio is above one half or if any number of any epoch differs in any bit.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
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
    begun, used = time.perf_counter(), time.process_time()
    result = function(*arguments)
    return result, time.perf_counter() - begun, time.process_time() - used


def main(rounds: int = 3, path: str | None = None) -> int:
    x, y = load_digits(return_X_y=True)
    split = gr.studies.frozen_split((x / 16).astype(np.float32), y)
    data = (split.x, split.y, split.x_val, split.y_val)
    build().fit(split.x[:64], split.y[:64], verbose=0)  # what TensorFlow does once in a process is neither's cost
    ratios, processor, same, reused = [], [], True, 0
    for number in range(rounds):
        sides = [("study", study), ("loop", loop)] if number % 2 else [("loop", loop), ("study", study)]
        results = {name: timed(function, *data) for name, function in sides}
        (ours, reused), seconds, used = results["study"]
        theirs, loop_seconds, loop_used = results["loop"]
        ratios.append(seconds / loop_seconds)
        processor.append(used / loop_used)
        same = same and ours == theirs
        print(
            f"round {number + 1}: loop {loop_seconds:.1f} s, study {seconds:.1f} s, ratio {ratios[-1]:.2f} "
            f"(processor time {processor[-1]:.2f}); numbers {'identical' if ours == theirs else 'DIFFERENT'}",
            flush=True,
        )
    ratio = statistics.median(ratios)
    figures = {
        "ratio": ratio,
        "ratio_of_processor_time": statistics.median(processor),
        "identical": same,
        "runs": len(ARMS) * len(SEEDS),
        "runs_that_reused_a_step": reused,
    }
    print(
        f"median ratio {ratio:.2f} (at most {AT_MOST}); {reused} of {figures['runs']} runs used a compiled step again"
    )
    if path is not None:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=2)
    return 0 if same and ratio <= AT_MOST else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3, *sys.argv[2:3]))
