"""What monitoring and guarding cost, as a user feels it: time of an epoch against that of plain Keras.

    python benchmarks/overhead.py [--nets lstm,cnn] [--xla] [--rounds 20] [--steps 200] [--cores 1]
    python benchmarks/overhead.py --start-up        time to the first step of fresh models
    python benchmarks/overhead.py --depth           steps of nets of 10 to 300 layers
    python benchmarks/overhead.py --parameters      steps of nets of 1e4 to 1e8 parameters

Each variant is one long `model.fit` in a thread of its own, in one process on the given number of cores. The fits take
turns: a round is an epoch of each in random order, with validation and all that callbacks do on the host. The figure is
the median of the ratios to the plain epochs of the same round, with half the distance between its quartiles divided by
the square root of the rounds. "plain again" is a second plain fit: how far it is from 1 says how far two fits of the
same kind may be apart. On one core processor time is counted, which other programs on the machine do not lengthen; on
several, time on the clock.

"keras clip" is Keras' own `global_clipnorm`; "recompute" is the usual answer to "how do I see my gradients", a callback
that computes them anew; "norms as metrics" a `train_step` that returns every norm. "recompute" and "sampled every step"
cost several steps each, so that a tenth of an epoch tells, in short fits of their own. In a long fit a second function
without captured activations takes over; here it does from the beginning.

`make bench ONLY=overhead` measures the same and writes JSON; `overhead_xla`, `overhead_cores` (two of them),
`overhead_start_up`, `overhead_depth` and `overhead_parameters` are the others.
"""

from __future__ import annotations

import argparse
import gc
import os
import threading
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import gradrecipes as gr
from gradrecipes.training.fit import prepared_step

BATCH = 64
VALIDATION = 512  # samples
layers = keras.layers


def mlp(depth: int, width: int) -> keras.Model:
    hidden = [layers.Dense(width, activation="relu", kernel_initializer="he_normal") for _ in range(depth)]
    return keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(10)])


def cnn() -> keras.Model:
    return keras.Sequential([
        keras.Input((64,)), layers.Reshape((8, 8, 1)),
        layers.Conv2D(32, 3, padding="same", activation="relu"),
        layers.Conv2D(64, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(), layers.Conv2D(64, 3, padding="same", activation="relu"),
        layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(10),
    ])  # fmt: skip


def lstm() -> keras.Model:
    return keras.Sequential([keras.Input((64,)), layers.Reshape((8, 8)), layers.LSTM(128), layers.Dense(10)])


def transformer() -> keras.Model:
    inputs = keras.Input((64,))
    x = layers.Dense(64)(layers.Reshape((8, 8))(inputs))
    for _ in range(2):
        x = x + layers.MultiHeadAttention(4, 16)(*[layers.LayerNormalization()(x)] * 2)
        x = x + layers.Dense(64)(layers.Dense(128, activation="gelu")(layers.LayerNormalization()(x)))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


NETS = {
    "MLP 20 x 128": lambda: mlp(20, 128),
    "MLP 100 x 32": lambda: mlp(100, 32),
    "MLP 4 x 1024": lambda: mlp(4, 1024),
    "CNN": cnn,
    "LSTM": lstm,
    "transformer": transformer,
}
# A `Sequential` of 1000 layers is beyond the depth to which Python lets Keras recurse.
DEPTHS = {f"{depth} layers": lambda depth=depth: mlp(depth, 32) for depth in (10, 100, 300)}
WIDTHS = {"1e4": 64, "1e5": 200, "1e6": 690, "1e7": 2200, "1e8": 7050}
PARAMETERS = {f"{name} parameters": lambda width=width: mlp(3, width) for name, width in WIDTHS.items()}
CLIP = gr.clipping.by_global_norm(1.0)
VARIANTS = {
    "plain": ({}, lambda: []),
    "plain again": ({}, lambda: []),
    "keras clip": ({"global_clipnorm": 1.0}, lambda: []),
    "monitor": ({}, lambda: [gr.GradientMonitor()]),
    "monitor + guard": ({}, lambda: [gr.GradientMonitor(), gr.GradientGuard()]),
    "monitor + guard + clip": ({}, lambda: [gr.GradientMonitor(), gr.GradientGuard(clipping=CLIP)]),
    "fused": ({}, lambda: [gr.GradientMonitor(), gr.GradientGuard(clipping=CLIP, fused=True)]),
    "sampled every step": ({}, lambda: [gr.GradientMonitor(sample_every=1)]),
    "black box": ({}, lambda: [gr.BlackBox()]),
    "norms as metrics": ({}, lambda: []),
    "recompute": ({}, lambda: [Recompute()]),
}


# What is measured where a variant takes long: of nets that grow, of fresh models, on several cores, under XLA.
FEW_VARIANTS = ("plain", "plain again", "keras clip", "monitor", "monitor + guard + clip")
SHORT = ("sampled every step", "recompute")
# Where a step is fast, or slow; else 8.
ROUNDS = {"MLP 20 x 128": 10, "MLP 4 x 1024": 5, "CNN": 6, "LSTM": 10, "1e7 parameters": 5, "1e8 parameters": 3}


class TurnTaker(keras.callbacks.Callback):
    """Time an epoch from the end of the one before to its own, and wait there for the next turn: list it last.

    It has no hook at every batch, which would make Keras wait for every step's logs.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float]):
        super().__init__()
        self.clock, self.may_go, self.has_ended = clock, threading.Semaphore(0), threading.Semaphore(0)

    def on_epoch_end(self, epoch, logs=None):
        """Note the time of this epoch, and let another fit go on."""
        self.seconds = self.clock() - self.start
        self.has_ended.release()
        self.may_go.acquire()
        self.start = self.clock()


class LongFit(threading.Thread):
    """A fit that goes on by an epoch whenever it is asked to."""

    def __init__(self, model: keras.Model, callbacks: list, clock: Callable[[], float], **arguments):
        super().__init__(daemon=True)
        self.model, self.turn, self.error = model, TurnTaker(clock), None
        self.arguments = arguments | {"callbacks": [*callbacks, self.turn]}

    def run(self):
        """Fit until `close`."""
        self.turn.may_go.acquire()
        self.turn.start = self.turn.clock()
        try:
            self.model.fit(epochs=2**31, verbose=0, shuffle=False, **self.arguments)
            self.error = RuntimeError("A fit ended by itself, so that its epochs cannot be timed.")
        except Exception as error:
            self.error = error
        self.turn.has_ended.release()

    def epoch(self) -> float:
        """Go on to the end of the next epoch, and return the seconds that took."""
        self.turn.may_go.release()
        self.turn.has_ended.acquire()
        if self.error is not None:
            raise self.error
        return self.turn.seconds

    def close(self) -> None:
        """Let the fit end."""
        self.model.stop_training = True
        self.turn.may_go.release()
        self.join()


class FirstStep(keras.callbacks.Callback):
    """Note when the first step has ended."""

    def on_train_batch_end(self, batch, logs=None):
        """Read the clock once."""
        self.__dict__.setdefault("moment", time.process_time())


class NormsAsMetrics(keras.Model):
    """A train step that returns the norm of every gradient as a metric."""

    def train_step(self, data):
        """Train on a batch."""
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        norms = {f"norm_{number}": tf.norm(gradient) for number, gradient in enumerate(gradients)}
        return {"loss": loss, **norms}


class Recompute(keras.callbacks.Callback):
    """The gradients once more, for their norms: the usual answer."""

    def __init__(self):
        super().__init__()
        x, y = digits(BATCH)
        self.x, self.y = tf.constant(x), tf.constant(y)

    def on_train_batch_end(self, batch, logs=None):
        """Compute and read every norm."""
        with tf.GradientTape() as tape:
            loss = self.model.compute_loss(y=self.y, y_pred=self.model(self.x, training=True))
        gradients = tape.gradient(loss, self.model.trainable_variables)
        self.norms = [float(tf.norm(gradient)) for gradient in gradients if gradient is not None]


def digits(samples: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    times = -(-samples // len(x))
    return np.tile((x / 16).astype("float32"), (times, 1))[:samples], np.tile(y, times)[:samples]


def batches(samples: int) -> tf.data.Dataset:
    x, y = digits(samples)
    return tf.data.Dataset.from_tensor_slices((x.reshape(-1, BATCH, x.shape[1]), y.reshape(-1, BATCH)))


def build(make, variant: str, xla: bool) -> tuple[keras.Model, list]:
    arguments, callbacks = VARIANTS[variant]
    keras.utils.set_random_seed(0)
    model = make()
    if variant == "norms as metrics":
        model = NormsAsMetrics(model.inputs, model.outputs)
    model.compile(
        optimizer=keras.optimizers.Adam(1e-4, **arguments),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=xla,
    )
    return model, callbacks()


def measure(
    make, variants: list[str], *, rounds: int, steps: int, cores: int, xla: bool
) -> dict[str, dict[str, float]]:
    """Return by variant the median ratio of an epoch to the plain one, and its spread."""
    clock = time.process_time if cores == 1 else time.perf_counter
    fits: dict[str, LongFit] = {}
    taking_turns = [variant for variant in variants if variant not in SHORT]
    for variant in taking_turns:
        model, callbacks = build(make, variant, xla)
        data = batches(steps * BATCH).repeat()
        data_arguments = {"x": data, "steps_per_epoch": steps, "validation_data": batches(VALIDATION)}
        fits[variant] = LongFit(model, callbacks, clock, **data_arguments)
        fits[variant].start()
        fits[variant].epoch()  # in which it is traced
    random = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {variant: [] for variant in taking_turns}
    for turn in range(-1, rounds):
        gc.collect()
        for variant in random.permutation(taking_turns):
            spent = fits[variant].epoch()
            if turn >= 0:
                seconds[variant].append(spent)
    for fit in fits.values():
        fit.close()
    plain = np.median([seconds[variant] for variant in taking_turns if variant.startswith("plain")], axis=0)
    few = max(1, steps // 10)
    for variant in set(SHORT) & set(variants):
        spent = short_fits(make, variant, batches(few * BATCH), rounds, clock, xla)
        seconds[variant] = [steps / few * one for one in spent]
    found = {"milliseconds of a plain step": {"median": float(np.median(plain)) / steps * 1e3}}
    for variant in variants:
        ratios = np.array(seconds[variant]) / plain
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        found[variant] = {"median": float(middle), "spread": float((high - low) / 2 / np.sqrt(rounds))}
    return found


def short_fits(
    make, variant: str, data: tf.data.Dataset, rounds: int, clock: Callable[[], float], xla: bool
) -> list[float]:
    """Return the seconds of fits, one after the other, of one model."""
    model, callbacks = build(make, variant, xla)
    seconds = []
    for _ in range(-1, rounds):
        start = clock()
        model.fit(data, verbose=0, shuffle=False, callbacks=callbacks)
        seconds.append(clock() - start)
    return seconds[1:]


def start_up(make, variants: list[str], *, rounds: int, xla: bool) -> dict[str, dict[str, float]]:
    """Return by variant the median ratio of the time to the first step of a fresh model, and its spread."""
    data = batches(8 * BATCH)
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for turn in range(-1, rounds):
        for variant in np.random.default_rng(turn + 1).permutation(variants):
            model, callbacks = build(make, variant, xla)
            first = FirstStep()
            gc.collect()
            start = time.process_time()
            model.fit(data, verbose=0, shuffle=False, callbacks=[*callbacks, first])
            if turn >= 0:
                seconds[variant].append(first.moment - start)
    plain = np.array(seconds["plain"])
    found = {"seconds to the first plain step": {"median": float(np.median(plain))}}
    for variant in variants:
        ratios = np.array(seconds[variant]) / plain
        found[variant] = {"median": float(np.median(ratios)), "spread": float(np.ptp(ratios) / 2)}
    return found


def show(found: dict[str, dict]) -> None:
    columns = list(next(iter(found.values())))
    table = Table("", *columns)
    for net, row in found.items():
        spreads = [f" ±{cell['spread']:.3f}" if "spread" in cell else "" for cell in row.values()]
        cells = [f"{cell['median']:.3f}{spread}" for cell, spread in zip(row.values(), spreads, strict=True)]
        table.add_row(net, *cells)
    ours = [column for column in columns if "plain" not in column]
    for name, combine in (("median", np.median), ("worst", np.max)):
        if len(found) > 1:
            values = [f"{combine([row[column]['median'] for row in found.values()]):.3f}" for column in ours]
            table.add_row(name, *[""] * (len(columns) - len(ours)), *values)
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="5 to 10 by default: fewer where a step is slow")
    parser.add_argument("--steps", type=int, help="of an epoch; by default 200, and 25 of nets that grow")
    parser.add_argument("--nets", default="", help="parts of names of nets, with commas between them")
    parser.add_argument("--variants", default="", help="names of variants, with commas between them")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--xla", action="store_true", help="compile every step by XLA")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--start-up", action="store_true", help="time to the first step")
    kind.add_argument("--depth", action="store_true", help="10 to 300 layers")
    kind.add_argument("--parameters", action="store_true", help="1e4 to 1e8 parameters")
    arguments = parser.parse_args()
    kind = next((name for name in ("start_up", "depth", "parameters") if getattr(arguments, name)), "steps")
    options = {name: getattr(arguments, name) for name in ("rounds", "steps", "cores", "xla")}
    show(collect(kind, nets=arguments.nets, variants=arguments.variants, **options))


def collect(
    kind: str,
    *,
    rounds: int | None = None,
    steps: int | None = None,
    cores: int = 1,
    xla: bool = False,
    nets: str = "",
    variants: str = "",
) -> dict[str, dict]:
    """Return by net and variant the median ratio, its spread and the rounds behind it; print each net once done."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])
    prepared_step.LEAN_AFTER = 0
    known = {"depth": DEPTHS, "parameters": PARAMETERS}.get(kind, NETS)
    names = [name for name in VARIANTS if name in variants.split(",") or not variants]
    if not variants and (kind != "steps" or cores > 1 or xla):
        names = list(FEW_VARIANTS)
    names = list(dict.fromkeys(["plain", *names]))
    found = {}
    for net in [net for net in known if any(part.lower() in net.lower() for part in nets.split(","))]:
        if kind == "start_up":
            repeats = rounds or 5
            found[net] = start_up(known[net], names, rounds=repeats, xla=xla)
        else:
            repeats, epoch = rounds or ROUNDS.get(net, 8), steps or (200 if kind == "steps" else 25)
            found[net] = measure(known[net], names, rounds=repeats, steps=epoch, cores=cores, xla=xla)
        for cell in found[net].values():
            cell["rounds"] = repeats
        keras.backend.clear_session()
        show({net: found[net]})
    return found


if __name__ == "__main__":
    main()
