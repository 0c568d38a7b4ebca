"""One meaning in every mode that `fit` has: the true norm, the same weights, a bad batch left out, the bound kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from tests.training import mode_nets as nets
from tests.training.nets import compiled, digits, recurrent, state, with_state

BATCH, GOOD, BAD = 16, 6, 3  # samples of a batch, sound batches, and the place of the bad one among them
RATE, BOUND = 0.1, 0.02
SGD = keras.optimizers.SGD
WEIGHTS = dict(enumerate(np.linspace(0.2, 2.0, 10)))


@dataclass(frozen=True)
class Mode:
    """How a net is made, compiled, fed and measured.

    Args:
        net: Makes it.
        optimizer: Arguments of SGD, or a function that makes another optimizer.
        compile: Arguments of `compile`.
        fit: Arguments of `fit`.
        data: Makes (x, y, sample_weight) of so many samples; a row of the last array in x is made NaN.
        policy: The dtype policy.
        rtol: Of norms and losses.
        atol: Of the weights and of what else a training changes.
        accumulate: Micro-batches of an update.
        decay: The decoupled weight decay.
    """

    net: Callable[[], keras.Model] = nets.two_dense_tanh
    optimizer: dict[str, Any] | Callable[[], keras.optimizers.Optimizer] = field(default_factory=dict)
    compile: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    data: Callable[[int], tuple] = lambda samples: (*digits(samples), None)
    policy: str = "float32"
    rtol: float = 1e-5
    atol: float = 1e-6
    accumulate: int = 1
    decay: float = 0.0

    def make(self, **compile_arguments: Any) -> keras.Model:
        policy = keras.mixed_precision.dtype_policy()
        keras.mixed_precision.set_dtype_policy(self.policy)
        keras.utils.set_random_seed(1)
        try:
            model = self.net()
        finally:
            keras.mixed_precision.set_dtype_policy(policy)
        optimizer = (
            self.optimizer()
            if callable(self.optimizer)
            else SGD(**{"learning_rate": RATE, "momentum": 0.9, **self.optimizer})
        )
        return compiled(model, optimizer, **{**self.compile, **compile_arguments})

    def batches(self, samples: int) -> tuple:
        x, y, weight = self.data(samples)
        if "class_weight" in self.fit:
            weight = np.array([self.fit["class_weight"][label] for label in y], np.float32)
        return x, y, weight


def scaled(**how):
    return lambda: keras.optimizers.LossScaleOptimizer(SGD(RATE, momentum=0.9), **how)


MODES = {
    "graph": Mode(),
    "eager": Mode(compile={"run_eagerly": True}),
    "xla": Mode(compile={"jit_compile": True}, rtol=1e-4, atol=1e-5),
    "steps_per_execution": Mode(compile={"steps_per_execution": 4}),
    "accumulation_and_loss_scale": Mode(
        optimizer={"gradient_accumulation_steps": 2, "loss_scale_factor": 64.0}, accumulate=2
    ),
    "loss_scaler": Mode(optimizer=scaled(initial_scale=1024.0)),
    "mixed_float16": Mode(policy="mixed_float16", rtol=0.02, atol=1e-3),
    "mixed_bfloat16": Mode(policy="mixed_bfloat16", rtol=0.05, atol=5e-3),
    "average_decay_and_schedule": Mode(
        optimizer={
            "use_ema": True,
            "ema_momentum": 0.5,
            "ema_overwrite_frequency": 4,
            "weight_decay": 0.1,
            "learning_rate": keras.optimizers.schedules.CosineDecay(RATE, 8),
        },
        decay=0.1,
    ),
    "sample_weights": Mode(data=lambda n: (*digits(n), np.linspace(0.1, 3, n, dtype=np.float32))),
    "class_weights": Mode(fit={"class_weight": WEIGHTS}),
    "several_inputs_outputs_losses": Mode(
        net=nets.two_in_two_out, compile=nets.TWO_LOSSES, data=nets.two_in_two_out_data
    ),
    "subclassed": Mode(net=nets.subclassed),
    "own_train_step": Mode(net=nets.OwnStep, compile={"metrics": None}),
    "frozen_and_none": Mode(net=nets.with_frozen_and_unused),
    "embedding": Mode(net=nets.tokens_and_features, data=nets.tokens_and_features_data),
    "embedding_and_accumulation_xla": Mode(
        net=nets.tokens_and_features,
        data=nets.tokens_and_features_data,
        optimizer={"gradient_accumulation_steps": 2},
        accumulate=2,
        compile={"jit_compile": True},
        rtol=1e-4,
        atol=1e-5,
    ),
    "masked_recurrent": Mode(net=recurrent),
    "nested": Mode(net=nets.nested),
    "moving_statistics_and_seeds": Mode(net=with_state),
}
FIRST_TIER = {
    "graph",
    "steps_per_execution",
    "accumulation_and_loss_scale",
    "loss_scaler",
    "mixed_float16",
    "several_inputs_outputs_losses",
    "own_train_step",
    "embedding",
    "moving_statistics_and_seeds",
}
# The clip bounds what the test above has measured, so fewer modes tell it apart.
FIRST_TIER_CLIPPED = {"graph", "accumulation_and_loss_scale", "mixed_float16", "own_train_step"}


def table(first_tier: set[str]) -> list:
    return [
        pytest.param(mode, id=name, marks=[pytest.mark.slow] * (name not in first_tier)) for name, mode in MODES.items()
    ]


UNUSED = pytest.mark.filterwarnings("ignore:Gradients do not exist for variables")  # so says Keras of the unused layer


def rows(structure, chosen):
    return None if structure is None else tf.nest.map_structure(lambda array: array[chosen], structure)


def with_a_bad_batch(data):
    """Return the data with a batch put in at `BAD` that holds one NaN: of the first batch otherwise."""
    order = np.concatenate([np.arange(BAD * BATCH), np.arange(BATCH), np.arange(BAD * BATCH, GOOD * BATCH)])
    x, y, weight = (rows(part, order) for part in data)
    tf.nest.flatten(x)[-1][BAD * BATCH + 5, 7] = np.nan
    return x, y, weight


class Witness(keras.callbacks.Callback):
    """Take the gradient of each coming batch with a tape, on a twin with the model's own state."""

    def __init__(self, twin, data):
        super().__init__()
        self.twin, self.data, self.gradients, self.losses = twin, data, [], []

    def on_train_batch_begin(self, batch, logs=None):
        for mine, theirs in zip(self.twin.variables, self.model.variables, strict=True):
            mine.assign(theirs)
        x, y, weight = (rows(part, slice(batch * BATCH, (batch + 1) * BATCH)) for part in self.data)
        x = tf.nest.map_structure(tf.constant, x)
        with tf.GradientTape() as tape:
            outputs = self.twin(x, training=True)
            loss = self.twin.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=weight)
        gradients = tape.gradient(loss, [v.value for v in self.twin.trainable_variables])
        dense = [np.asarray(tf.convert_to_tensor(g), np.float64).ravel() for g in gradients if g is not None]
        self.gradients.append(np.concatenate(dense))
        self.losses.append(float(loss))

    def norms(self, accumulate: int) -> list[float]:
        """Return the norm of the mean gradient of each update."""
        return [float(np.linalg.norm(np.mean(part, axis=0))) for part in by_update(self.gradients, accumulate)]


def by_update(values, accumulate):
    return [values[first : first + accumulate] for first in range(0, len(values), accumulate)]


def fit(model, data, *callbacks, **how):
    x, y, weight = data
    if "class_weight" in how:
        weight = None
    how = {"batch_size": BATCH, "shuffle": False, "verbose": 0, **how}
    return model.fit(x, y, sample_weight=weight, callbacks=list(callbacks), **how).history


def assert_same(one, other, mode):
    mine, theirs = list(state(one).items()), list(state(other).values())
    assert len(mine) == len(theirs)
    for (name, value), expected in zip(mine, theirs, strict=True):
        value, expected = value.astype(np.float64), expected.astype(np.float64)
        np.testing.assert_allclose(value, expected, rtol=mode.atol, atol=mode.atol, err_msg=name)


@UNUSED
@pytest.mark.parametrize("mode", table(FIRST_TIER))
def test_norms_are_true_and_a_bad_batch_is_as_if_it_had_never_come(mode):
    data = mode.batches(GOOD * BATCH)
    plain = mode.make(steps_per_execution=1, jit_compile=False)  # so that the witness sees each batch
    witness = Witness(mode.make(), data)
    expected = fit(plain, data, witness, **mode.fit)

    model, monitor, guard = mode.make(), gr.GradientMonitor(), gr.GradientGuard()
    history = fit(model, with_a_bad_batch(data), monitor, guard, **mode.fit)

    assert history["skipped_steps"] == [1]
    assert [(event.kind, event.epoch, event.batch) for event in guard.events] == [("skip", 0, BAD)]
    assert guard.events[0].reason in ("nonfinite_loss", "nonfinite_gradient")  # a ReLU may swallow the NaN on its way
    taken_in = [batch for batch in range(GOOD + 1) if batch != BAD]
    steps = sorted([BAD, *(batches[-1] for batches in by_update(taken_in, mode.accumulate))])
    assert monitor.trace.steps["batch"].tolist() == steps
    assert monitor.trace.skipped.tolist() == [step == BAD for step in steps]
    sound = ~monitor.trace.skipped
    np.testing.assert_allclose(monitor.trace.gradient_norm[sound], witness.norms(mode.accumulate), rtol=mode.rtol)
    np.testing.assert_allclose(
        monitor.trace.loss[sound], np.mean(by_update(witness.losses, mode.accumulate), axis=1), rtol=mode.rtol
    )
    assert_same(model, plain, mode)
    for name, values in expected.items():
        assert history[name] == pytest.approx(values, rel=max(mode.rtol, 1e-5)), name


@UNUSED
@pytest.mark.parametrize("mode", table(FIRST_TIER_CLIPPED))
def test_the_clip_bounds_what_is_applied(mode):
    samples = BATCH * mode.accumulate
    model, monitor = mode.make(), gr.GradientMonitor()
    before = [np.asarray(v, np.float64) for v in model.trainable_variables]
    guard = gr.GradientGuard(clipping=gr.clipping.by_global_norm(BOUND))
    fit(model, mode.batches(samples), monitor, guard, **mode.fit)
    after = [np.asarray(v, np.float64) for v in model.trainable_variables]
    decayed = [(1 - RATE * mode.decay) * value for value in before]
    moved = np.sqrt(sum(np.sum(np.square(a - b)) for a, b in zip(after, decayed, strict=True)))
    assert moved == pytest.approx(RATE * BOUND, rel=max(1e-3, mode.rtol))
    assert monitor.trace.gradient_norm[-1] > BOUND
    factor = monitor.trace.steps["clip_factor"][-1]
    assert factor == pytest.approx(BOUND / monitor.trace.gradient_norm[-1], rel=1e-4)


@pytest.mark.parametrize("jit_compile", [None, True], ids=["graph", "xla"])
def test_a_loop_by_hand_gives_the_same_meaning(jit_compile):
    mode, data = Mode(), (*digits(GOOD * BATCH), None)
    plain, model = mode.make(), mode.make()
    witness = Witness(mode.make(), data)
    fit(plain, data, witness)
    pipeline = gr.GradientPipeline(model.optimizer, xla=bool(jit_compile))

    @tf.function(jit_compile=jit_compile)
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(y=y, y_pred=model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        outcome = pipeline.apply(gradients, model.trainable_variables, loss=loss)
        return outcome.outcome, outcome.gradient_norm

    x, y, _ = with_a_bad_batch(data)
    outcomes = [step(x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, len(x), BATCH)]
    codes = [int(code) for code, _ in outcomes]
    assert [i for i, code in enumerate(codes) if code] == [BAD]
    norms = [float(norm) for code, norm in outcomes if not int(code)]
    np.testing.assert_allclose(norms, witness.norms(1), rtol=1e-4)
    for mine, theirs in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_train_on_batch_before_between_and_after_fits_is_keras_own():
    x, y = digits(BATCH)
    model, plain = Mode().make(), Mode().make()
    callbacks = [gr.GradientMonitor(), gr.GradientGuard()]
    for one, joined in ((model, callbacks), (plain, [])):
        one.train_on_batch(x, y)
        fit(one, (x, y, None), *joined)
        logs = one.train_on_batch(x, y, return_dict=True)
        assert set(logs) == {"loss", "accuracy"}
        fit(one, (x, y, None), *joined)
        one.train_on_batch(x, y)
    assert len(callbacks[0].trace) == 2
    assert_same(model, plain, Mode())


def test_train_on_batch_in_the_middle_of_a_fit_does_not_break_it():
    x, y = digits(4 * BATCH)
    model, monitor, seen = Mode().make(), gr.GradientMonitor(), []
    during = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(model.train_on_batch(x[:BATCH], y[:BATCH]))
    )
    fit(model, (x, y, None), monitor, gr.GradientGuard(), during)
    assert len(seen) == 4
    assert len(monitor.trace) >= 4
    assert np.isfinite(monitor.trace.gradient_norm).all()
