"""The comparison that `make keras-suite` ends with, and the `fit` that its plugin puts in place."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tests.keras_suite import compare
from tests.keras_suite.plugin import callbacks_of, with_callbacks


def run_of(**outcomes):
    return {name: {"outcome": outcome, "why": "", "fits": []} for name, outcome in outcomes.items()}


def test_only_what_passed_before_can_differ():
    plain = run_of(same="passed", broken="passed", gone="passed", never="failed", skipped="skipped")
    with_callbacks = run_of(same="passed", broken="failed", never="failed", skipped="skipped", new="failed")
    assert compare.differing(plain, with_callbacks) == ["broken", "gone"]


def test_a_test_that_is_skipped_only_with_the_callbacks_differs():
    assert compare.differing(run_of(one="passed"), run_of(one="skipped")) == ["one"]


def test_fits_are_counted_by_what_kept_them_from_the_callbacks():
    run = {"one": {"fits": ["", ""]}, "two": {"fits": ["not compiled", ""]}}
    assert compare.fits(run) == (3, {"not compiled": 1})


def small_model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
    return model


@pytest.mark.parametrize("form", ["none", "one", "list", "CallbackList"])
def test_every_form_of_callbacks_gets_the_monitor_and_keeps_its_own(form):
    epochs, notes, made = [], [], []
    own = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(epoch))
    model = small_model()
    given = {
        "none": None,
        "one": own,
        "list": [own],
        "CallbackList": keras.callbacks.CallbackList([own], add_history=True, model=model),
    }[form]

    def make():
        made.extend(callbacks_of("monitor"))
        return made

    x = np.ones((8, 2), "float32")
    with_callbacks(type(model).fit, make, notes)(model, x, x[:, :1], verbose=0, batch_size=4, callbacks=given)
    assert notes == [""]
    assert len(made[0].trace) == 2
    assert epochs == ([] if form == "none" else [0])


def test_a_fit_of_a_model_without_an_optimizer_is_left_alone_and_named():
    notes = []
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="compile"):
        with_callbacks(type(model).fit, lambda: pytest.fail("no callbacks here"), notes)(model, np.ones((4, 2)))
    assert notes == ["not compiled: Keras refuses the fit"]
