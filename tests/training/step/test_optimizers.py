"""Every optimizer that Keras ships: watched and guarded, it does to the bit what it does alone."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest

import gradrecipes as gr
from gradrecipes.gradients.packing import LARGE
from tests.training.nets import assert_same_state, deterministic, digits, layers, seeded, state

BATCH, BATCHES, BAD = 16, 3, 1
shipped = keras.optimizers


def by_path(**how):
    """Return one optimizer for the first layer and another for the rest."""
    chosen = shipped.OptimizerMap(shipped.SGD(0.1, momentum=0.9), {".*first.*": shipped.Adam(0.01)})
    return shipped.MultiOptimizer(chosen, **how)


# Each class once under its own name, then what else is worth a row. Those that older releases lack are left out there.
MAKERS = {
    "Adadelta": lambda: shipped.Adadelta(0.5),
    "Adafactor": lambda: shipped.Adafactor(0.01, epsilon_1=1e-12),  # its default 1e-30 makes NaN of a zero gradient
    "Adagrad": lambda: shipped.Adagrad(0.1),
    "Adam": lambda: shipped.Adam(0.01),
    "AdamW": lambda: shipped.AdamW(0.01, weight_decay=0.1),
    "Adamax": lambda: shipped.Adamax(0.01),
    "Ftrl": lambda: shipped.Ftrl(0.1, l1_regularization_strength=0.01),
    "Lamb": lambda: shipped.Lamb(0.01),
    "Lion": lambda: shipped.Lion(0.001),
    "LossScaleOptimizer": lambda: shipped.LossScaleOptimizer(shipped.Adam(0.01), initial_scale=256.0),
    "MultiOptimizer": by_path,
    "Muon": lambda: shipped.Muon(0.01),
    "Nadam": lambda: shipped.Nadam(0.01),
    "RMSprop": lambda: shipped.RMSprop(0.01, momentum=0.5, centered=True),
    "SGD": lambda: shipped.SGD(0.1, momentum=0.9, nesterov=True),
    "ScheduleFreeAdamW": lambda: shipped.ScheduleFreeAdamW(0.01),
    "Adam, amsgrad": lambda: shipped.Adam(0.01, amsgrad=True),
    "Muon, accumulating": lambda: shipped.Muon(0.01, gradient_accumulation_steps=2),
    "MultiOptimizer, scaled": lambda: by_path(loss_scale_factor=64.0),
    "MultiOptimizer in LossScaleOptimizer": lambda: shipped.LossScaleOptimizer(by_path(), initial_scale=256.0),
}
ABSTRACT = {"Optimizer"}
# The others in the second tier.
FIRST_TIER = {"Adam", "SGD", "MultiOptimizer in LossScaleOptimizer"}


def kinds() -> set[str]:
    found = inspect.getmembers(shipped, inspect.isclass)
    return {name for name, kind in found if issubclass(kind, shipped.Optimizer)} - ABSTRACT


def rows() -> list:
    found = []
    for name, make in MAKERS.items():
        named = set(name.replace(",", "").split())
        if named & set(MAKERS) <= kinds():
            found.append(pytest.param(make, id=name, marks=() if name in FIRST_TIER else pytest.mark.slow))
    return found


def net() -> keras.Model:
    return keras.Sequential(
        [keras.Input((64,)), layers.Dense(16, activation="tanh", name="first"), layers.Dense(10, name="last")]
    )


def fit(model, x, y, *callbacks):
    keras.utils.set_random_seed(2)
    return model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=list(callbacks)).history


def test_the_table_lists_every_optimizer_that_keras_ships():
    assert kinds() <= set(MAKERS)


@pytest.mark.parametrize("make", rows())
def test_a_bad_batch_is_as_if_it_had_never_come_and_all_else_is_untouched(make):
    x, y = digits(BATCH * BATCHES)
    x[BAD * BATCH + 3, 7] = np.nan
    keep = np.r_[: BAD * BATCH, (BAD + 1) * BATCH : len(x)]
    plain, guarded = seeded(net, make()), seeded(net, make())
    # Built within the trace of a first step, ScheduleFreeAdamW loses its copy of the weights and trains from zeros.
    # The pipeline builds an optimizer before; so does the plain fit here.
    plain.optimizer.build(plain.trainable_variables)
    before = [w.copy() for w in plain.get_weights()]
    monitor, guard = gr.GradientMonitor(), gr.GradientGuard()
    with deterministic(rewrites=False):
        theirs = fit(plain, x[keep], y[keep])
        mine = fit(guarded, x, y, monitor, guard)
    assert any((a != b).any() for a, b in zip(plain.get_weights(), before, strict=True))
    assert_same_state(guarded, plain)
    assert {name: mine[name] for name in theirs} == theirs
    assert [(event.batch, event.reason) for event in guard.events] == [(BAD, "nonfinite_loss")]
    assert np.isfinite(monitor.trace.gradient_norm[~monitor.trace.skipped]).all()


@pytest.mark.parametrize(
    "make", [p for p in rows() if "," in p.id or " in " in p.id or p.id in ("Adam", "MultiOptimizer")]
)
def test_a_nan_in_every_batch_leaves_every_variable_as_it_was(make):
    x, y = digits(BATCH * BATCHES)
    model = seeded(net, make())
    fit(model, x[:BATCH], y[:BATCH])  # so that all slots exist
    before = {v.path: np.array(v) for v in [*model.variables, *model.optimizer.variables]}
    x[::BATCH, 7] = np.nan
    assert fit(model, x, y, gr.GradientGuard(clipping=gr.clipping.by_norm(1.0)))["skipped_steps"] == [BATCHES]
    for variable in [*model.variables, *model.optimizer.variables]:
        np.testing.assert_array_equal(np.array(variable), before[variable.path], err_msg=variable.path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: shipped.AdamW(0.01, weight_decay=0.1),
        lambda: shipped.Nadam(0.01),
        lambda: shipped.Adam(0.01, use_ema=True, ema_overwrite_frequency=1),
    ],
    ids=["decay", "a product of its own", "average"],
)
def test_under_xla_a_nan_leaves_what_is_assigned_past_an_optimizers_methods_too(make):
    def bound():
        large = LARGE // 64
        hidden = [layers.Dense(large, kernel_constraint=keras.constraints.UnitNorm()), layers.Dense(64)]
        return keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(10)])

    x, y = digits(BATCH * BATCHES)
    model = seeded(bound, make(), jit_compile=True)
    fit(model, x[:BATCH], y[:BATCH])
    before = state(model)
    x[::BATCH, 7] = np.nan
    assert fit(model, x, y, gr.GradientGuard(clipping=gr.clipping.by_norm(1.0)))["skipped_steps"] == [BATCHES]
    assert before.keys() == state(model).keys()
    for name, value in state(model).items():
        if "metric" not in name and "mean" not in name:
            np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_an_optimizer_of_ones_own_may_do_with_its_counter_what_only_a_variable_can():
    class Fading(keras.optimizers.SGD):
        def update_step(self, gradient, variable, learning_rate):
            count = keras.ops.cast(self.iterations.value + 1, "float32")
            self.assign_sub(variable, learning_rate * gradient / keras.ops.sqrt(count))

    x, y = digits(2 * BATCH)
    plain, guarded = seeded(net, Fading(0.1)), seeded(net, Fading(0.1))
    fit(plain, x, y)
    fit(guarded, x, y, gr.GradientGuard())
    for mine, theirs in zip(guarded.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_a_layer_made_trainable_without_compiling_is_told_in_words():
    x, y = digits(BATCH)
    model = seeded(net)
    model.layers[0].trainable = False
    model.compile("adam", model.loss)
    fit(model, x, y)
    model.layers[0].trainable = True
    with pytest.raises(ValueError, match="trainable only since the model was compiled"):
        fit(model, x, y, gr.GradientGuard())
    fit(model, x, y)
    model.compile("adam", model.loss)
    assert fit(model, x, y, gr.GradientGuard())["skipped_steps"] == [0]
