"""The decision of the pipeline, away from any model."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from gradrecipes.core.trace import APPLIED, SKIPPED_GRADIENT, SKIPPED_LOSS, SKIPPED_OVERFLOW
from gradrecipes.gradients.clipping import by_global_norm, by_value
from gradrecipes.gradients.pipeline import Pipeline
from gradrecipes.gradients.update import PipelineSettings, Update


def run(pipeline: Pipeline, gradients, *, in_graph: bool = True, **how):
    """Return (outcome, what was applied or None)."""
    applied = [tf.Variable(tf.fill([2], -7.0)) for _ in gradients]
    taken = tf.Variable(False)

    def apply_gradients(values, scale=None):
        taken.assign(True)
        values = values if scale is None else [value * scale for value in values]
        for variable, value in zip(applied, values, strict=True):
            variable.assign(value)

    def step():
        update = Update([tf.constant(g, tf.float32) for g in gradients], apply_gradients, **how)
        outcome = pipeline.record([pipeline.apply(update)])
        return {name: value for name, value in vars(outcome).items() if value is not None}

    outcome = (tf.function(step) if in_graph else step)()
    values = [variable.numpy() for variable in applied] if bool(taken.numpy()) else None
    return {name: value.numpy() for name, value in outcome.items()}, values


GUARDED = PipelineSettings(skip=True)


@pytest.mark.parametrize("in_graph", [True, False], ids=["graph", "eager"])
@pytest.mark.parametrize(
    ("gradient", "loss", "settings", "code"),
    [
        ([1.0, 2.0], 1.0, GUARDED, APPLIED),
        ([1.0, 2.0], np.nan, GUARDED, SKIPPED_LOSS),
        ([np.nan, 2.0], np.inf, GUARDED, SKIPPED_LOSS),
        ([np.nan, 2.0], 1.0, GUARDED, SKIPPED_GRADIENT),
        ([np.inf, 2.0], None, GUARDED, SKIPPED_GRADIENT),
        ([1e20, 0.0], 1.0, GUARDED, SKIPPED_OVERFLOW),
        ([1e-30, 5.0], 1.0, GUARDED, APPLIED),
        ([0.0, 0.0], 1.0, GUARDED, APPLIED),
        ([1e20, 0.0], 1.0, PipelineSettings(skip=True, clipping=by_global_norm(1.0)), APPLIED),
        ([np.inf, 0.0], 1.0, PipelineSettings(skip=True, clipping=by_value(1.0)), SKIPPED_GRADIENT),
        ([np.nan, 2.0], np.nan, PipelineSettings(), APPLIED),
    ],
)
def test_a_step_is_left_out_for_the_reason_that_it_has(gradient, loss, settings, code, in_graph):
    loss = None if loss is None else tf.constant(loss)
    pipeline = Pipeline(settings)
    outcome, applied = run(pipeline, [gradient], in_graph=in_graph, loss=loss)
    assert outcome["outcome"] == code
    assert (applied is None) == (code != APPLIED)
    assert int(pipeline.skipped_steps.numpy()) == (code != APPLIED)
    if settings == PipelineSettings() or (code == APPLIED and settings.clipping is None):
        np.testing.assert_array_equal(applied[0], np.float32(gradient))


def test_a_tiny_tensor_beside_a_plain_one_is_no_overflow():
    pipeline = Pipeline(GUARDED)
    outcome, applied = run(pipeline, [[1e-14, 0.0], [3.0, 4.0]], loss=tf.constant(1.0))
    assert outcome["outcome"] == APPLIED
    assert outcome["gradient_norm"] == pytest.approx(5.0)
    assert applied is not None


def test_the_overflow_is_that_of_the_unscaled_gradient():
    outcome, _ = run(Pipeline(GUARDED), [[1e20, 0.0]], loss=tf.constant(1.0), loss_scale=2.0**15)
    assert outcome["outcome"] == APPLIED
    assert outcome["gradient_norm"] == pytest.approx(1e20 / 2**15)
    outcome, _ = run(Pipeline(GUARDED), [[1e25, 0.0]], loss=tf.constant(1.0), loss_scale=2.0**15)
    assert outcome["outcome"] == SKIPPED_OVERFLOW


def test_the_norm_that_is_reported_is_that_before_clipping():
    pipeline = Pipeline(PipelineSettings(clipping=by_global_norm(1.0)))
    outcome, applied = run(pipeline, [[3.0, 0.0], [0.0, 4.0]])
    assert outcome["gradient_norm"] == pytest.approx(5.0)
    assert outcome["clip_factor"] == pytest.approx(0.2)
    np.testing.assert_allclose(applied, [[0.6, 0.0], [0.0, 0.8]], rtol=1e-6)
    assert int(pipeline.clipped_steps.numpy()) == 1


def test_skips_in_a_row_are_counted_anew_after_a_good_step():
    pipeline = Pipeline(GUARDED)
    counts = []
    for value in (np.nan, np.nan, 1.0, np.nan):
        run(pipeline, [[value, 0.0]], loss=tf.constant(1.0))
        counts.append((int(pipeline.skipped_steps.numpy()), int(pipeline.consecutive_skips.numpy())))
    assert counts == [(1, 1), (2, 2), (2, 0), (3, 1)]
