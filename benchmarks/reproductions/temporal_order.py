"""Clipping widens the range of learning rates at which a simple RNN learns the order of two distant symbols."""

from __future__ import annotations

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import gradrecipes as gr
from benchmarks.record import Record, save_plot, share_figure
from gradrecipes.core.analysis.intervals import wilson_interval

LENGTH, UNITS, BATCH, SEEDS = 20, 50, 20, 20
UPDATES, EVERY, FRESH, SOLVED = 2000, 100, 500, 0.99
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
CLIPS = {"no clip": None, "clip at 1": 1.0}
# Of 8 seeds in a simulation, rate: (no clip after 14,500 updates, clip at 1 within 500)
EXPECTED = {0.1: (1 / 8, 1.0), 0.3: (0.0, 1.0)}


def sequences(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one-hot sequences `[count, LENGTH, 6]` and which of the four orders of A and B they hold."""
    symbols = random.integers(2, 6, size=(count, LENGTH))
    first = random.integers(LENGTH // 10, 2 * LENGTH // 10, size=count)
    second = random.integers(4 * LENGTH // 10, 5 * LENGTH // 10, size=count)
    kinds = random.integers(2, size=(count, 2))
    symbols[np.arange(count), first], symbols[np.arange(count), second] = kinds[:, 0], kinds[:, 1]
    return np.eye(6, dtype=np.float32)[symbols], 2 * kinds[:, 0] + kinds[:, 1]


def measure() -> Record:
    normal = {
        name: keras.initializers.RandomNormal(stddev=0.1) for name in ("kernel_initializer", "recurrent_initializer")
    }
    model = keras.Sequential([
        keras.Input((LENGTH, 6)), keras.layers.SimpleRNN(UNITS, unroll=True, **normal),
        keras.layers.Dense(4, kernel_initializer=normal["kernel_initializer"]),
    ])  # fmt: skip
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    others = [tf.constant(np.array(variable)) for variable in model.non_trainable_variables]  # dropout's seed, unused

    def update(weights, rate, x, y, clip):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            value = loss(y, model.stateless_call(weights, others, x, training=True)[0])
        gradients = tape.gradient(value, weights)
        if clip is not None:
            gradients = gr.clipping.clip_by_global_norm(gradients, clip)
        return [weight - rate * gradient for weight, gradient in zip(weights, gradients, strict=True)]

    steps = {}
    for name, clip in CLIPS.items():

        @tf.function(autograph=False)
        def several(weights, rates, x, y, clip=clip):
            """Make EVERY updates of every run, `[runs, *shape]`, on batches `[EVERY, BATCH, ...]`."""

            def one(number, weights):
                new = tf.vectorized_map(lambda run: update(*run, x[number], y[number], clip), (weights, rates))
                return number + 1, new

            return tf.while_loop(lambda number, _: number < EVERY, one, (0, weights), parallel_iterations=1)[1]

        steps[name] = several

    @tf.function(autograph=False)
    def outputs(weights, x):
        return tf.vectorized_map(lambda one: model.stateless_call(one, others, x, training=False)[0], weights)

    starts = []
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        starts.append([
            random.normal(scale=0.1, size=weight.shape).astype(np.float32) * (weight.ndim > 1)
            for weight in map(np.array, model.trainable_variables)
        ])  # fmt: skip
    runs = [(start, rate) for rate in RATES for start in starts]
    solved = {}
    for name in CLIPS:
        random = np.random.default_rng(0)  # both ways see the same sequences
        weights = [tf.constant(np.stack(parts)) for parts in zip(*[start for start, _ in runs], strict=True)]
        rates = tf.constant([rate for _, rate in runs], tf.float32)
        done = np.full(len(runs), np.inf)
        for turn in range(UPDATES // EVERY):
            drawn = [sequences(random, BATCH) for _ in range(EVERY)]
            weights = steps[name](weights, rates, *(tf.constant(np.stack(part)) for part in zip(*drawn, strict=True)))
            x, y = sequences(random, FRESH)
            right = (outputs(weights, tf.constant(x)).numpy().argmax(-1) == y).mean(1)
            done = np.where((right >= SOLVED) & np.isinf(done), (turn + 1) * EVERY, done)
        solved[name] = done.reshape(len(RATES), SEEDS)
    figures = []
    for place, rate in enumerate(RATES):
        for column, name in enumerate(CLIPS):
            count = int(np.isfinite(solved[name][place]).sum())
            expected = EXPECTED[rate][column] if rate in EXPECTED else None
            figures.append(
                share_figure(f"solved within {UPDATES} updates, rate {rate:g}, {name}", count, SEEDS, expected=expected)
            )
    soon = int((solved["clip at 1"][RATES.index(0.3)] <= 500).sum())
    figures.append(share_figure("solved within 500 updates, rate 0.3, clip at 1", soon, SEEDS, expected=1.0))
    drawing, axes = plt.subplots(figsize=(6, 3.5))
    for name in CLIPS:
        counts = np.isfinite(solved[name]).sum(1)
        bars = np.array(
            [[c / SEEDS - i.low, i.high - c / SEEDS] for c in counts for i in [wilson_interval(int(c), SEEDS)]]
        )
        axes.errorbar(RATES, counts / SEEDS, yerr=np.clip(bars.T, 0, 1), fmt="o-", capsize=3, label=name)
    axes.set(xscale="log", xlabel="learning rate", ylabel=f"solved within {UPDATES} updates")
    axes.legend()
    return Record(
        "temporal_order",
        "Temporal order: clipping widens the range of learning rates",
        "make bench ONLY=temporal_order",
        figures,
        source="Pascanu et al. 2013, arXiv 1211.5063; figures of a simulation in numpy, 8 seeds.",
        setting=f"Sequences of {LENGTH} of 6 symbols, 4 classes; tanh SimpleRNN({UNITS}), weights N(0, 0.1²), "
        "SGD, batch "
        f"{BATCH}; solved: {SOLVED:.0%} of {FRESH} fresh sequences, looked at every {EVERY} updates; {SEEDS} seeds.",
        findings=[f"At most {UPDATES} updates are made, where the simulation went on to 14,500 without a clip."],
        plot=save_plot(drawing, "temporal_order"),
    )
