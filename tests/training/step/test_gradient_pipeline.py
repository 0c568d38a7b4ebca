"""The pipeline in a loop of one's own, and in models with a train step of their own."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from tests.training.mode_nets import OwnStep
from tests.training.nets import all_finite, digits, two_dense

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def loop(model, pipeline, *, jit_compile=None):
    @tf.function(jit_compile=jit_compile)
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = LOSS(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        outcome = pipeline.apply(gradients, model.trainable_variables, loss=loss)
        return {"outcome": outcome.outcome, "gradient_norm": outcome.gradient_norm, "clip_factor": outcome.clip_factor}

    return step


@pytest.mark.parametrize("jit_compile", [None, True], ids=["graph", "xla"])
def test_a_loop_by_hand_clips_reports_and_skips(jit_compile):
    keras.utils.set_random_seed(0)
    model, (x, y) = two_dense(), digits(64)
    clipping = gr.clipping.by_global_norm(0.1)
    optimizer = keras.optimizers.SGD(1.0)
    pipeline = gr.GradientPipeline(optimizer, clipping=clipping, xla=bool(jit_compile))
    step = loop(model, pipeline, jit_compile=jit_compile)

    before = model.get_weights()
    outcome = step(x, y)
    change = np.sqrt(sum(np.sum(np.square(a - b)) for a, b in zip(model.get_weights(), before, strict=True)))
    assert change == pytest.approx(0.1, rel=1e-4)
    assert int(outcome["outcome"]) == 0
    assert float(outcome["clip_factor"]) == pytest.approx(0.1 / float(outcome["gradient_norm"]), rel=1e-5)

    before = model.get_weights()
    x[3, 3] = np.inf
    assert int(step(x, y)["outcome"]) == 1
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert pipeline.skipped_steps == 1
    assert int(optimizer.iterations.numpy()) == 1
    assert "apply" not in optimizer.__dict__


def test_what_is_no_optimizer_or_no_clipping_is_refused():
    with pytest.raises(TypeError, match=r"must be a Keras optimizer\. Received: 'adam'\. Make one with"):
        gr.GradientPipeline("adam")
    with pytest.raises(TypeError, match=r"`clipping` of GradientPipeline .*Received: 1\.0"):
        gr.GradientPipeline(keras.optimizers.SGD(), clipping=1.0)


class NoUpdate(OwnStep):
    def train_step(self, data):
        return {"my_loss": self.compute_loss(y=data[1], y_pred=self(data[0]))}


def test_a_train_step_of_its_own_is_monitored_and_guarded():
    x, y = digits(96)
    x[40] = np.nan
    model = OwnStep()
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss=LOSS)
    monitor, guard = gr.GradientMonitor(), gr.GradientGuard()
    history = model.fit(x, y, batch_size=32, shuffle=False, verbose=0, callbacks=[monitor, guard]).history
    assert {"my_loss", "gradient_norm", "skipped_steps"} <= set(history)
    assert [event.batch for event in guard.events] == [1]
    assert all_finite(model)
    assert monitor.trace.layers == (model.hidden.name, model.out.name)
    assert np.isfinite(monitor.trace.gradient_norm).tolist() == [True, False, True]


def test_a_train_step_that_applies_nothing_is_told_of_the_loop_by_hand():
    x, y = digits(32)
    model = NoUpdate()
    model.compile(optimizer="sgd", loss=LOSS)
    with pytest.raises(ValueError, match=r"applied no gradients .*gr\.GradientPipeline"):
        model.fit(x, y, verbose=0, callbacks=[gr.GradientGuard()])


class OwnPipeline(OwnStep):
    """Apply gradients through a pipeline of its own, in a train step that `fit` runs."""

    def __init__(self, optimizer, **how):
        super().__init__()
        self.pipeline = gr.GradientPipeline(optimizer, **how)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        result = self.pipeline.apply(gradients, self.trainable_variables, loss=loss)
        return {"loss": loss, "norm": result.gradient_norm, "factor": result.clip_factor, "outcome": result.outcome}


def fit_own(*callbacks, bad=False, how=None, epochs=2, **compiled):
    keras.utils.set_random_seed(0)
    x, y = digits(96)
    if bad:
        x[40] = np.nan
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model = OwnPipeline(optimizer, **{"clipping": gr.clipping.by_global_norm(0.3), **(how or {})})
    model.compile(loss=LOSS, **compiled)
    model.fit(x, y, batch_size=32, shuffle=False, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return model


CALLBACKS = {
    "monitor": lambda: [gr.GradientMonitor()],
    "guard": lambda: [gr.GradientGuard()],
    "both": lambda: [gr.GradientGuard(), gr.GradientMonitor()],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "compiled"),
    [("monitor", {}), ("guard", {}), ("both", {}), ("both", {"jit_compile": True}), ("monitor", {"run_eagerly": True})],
    ids=str,
)
def test_a_pipeline_in_a_train_step_stands_beside_callbacks(kind, compiled):
    plain, callbacks = fit_own(bad=True), CALLBACKS[kind]()
    how = {"xla": True} if "jit_compile" in compiled else None
    beside = fit_own(*callbacks, bad=True, how=how, **compiled)
    for one, other in zip(beside.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
    assert beside.pipeline.skipped_steps == plain.pipeline.skipped_steps == 2
    trace = callbacks[-1].trace
    assert trace.skipped.tolist() == [False, True, False] * 2
    applied = trace.steps["outcome"] == 0
    np.testing.assert_allclose(
        (trace.steps["clip_factor"] * trace.gradient_norm)[applied], np.minimum(trace.gradient_norm[applied], 0.3), 1e-4
    )
    assert "apply" not in beside.pipeline.optimizer.__dict__


def test_a_guard_bounds_the_rate_of_a_pipelines_optimizer_and_clips_first():
    guard = gr.GradientGuard(clipping=gr.clipping.by_global_norm(0.01))
    clipped = fit_own(guard, epochs=1)
    alone = fit_own(epochs=1, how={"clipping": gr.clipping.by_global_norm(0.01)})
    for one, other in zip(clipped.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)
    assert (guard.trace.steps["clip_factor"] < 1).all()


def test_an_optimizer_that_the_model_does_not_hold_is_refused_with_what_to_do():
    x, y = digits(32)
    elsewhere = gr.GradientPipeline(keras.optimizers.SGD(0.1))

    class Elsewhere(OwnStep):
        def train_step(self, data):
            with tf.GradientTape() as tape:
                loss = self.compute_loss(y=data[1], y_pred=self(data[0], training=True))
            variables = self.trainable_variables
            elsewhere.apply(tape.gradient(loss, variables), variables, loss=loss)
            return {"loss": loss}

    model = Elsewhere()
    model.compile(loss=LOSS)
    with pytest.raises(ValueError, match=r"as an attribute of the model: self\.pipeline = gr\.GradientPipeline"):
        model.fit(x, y, verbose=0, callbacks=[gr.GradientGuard()])
