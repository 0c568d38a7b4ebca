"""A fit goes on with its callbacks whatever another of its callbacks does with the model meanwhile."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import gradrecipes as gr
from tests.training.nets import all_finite, digits, layers, seeded, two_dense

STEPS, BATCH = 4, 32


class Meanwhile(keras.callbacks.Callback):
    """Do something with the model at the begin of the second epoch."""

    def __init__(self, what):
        super().__init__()
        self.what, self.sound = what, []

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.what(self.model)

    def on_train_batch_end(self, batch, logs=None):
        self.sound.append(all_finite(self.model))


def fit(model, *callbacks, epochs=3, **how):
    x, y = digits(STEPS * BATCH)
    x[BATCH + 5, 7] = np.nan
    how = {"batch_size": BATCH, "shuffle": False, "verbose": 0, **how}
    return model.fit(x, y, epochs=epochs, callbacks=list(callbacks), **how).history


def fit_again(model, *callbacks):
    x, y = digits(2 * BATCH)
    return model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=list(callbacks)).history


def unfreeze(model):
    model.layers[0].trainable = True
    model.compile(keras.optimizers.Adam(0.01), model.loss)
    model.make_train_function(force=True)


@pytest.mark.parametrize(
    "what",
    [
        fit_again,
        lambda model: fit_again(model, gr.GradientMonitor()),
        lambda model: model.make_train_function(force=True),
        lambda model: model.train_on_batch(*digits(BATCH)),
        lambda model: model.evaluate(*digits(BATCH), verbose=0, callbacks=[gr.GradientMonitor()]),
    ],
    ids=["fit", "monitored fit", "make_train_function", "train_on_batch", "evaluate"],
)
def test_the_fit_stays_guarded_and_monitored(what):
    model, guard = seeded(two_dense, metrics=[]), gr.GradientGuard()
    meanwhile = Meanwhile(what)
    fit(model, guard, meanwhile)
    assert meanwhile.sound == [True] * 3 * STEPS
    assert len(guard.trace) == 3 * STEPS
    assert np.bincount(guard.trace.steps["epoch"]).tolist() == [STEPS] * 3
    assert guard.trace.steps["batch"].tolist() == list(range(STEPS)) * 3
    assert [event.epoch for event in guard.events if event.kind == "skip"] == [0, 1, 2]
    assert "make_train_function" not in model.__dict__
    assert "skipped_steps" not in fit_again(model)


def test_a_layer_that_is_unfrozen_in_the_middle_is_trained_and_guarded():
    model, guard = seeded(two_dense, metrics=[]), gr.GradientGuard()
    model.layers[0].trainable = False
    model.compile("adam", model.loss)
    before = model.layers[0].get_weights()[0]
    meanwhile = Meanwhile(unfreeze)
    fit(model, guard, meanwhile)
    assert meanwhile.sound == [True] * 3 * STEPS
    assert np.abs(model.layers[0].get_weights()[0] - before).max() > 1e-3
    assert len(guard.trace.layers) == 2
    assert len([event for event in guard.events if event.kind == "skip"]) == 2


def test_a_fit_within_a_fit_is_plain_and_gives_the_weights_of_plain_keras():
    states = []
    for callbacks in ([], [gr.GradientMonitor()]):
        model = seeded(two_dense)
        x, y = digits(STEPS * BATCH)
        model.fit(
            x, y, batch_size=BATCH, epochs=3, shuffle=False, verbose=0, callbacks=[*callbacks, Meanwhile(fit_again)]
        )
        states.append(model.get_weights())
    for mine, theirs in zip(*states, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_the_clipping_of_a_recipe_model_holds_in_a_fit_within_a_fit():
    inputs = keras.Input((64,))
    model = seeded(lambda: gr.RecipeModel(inputs, layers.Dense(10)(inputs), clipping=gr.clipping.by_global_norm(1e-9)))
    model.optimizer = keras.optimizers.SGD(1.0)
    moved = []

    def watched(model):
        before = model.get_weights()
        fit_again(model)
        moved.append(max(np.abs(a - b).max() for a, b in zip(before, model.get_weights(), strict=True)))

    fit(model, gr.GradientGuard(), Meanwhile(watched))
    assert moved[0] < 1e-6


def test_the_same_callback_in_a_fit_within_its_fit_is_refused():
    guard = gr.GradientGuard()
    with pytest.raises(ValueError, match="still runs"):
        fit(seeded(two_dense), guard, Meanwhile(lambda model: fit_again(model, guard)))


def test_a_train_function_that_was_set_by_hand_is_told(caplog):
    model = seeded(two_dense)

    def replace(model):
        model.train_function = lambda iterator: next(iter(iterator)) and {"loss": 1.0}

    fit(model, Meanwhile(replace), gr.GradientGuard())
    assert caplog.text.count("GradientGuard see no more steps") == 1


def test_the_same_callbacks_for_fit_evaluate_and_predict():
    model, callbacks = seeded(two_dense, metrics=[]), [gr.BlackBox(), gr.GradientGuard()]
    x, y = digits(BATCH)
    for _ in range(2):
        model.evaluate(x, y, verbose=0, callbacks=callbacks)
        model.predict(x, verbose=0, callbacks=callbacks)
        assert "skipped_steps" in model.fit(x, y, verbose=0, callbacks=callbacks).history
    assert len(callbacks[0].trace) == 2
    assert "gradient_norm" not in fit_again(model)


def test_what_other_callbacks_write_into_the_logs_need_not_be_numbers():
    class Extra(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs |= {"time": "12:30", "note": None, "rates": [0.1, 0.2], "seen": {"a": 1}, "count": 3}

    guard = gr.GradientGuard()
    fit_again(seeded(two_dense, metrics=[]), Extra(), guard)
    (event,) = [event for event in guard.trace.events if event.kind == "epoch"]
    assert {"loss", "gradient_norm", "gradient_norm_max", "skipped_steps", "count"} == set(event.details["logs"])


def test_after_an_error_that_is_still_held_the_model_is_plain():
    def boom(model):
        raise RuntimeError("boom")

    model, guard = seeded(two_dense, metrics=[]), gr.GradientGuard()
    with pytest.raises(RuntimeError, match="boom") as held:
        fit(model, guard, Meanwhile(boom))
    assert np.ndim(model.train_on_batch(*digits(BATCH))) == 0
    assert "make_train_function" not in model.__dict__
    assert len(guard.trace) == STEPS
    assert guard.trace.events[-1].kind == "interrupted"
    assert held.value is not None
