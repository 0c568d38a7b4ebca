"""At which depth a gradient, or the plain sum of its squares, overflows float32: predicted and measured."""

from __future__ import annotations

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import gradrecipes as gr
from benchmarks.record import Record, mean_figure, save_plot, share_figure
from benchmarks.reproductions.runs import digits
from gradrecipes.core.signal_theory import backward_factor, forward_factor

WIDTH, VARIANCE, SEEDS, BATCH = 256, 4.0, 5, 16
DEEPEST = 290
EXPECTED = {  # (loss, what overflows): the depths of theory and simulation
    ("squared error", "sum of squares"): (60, 64),
    ("squared error", "entry"): (128, 130),
    ("cross-entropy", "sum of squares"): (118, 128),
    ("cross-entropy", "entry"): (252, 256),
}
LOSSES = {
    "squared error": lambda y, out: tf.reduce_mean(tf.reduce_sum((out - tf.one_hot(y, 10)) ** 2, 1)) / 2,
    "cross-entropy": lambda y, out: tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, out)),
}
BETWEEN = 90  # layers: between both overflows under the squared error
FIT_SEEDS, FIT_STEPS = 20, 5


def first_overflow(layers, head, x, y, loss, what, *, low: int, high: int) -> int:
    """Return the smallest depth whose gradient overflows, by bisection; deeper nets share the first layers."""

    def overflows(depth: int) -> bool:
        with tf.GradientTape() as tape:
            h = x
            for layer in layers[:depth]:
                h = layer(h)
            value = loss(y, head(h))
        gradients = tape.gradient(value, [layer.kernel for layer in layers[:depth]])
        if what == "sum of squares":  # as `global_clipnorm` has it
            return not bool(tf.math.is_finite(tf.add_n([tf.reduce_sum(tf.square(g)) for g in gradients])))
        return not all(bool(tf.reduce_all(tf.math.is_finite(g))) for g in gradients)

    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if overflows(middle) else (middle, high)
    return high


def survives_a_fit(seed: int, **arguments) -> bool:
    """Whether the weights of the net between both overflows are finite after some steps."""
    keras.utils.set_random_seed(seed)
    x, y, _, _ = digits()
    hidden = [keras.layers.Dense(64, "relu", kernel_initializer=wide()) for _ in range(BETWEEN)]
    model = keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10)])
    model.compile(keras.optimizers.SGD(0.01, **arguments.get("optimizer", {})), "mse")
    rows = 16 * FIT_STEPS
    targets = np.eye(10, dtype=np.float32)[y[:rows]]
    model.fit(x[:rows], targets, batch_size=16, verbose=0, callbacks=arguments.get("callbacks", []))
    return all(np.isfinite(weight).all() for weight in model.get_weights())


def wide() -> keras.initializers.Initializer:
    return gr.initializers.ScaledInitializer(VARIANCE**0.5)


def measure() -> Record:
    x, y, _, _ = digits()
    x, y = tf.constant(x[:BATCH]), tf.constant(y[:BATCH])
    depths: dict[tuple[str, str], list[int]] = {key: [] for key in EXPECTED}
    layers = [keras.layers.Dense(WIDTH, "relu", use_bias=False, kernel_initializer="zeros") for _ in range(DEEPEST)]
    head = keras.layers.Dense(10, use_bias=False, kernel_initializer="zeros")
    h = x
    for layer in layers:
        h = layer(h)
    head(h)
    for seed in range(SEEDS):
        keras.utils.set_random_seed(seed)
        for layer in layers:
            layer.kernel.assign(wide()(layer.kernel.shape))
        head.kernel.assign(gr.initializers.ScaledInitializer(1.0)(head.kernel.shape))
        for (loss, what), found in depths.items():
            low, high = (int(factor * EXPECTED[loss, what][0]) for factor in (0.8, 1.15))
            found.append(first_overflow(layers, head, x, y, LOSSES[loss], what, low=low, high=high))
    figures = [
        mean_figure(f"first depth at which the {what} overflows, {loss}", found, expected=EXPECTED[loss, what])
        for (loss, what), found in depths.items()
    ]
    keras_alone = sum(survives_a_fit(seed, optimizer={"global_clipnorm": 1.0}) for seed in range(FIT_SEEDS))
    ours = 0
    for seed in range(FIT_SEEDS):
        guard = gr.GradientGuard(clipping=gr.clipping.by_global_norm(1.0))
        ours += survives_a_fit(seed, callbacks=[guard])
        keras.backend.clear_session()
    figures += [
        share_figure(
            f"finite weights after fit, {BETWEEN} layers, global_clipnorm of Keras", keras_alone, FIT_SEEDS, expected=0
        ),
        share_figure(
            f"finite weights after fit, {BETWEEN} layers, by_global_norm of gradrecipes", ours, FIT_SEEDS, expected=1
        ),
    ]
    drawing, axes = plt.subplots(figsize=(6, 3.5))
    for place, ((loss, what), found) in enumerate(depths.items()):
        axes.plot([place] * SEEDS, found, "o", alpha=0.5, color="C0")
        axes.plot([place - 0.25, place + 0.25], [EXPECTED[loss, what][1]] * 2, color="C1")
    axes.set_xticks(range(len(depths)), [f"{what}\n{loss}" for loss, what in depths], fontsize=8)
    axes.set_ylabel("first depth that overflows\n(line: theory)")
    rho = forward_factor("relu", VARIANCE), backward_factor("relu", VARIANCE)
    return Record(
        "overflow_depth",
        "The depth at which float32 overflows",
        "make bench ONLY=overflow_depth",
        figures,
        source="Mean-field theory, arXiv 1606.05340 and 1611.01232; the lower or upper end from a simulation in numpy.",
        setting=f"Plain ReLU nets, width {WIDTH}, weights of variance {VARIANCE:g}/fan_in, digits, batch {BATCH}, "
        f"{SEEDS} "
        f"initializations. The fits: width 64, {BETWEEN} layers, squared error, SGD 0.01, {FIT_STEPS} steps.",
        findings=[f"Theory: a factor of {rho[0]:.4f} a layer forwards, {rho[1]:.4f} backwards."],
        plot=save_plot(drawing, "overflow_depth"),
    )
