"""What a monitor and a guard leave behind: over 20,000 steps of one fit, and over 60 fits of fresh nets.

    python benchmarks/memory.py [STEPS]        one long fit: memory by step, and traces of the train step
    make bench ONLY=memory                     fits of fresh nets

The memory is the resident set of the process. A long fit of the digits is read every 400 steps; its slope is that of a
least-squares line over what comes after the first quarter. The trace itself grows by design, 4 bytes for each number of
a step: that is printed beside. Fits of fresh nets run in a process of their own for each arm, and what counts is the
growth from the end of the first fit to that of the last.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import gradrecipes as gr

BATCH = 32
EVERY = 400  # steps from one reading of the memory to the next
FITS = 60
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """Return the bytes that this process holds in memory, once the garbage is collected."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


class Net(keras.Model):
    """Count how often Python calls it: once for each trace."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = keras.layers.Dense(32, activation="relu"), keras.layers.Dense(10)
        self.python_calls = 0

    def call(self, x):
        """Run the net; Python comes by only while it is traced."""
        self.python_calls += 1
        return self.out(self.hidden(x))


class Memory(keras.callbacks.Callback):
    """Read the resident set of the process now and then."""

    def __init__(self):
        super().__init__()
        self.steps, self.bytes, self.seen, self.calls = [], [], 0, 0

    def on_train_batch_end(self, batch, logs=None):
        """Read the memory every so many steps."""
        self.seen += 1
        if self.seen == EVERY:
            self.calls = self.model.python_calls
        if self.seen % EVERY == 0:
            self.steps.append(self.seen)
            self.bytes.append(resident())

    def slope(self) -> tuple[float, float]:
        """Return bytes by step after the first quarter, and the standard error of the slope."""
        later = len(self.steps) // 4
        steps, used = np.array(self.steps[later:], float), np.array(self.bytes[later:], float)
        (slope, _), covariance = np.polyfit(steps, used, 1, cov=True)
        return slope, float(np.sqrt(covariance[0, 0]))


def run(steps: int, callbacks: list) -> tuple[Memory, Net]:
    x, y = load_digits(return_X_y=True)
    data = tf.data.Dataset.from_tensor_slices(((x / 16).astype("float32"), y)).shuffle(1797, seed=0).batch(BATCH)
    data = data.repeat()
    keras.utils.set_random_seed(0)
    model, memory = Net(), Memory()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    model.fit(
        data,
        steps_per_epoch=1000,
        epochs=max(1, steps // 1000),
        verbose=0,
        shuffle=False,
        callbacks=[*callbacks, memory],
    )
    return memory, model


def callbacks(arm: str) -> list:
    return [] if arm == "plain" else [gr.GradientMonitor(), gr.GradientGuard()]


def fresh_fits(arm: str, fits: int = FITS) -> list[int]:
    """Return the memory in bytes after each of so many fits, each of a net of its own."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    held = []
    for seed in range(fits):
        keras.utils.set_random_seed(seed)
        hidden = [keras.layers.Dense(64, activation="relu") for _ in range(4)]
        model = keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10)])
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
        model.fit(x, y, batch_size=64, epochs=2, validation_split=0.2, verbose=0, callbacks=callbacks(arm))
        del model, hidden
        held.append(resident())
    return held


def growth(arm: str) -> float:
    """Return by how many bytes a process grows from its first fit of a fresh net to its last."""
    script = f"import json; from benchmarks import memory; print(json.dumps(memory.fresh_fits({arm!r})))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    held = json.loads(run.stdout.splitlines()[-1])
    print(f"{arm}: {(held[-1] - held[0]) / 2**20:.1f} MiB over {len(held)} fits", flush=True)
    return held[-1] - held[0]


def main(steps: int = 20_000) -> None:
    for name in ("plain", "monitor and guard"):
        monitor = gr.GradientMonitor()
        callbacks = [] if name == "plain" else [monitor, gr.GradientGuard(clipping=gr.clipping.by_global_norm(1.0))]
        memory, model = run(steps, callbacks)
        slope, error = memory.slope()
        print(
            f"{name:18s} {memory.seen} steps: {slope:8.1f} +- {error:.1f} bytes a step, "
            f"{(memory.bytes[-1] - memory.bytes[0]) / 2**20:.1f} MiB from step {EVERY} to the end; "
            f"{model.python_calls} calls from Python in all, {model.python_calls - memory.calls} after step {EVERY}"
        )
        if len(monitor.trace):
            trace = monitor.trace
            held = sum(values.nbytes for _, values in trace.steps.items())
            sampled = sum(values.nbytes for _, values in trace.samples.items())
            print(
                f"{'':18s} of which the trace holds {held / len(trace):.1f} bytes a step in readings and "
                f"{sampled / len(trace):.1f} in samples, by design"
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
