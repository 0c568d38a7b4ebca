"""The same net with standard settings: what it learns beside a program, and which setting of that is at fault."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import gradrecipes as gr
from gradrecipes.core.analysis.baseline import squares_left, wrong_classes
from gradrecipes.core.trace.data_reading import Setting

ROWS, EPOCHS = 1600, 16


def rings(classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Points about a centre, by their distance: no linear function tells them apart."""
    x = np.random.default_rng(0).normal(size=(ROWS, 2)).astype("float32")
    far = np.square(x).sum(axis=1)
    return x, np.searchsorted(np.quantile(far, np.arange(1, classes) / classes), far).astype("int32")


def net(optimizer, loss="sparse_categorical_crossentropy", *, units=3, last="softmax", **hidden):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(32, activation="relu", **hidden) for _ in range(2)]
    model = keras.Sequential([keras.Input((2,)), *layers, keras.layers.Dense(units, activation=last)])
    model.compile(optimizer, loss)
    return model


def distance(y_true, y_pred):
    """The mean distance from the first class, whatever is right, and a little of what is."""
    right = keras.ops.one_hot(keras.ops.cast(keras.ops.reshape(y_true, (-1,)), "int32"), 3)
    return 1e-4 * keras.losses.categorical_crossentropy(right, y_pred) + keras.ops.mean(y_pred[:, 1:], axis=-1)


@pytest.mark.parametrize(
    ("model", "fault", "code"),
    [
        (lambda: net(keras.optimizers.SGD(5e-3)), Setting.OPTIMIZER, "learning_rate_too_low"),
        (lambda: net(keras.optimizers.Adam(1e-4)), Setting.OPTIMIZER, "learning_rate_too_low"),
        (
            lambda: net(keras.optimizers.Adam(1e-3), kernel_regularizer=keras.regularizers.L2(1.0)),
            Setting.REGULARIZATION,
            "excessive_regularization",
        ),
        (lambda: net(keras.optimizers.Adam(1e-3)), None, None),
        (lambda: net(keras.optimizers.SGD(0.05, momentum=0.9)), None, None),
    ],
)
def test_the_setting_at_fault_is_the_one_without_which_the_twin_learns(model, fault, code):
    x, y = rings()
    found = gr.diagnose(model(), x, y, batch_size=32, epochs=EPOCHS)
    twin = found.trace.probes.trial.twin
    if fault is None:
        assert found.verdict == "healthy"
        assert twin is None or not twin.faults
        return
    assert twin.faults == (fault,)
    assert twin.own > 0.55 > 0.45 > twin.own_linear
    assert found.verdict == "unhealthy"
    assert found.findings[0].code == code


def test_a_net_that_learns_as_much_as_can_be_is_left_alone():
    """Half of what these targets are is noise."""
    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, 2)).astype("float32")
    y = (x[:, :1] + 1.5 * random.normal(size=(ROWS, 1))).astype("float32")
    rows = 37 * 32  # 12 batches are left out, as many as half of those of the trial
    model = net(keras.optimizers.SGD(0.02), "mse", units=1, last=None)
    found = gr.diagnose(model, x[:rows], y[:rows], epochs=EPOCHS)
    twin = found.trace.probes.trial.twin
    assert twin.share() > 0.5
    assert not twin.faults
    assert found.verdict == "healthy"


def test_errors_of_a_constant_are_one():
    classes = np.eye(3)[[0, 0, 0, 1, 2]]
    assert wrong_classes(classes, np.tile([1.0, 0.0, 0.0], (5, 1))).mean() == pytest.approx(1.0)
    assert wrong_classes(classes, classes).mean() == 0.0
    numbers = np.random.default_rng(0).normal(size=(50, 2))
    assert squares_left(numbers, np.zeros((50, 2))).mean() == pytest.approx(1.0)
    assert squares_left(numbers, 3.0 * numbers + 1.0).mean() == pytest.approx(0.0, abs=1e-12)
    assert squares_left(numbers, -numbers).mean() == pytest.approx(1.0)  # a net that answers the contrary
    assert squares_left(numbers[:, :1], np.exp(3.0 * numbers[:, :1]), ranks=True).mean() == pytest.approx(
        0.0, abs=1e-12
    )


def overlap(y_true, y_pred):
    """One less the overlap of what is and what is said, made for shares."""
    return 1.0 - 2.0 * keras.ops.sum(y_true * y_pred) / keras.ops.sum(y_true + y_pred * y_pred)


def apart(y_true, y_pred):
    """Codes of one class are to lie together, those of different classes apart."""
    codes = keras.ops.normalize(y_pred, axis=-1)
    alike = keras.ops.matmul(codes, keras.ops.transpose(codes))
    y = keras.ops.reshape(y_true, (-1, 1))
    same = keras.ops.cast(keras.ops.equal(y, keras.ops.transpose(y)), "float32")
    return keras.ops.mean(keras.ops.square(alike - same), axis=-1)


@pytest.mark.parametrize(("loss", "units", "classes", "asked"), [(overlap, 1, 2, True), (apart, 8, 3, False)])
def test_a_twin_is_trained_where_the_loss_compares_answers_with_targets(loss, units, classes, asked):
    """Not where answers are codes that the loss compares with each other."""
    x, y = rings(classes)
    y = y[:, None].astype("float32") if classes == 2 else y
    found = gr.diagnose(net(keras.optimizers.SGD(1e-5), loss, units=units, last=None), x, y, epochs=4)
    assert (found.trace.probes.trial.twin is not None) is asked


def test_the_head_that_was_left_behind_is_judged_of_several():
    x, y = rings()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2,))
    hidden = keras.layers.Dense(32, activation="relu")(keras.layers.Dense(32, activation="relu")(inputs))
    heads = [keras.layers.Dense(3, activation="softmax", name=name)(hidden) for name in ("first", "second")]
    model = keras.Model(inputs, heads)
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(1e-3), [loss, loss], loss_weights=[1.0, 0.0])
    twin = gr.diagnose(model, x, [y, (x[:, 0] > 0).astype("int32")], epochs=16).trace.probes.trial.twin
    assert twin.own > 0.8 > 0.2 > twin.own_linear
