"""A hypermodel from a build function or from a compiled model, with callbacks that are new in each trial."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras_tuner import HyperParameters

from gradrecipes.callbacks.gradient_guard import GradientGuard
from gradrecipes.callbacks.gradient_monitor import GradientMonitor
from gradrecipes.tuning import RecipeHyperModel, spaces


def compiled(rate=0.01):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "relu"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), "mse", metrics=["mae"])
    return model


X, Y = np.ones((32, 4), "float32"), np.ones((32, 1), "float32")


class Recipe:
    def callbacks(self):
        return [GradientMonitor()]


def test_a_compiled_model_is_built_anew_with_the_rate_of_the_trial():
    model = compiled()
    hypermodel = RecipeHyperModel(model, seed=3)
    hp = HyperParameters()
    hypermodel.declare_hyperparameters(hp)
    one = hypermodel.build(hp)
    hp.values["learning_rate"] = 0.5
    two = hypermodel.build(hp)
    assert sorted(hp.values) == ["clipping", "learning_rate"]
    assert float(one.optimizer.learning_rate) == pytest.approx(0.01)
    assert float(two.optimizer.learning_rate) == 0.5 and two.optimizer.momentum == 0.9
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
    for first, second, original in zip(one.get_weights(), two.get_weights(), model.get_weights(), strict=True):
        assert np.array_equal(first, second)  # one seed
        assert first.ndim == 1 or not np.array_equal(first, original)
    assert "mae" in hypermodel.fit(hp, two, X, Y, epochs=1, verbose=0).history


def test_a_schedule_is_left_as_it_is():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    hp = HyperParameters()
    RecipeHyperModel(compiled(schedule)).build(hp)
    assert "learning_rate" not in hp.values


def test_clipping_comes_with_a_guard_that_holds_it():
    hypermodel = RecipeHyperModel(compiled())
    hp = HyperParameters()
    hp.values["clipping"] = "global_norm"
    guards = [one for one in hypermodel._of_fit(hp)[1] if isinstance(one, GradientGuard)]
    assert guards[0].clipping.max_norm == hp.values["clipping_norm"]


@pytest.mark.parametrize("callbacks", [Recipe(), lambda hp: [GradientMonitor()]])
def test_callbacks_batch_size_and_epochs_are_those_of_the_trial(callbacks):
    seen = []

    class Record(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen.append(dict(self.params))

    hypermodel = RecipeHyperModel(
        lambda hp: compiled(),
        batch_size=lambda hp: spaces.batch_size(hp, lowest=8, highest=16),
        epochs=2,
        callbacks=callbacks,
    )
    hp = HyperParameters()
    hypermodel.declare_hyperparameters(hp)
    assert list(hp.values) == ["batch_size"]
    history = hypermodel.fit(hp, hypermodel.build(hp), X, Y, epochs=9, verbose=0, callbacks=[Record()])
    assert seen[0]["epochs"] == 2 and seen[0]["steps"] == 2
    assert "gradient_norm" in history.history
    hp.values["tuner/epochs"] = 3  # as Hyperband says it
    hypermodel.fit(hp, hypermodel.build(hp), X, Y, epochs=3, verbose=0, callbacks=[Record()])
    assert seen[1]["epochs"] == 3


def test_what_makes_no_sense_is_refused_in_words():
    with pytest.raises(ValueError, match="not compiled"):
        RecipeHyperModel(keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]))
    with pytest.raises(TypeError, match="function of hp or a compiled model"):
        RecipeHyperModel(3)
    with pytest.raises(TypeError, match="lambda hp"):
        RecipeHyperModel(compiled(), callbacks=[GradientMonitor()])
