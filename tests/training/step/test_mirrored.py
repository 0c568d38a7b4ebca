"""Two replicas: they meet once, and what is measured, decided and applied is that of one device."""

from __future__ import annotations

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from gradrecipes.compat.keras_private import DIVIDES_LOSS_AMONG_REPLICAS
from tests.training.mode_nets import tokens_and_features, tokens_and_features_data
from tests.training.nets import digits, divided, moved, seeded, two_dense, with_state

pytestmark = pytest.mark.alone
BATCH, STEPS, BOUND = 16, 4, 0.05
SGD = keras.optimizers.SGD


@pytest.fixture(scope="module")
def strategy():
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def build(strategy, net, make_optimizer, **how) -> keras.Model:
    with strategy.scope() if strategy is not None else contextlib.nullcontext():
        return seeded(net, make_optimizer(), **how)


def fit(model, x, y, *callbacks, **how):
    how = {"batch_size": BATCH, "shuffle": False, "verbose": 0, **how}
    return model.fit(x, y, callbacks=list(callbacks), **how).history


def digits_data(samples):
    return (*digits(samples), None)


def copies(variable) -> list[np.ndarray]:
    """Return what each replica holds of a variable."""
    value = getattr(variable, "value", variable)
    return [np.array(part) for part in getattr(value, "values", (value,))]


def changing(model):
    return [*model.variables, *model.optimizer.variables, *model.metrics_variables]


CASES = {
    "our clip": (two_dense, digits_data, lambda: SGD(0.5, momentum=0.9), gr.clipping.by_global_norm(BOUND)),
    "our adaptive clip": (two_dense, digits_data, lambda: SGD(0.5), gr.clipping.adaptive(0.01)),
    "the user's global_clipnorm": (two_dense, digits_data, lambda: SGD(0.5, global_clipnorm=BOUND), None),
    "the user's clipnorm": (two_dense, digits_data, lambda: SGD(0.5, clipnorm=BOUND), None),
    "embedding": (
        tokens_and_features,
        tokens_and_features_data,
        lambda: SGD(0.5, momentum=0.9),
        gr.clipping.by_global_norm(BOUND),
    ),
    "loss scaler": (
        two_dense,
        digits_data,
        lambda: keras.optimizers.LossScaleOptimizer(SGD(0.5), initial_scale=1024.0),
        gr.clipping.by_global_norm(BOUND),
    ),
    "weight decay and average": (
        two_dense,
        digits_data,
        lambda: SGD(0.5, weight_decay=0.1, use_ema=True),
        None,
    ),
}


@pytest.mark.skipif(DIVIDES_LOSS_AMONG_REPLICAS, reason="this Keras divides the loss among replicas")
def test_a_keras_that_does_not_divide_the_loss_is_refused(strategy):
    x, y = digits(BATCH)
    model = build(strategy, two_dense, lambda: SGD(0.1))
    for callback in (gr.GradientMonitor(), gr.GradientGuard()):
        with pytest.raises(ValueError, match=r"Gradient(Monitor|Guard) needs Keras 3\.8 .*2 replicas"):
            fit(model, x, y, callback)


@divided
@pytest.mark.parametrize("case", CASES)
def test_norms_losses_and_updates_are_those_of_one_device(strategy, case):
    net, data, optimizer, clipping = CASES[case]
    x, y, _ = data(BATCH * STEPS)
    found = []
    for where in (None, strategy):
        model = build(where, net, optimizer)
        monitor = gr.GradientMonitor()
        history = fit(model, x, y, monitor, gr.GradientGuard(clipping=clipping))
        assert len(monitor.trace) == STEPS  # once for both replicas
        found.append((model, monitor.trace, history))
    (one, alone, expected), (two, spread, history) = found
    np.testing.assert_allclose(spread.gradient_norm, alone.gradient_norm, rtol=1e-5)
    np.testing.assert_allclose(spread.loss, alone.loss, rtol=1e-5)
    np.testing.assert_allclose(spread.layer_gradient_norm, alone.layer_gradient_norm, rtol=1e-4, equal_nan=True)
    sample = "output_gradient_norm"
    np.testing.assert_allclose(spread.samples[sample], alone.samples[sample], rtol=1e-4, equal_nan=True)
    for mine, theirs in zip(changing(two), changing(one), strict=True):
        if mine.path.startswith("seed"):
            continue
        np.testing.assert_allclose(np.array(mine), np.array(theirs), rtol=1e-5, atol=1e-5, err_msg=mine.path)
        first, second = (copies(mine) * 2)[:2]
        if not any(mine is metric for metric in two.metrics_variables):  # each replica counts its own samples
            np.testing.assert_array_equal(first, second, err_msg=mine.path)
    assert history["accuracy"] == pytest.approx(expected["accuracy"])


@divided
def test_keras_alone_clips_each_share_and_misses_its_own_bound(strategy):
    x, y = digits(BATCH)

    def update(where, *callbacks):
        model = build(where, two_dense, lambda: SGD(1.0, global_clipnorm=BOUND))
        before = model.get_weights()
        fit(model, x, y, *callbacks)
        return moved(model, before)

    assert update(None) == pytest.approx(BOUND, rel=1e-4)
    assert update(strategy) > 1.3 * BOUND
    assert update(strategy, gr.GradientMonitor()) == pytest.approx(BOUND, rel=1e-4)


@divided
def test_the_gradients_of_the_replicas_are_summed_once(strategy, monkeypatch):
    x, y = digits(2 * BATCH)
    sums, scalars = [], []
    extended = type(strategy.extended)
    of_many, of_one = extended._batch_reduce_to, extended._reduce_to

    def batch_reduce_to(self, operation, pairs, options):
        sums.append(len(pairs))
        return of_many(self, operation, pairs, options)

    def reduce_to(self, operation, value, destinations, options):
        if tf.is_tensor(value):  # and no batch, by which Keras learns the shapes
            scalars.append(value.shape)
        return of_one(self, operation, value, destinations, options)

    monkeypatch.setattr(extended, "_batch_reduce_to", batch_reduce_to)
    monkeypatch.setattr(extended, "_reduce_to", reduce_to)
    counts = []
    for callbacks in ([], [gr.GradientGuard(clipping=gr.clipping.by_global_norm(BOUND))]):
        model = build(strategy, two_dense, lambda: SGD(0.1, momentum=0.9), run_eagerly=True, metrics=[])
        fit(model, x, y, *callbacks)
        counts.append(list(sums))
        assert all(shape == () for shape in scalars)  # losses and logs
        sums.clear()
    assert counts == [[4, 4], [4, 4]]  # four gradients, two steps: no sum more than Keras alone needs


@divided
def test_a_bad_sample_of_one_replica_leaves_all_of_them_as_they_were(strategy):
    x, y = digits(3 * BATCH)
    model = build(strategy, with_state, lambda: keras.optimizers.Adam(0.01))
    guard = gr.GradientGuard()
    fit(model, x, y, guard)
    before = {v.path: copies(v) for v in [*model.variables, *model.optimizer.variables]}
    bad = x[:BATCH].copy()
    bad[BATCH - 1, 5] = np.nan  # the last sample of the second half
    history = fit(model, bad, y[:BATCH], guard)
    assert history["skipped_steps"] == [1]
    for variable in [*model.variables, *model.optimizer.variables]:
        for mine, theirs in zip(copies(variable), before[variable.path], strict=True):
            np.testing.assert_array_equal(mine, theirs, err_msg=variable.path)
    assert all((np.array(v) == 0).all() for v in model.metrics_variables)
    assert [(event.kind, event.batch) for event in guard.events] == [("skip", 0)]


class Flip(keras.callbacks.Callback):
    """Ruin a weight on all replicas after some step."""

    def __init__(self, step):
        super().__init__()
        self.step, self.seen = step, 0

    def on_train_batch_end(self, batch, logs=None):
        self.seen += 1
        if self.seen == self.step:
            kernel = self.model.trainable_variables[0]
            kernel.assign(tf.fill(kernel.shape, np.nan))


@divided
def test_the_guard_goes_back_on_all_replicas(strategy):
    x, y = digits(16 * BATCH)
    model = build(strategy, with_state, lambda: keras.optimizers.Adam(0.01))
    guard = gr.GradientGuard(snapshot_every=4, max_consecutive_skips=4)
    history = fit(model, x, y, guard, Flip(12), epochs=4)
    assert [event.kind for event in guard.events if event.kind != "skip"] == ["rollback", "back_off", "speed_up"]
    assert guard.stop_reason is None
    assert np.isfinite(history["loss"]).all()
    for variable in changing(model):
        parts = copies(variable)
        assert all(np.isfinite(part).all() for part in parts), variable.path
        if any(variable is weight for weight in model.trainable_variables):
            np.testing.assert_array_equal(parts[0], parts[-1], err_msg=variable.path)
    assert history["accuracy"][-1] > history["accuracy"][0]


@divided
@pytest.mark.parametrize(
    "argument", [{"gradient_accumulation_steps": 2}, {"use_ema": True, "ema_overwrite_frequency": 2}], ids=str
)
def test_what_keras_itself_cannot_do_on_two_replicas_is_refused(strategy, argument):
    x, y = digits(BATCH)
    model = build(strategy, two_dense, lambda: SGD(0.1, **argument))
    with pytest.raises(RuntimeError, match="merge_call"):
        fit(model, x, y)
    model = build(strategy, two_dense, lambda: SGD(0.1, **argument))
    with pytest.raises(ValueError, match=r"Keras itself cannot train with .*Received: .*=2 under a MirroredStrategy"):
        fit(model, x, y, gr.GradientGuard())
