"""Recipes: each trains a net as it says, combinations join or are refused, and the list tells them all."""

from __future__ import annotations

import importlib
import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import gradrecipes as gr
from gradrecipes import recipes
from gradrecipes.cli.main import main
from gradrecipes.regularizers import InputGradientPenalty
from tests.training.nets import compiled, digits, two_dense

tuning = importlib.import_module("gradrecipes.recipes.practices")  # the module; the package has a function of that name


def net(recipe):
    inputs = hidden = keras.Input((64,))
    hidden = keras.layers.Dense(16, "relu", **recipe.layer_arguments())(hidden)
    for part in recipe.blocks:
        hidden = recipe.block(part)(hidden)
    outputs = keras.layers.Dense(10)(hidden)
    return gr.RecipeModel(inputs, outputs, **recipe.model_arguments())


@pytest.mark.parametrize("recipe", recipes.all(), ids=lambda recipe: recipe.name)
def test_every_recipe_trains_a_net(recipe):
    x, y = digits(128)
    model = net(recipe)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, **recipe.compile_arguments())
    fit_arguments = {"validation_split": 0.25, **recipe.fit_arguments()}
    history = model.fit(x, y, epochs=2, verbose=0, **fit_arguments).history
    assert np.isfinite(history["loss"]).all()
    assert recipe.claim.endswith(".")
    assert recipe.references


def test_there_are_six_and_their_names_are_their_functions():
    names = [recipe.name for recipe in recipes.all()]
    assert names == ["monitoring", "validation", "tuning", "regularization", "architecture", "training"]
    for recipe in recipes.all():
        assert getattr(gr.recipes, recipe.name)().name == recipe.name


def test_callbacks_layers_and_optimizers_are_new_each_time():
    recipe = recipes.training(learning_rate=0.1) + recipes.architecture()
    assert recipe.callbacks()[0] is not recipe.callbacks()[0]
    assert recipe.compile_arguments()["optimizer"] is not recipe.compile_arguments()["optimizer"]
    one, other = (keras.layers.Dense(4, **recipe.layer_arguments()) for _ in range(2))
    one.build((None, 4))
    other.build((None, 4))
    assert not np.array_equal(one.kernel, other.kernel)


def test_recipes_join():
    whole = recipes.monitoring() + recipes.tuning(learning_rate=0.05, batch_size=64) + recipes.regularization()
    optimizer = whole.compile_arguments()["optimizer"]
    assert isinstance(optimizer, keras.optimizers.AdamW)
    assert float(optimizer.learning_rate) == pytest.approx(0.05)
    assert whole.fit_arguments()["batch_size"] == 64
    assert whole.name == "monitoring + tuning + regularization"


def test_the_same_setting_twice_is_no_contradiction():
    whole = recipes.validation(patience=10) + recipes.training(patience=10)
    assert len(whole.callbacks()) == 2


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (recipes.tuning(learning_rate=0.1), recipes.training(learning_rate=0.2), "learning_rate = 0.1 .*and 0.2"),
        (recipes.tuning(batch_size=16), recipes.training(batch_size=32), "batch_size = 16 .*and 32"),
        (recipes.validation(patience=3), recipes.training(), "early_stopping = NanProofEarlyStopping.*patience=3"),
        (recipes.tuning(activation="tanh"), recipes.architecture(), "kernel_initializer = .*tanh.*relu"),
    ],
)
def test_a_contradiction_is_refused_with_both_sides(one, other, words):
    with pytest.raises(ValueError, match=f"contradict each other. Received: {words}"):
        one + other


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: recipes.validation(share=1), r"Received: share=1"),
        (lambda: recipes.regularization(l2=0.1), r"weight_decay=0\.01 and l2=0\.1"),
        (lambda: recipes.training(warm_up=10), r"Received: warm_up=10"),
        (lambda: recipes.architecture(residual="dense"), r"'pre_norm', 'rezero', or None\. Received: residual='dense'"),
        (lambda: recipes.architecture().block("attention"), r"Received: part='attention'"),
    ],
)
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_penalty_reaches_the_model_and_a_warm_up_the_optimizer():
    recipe = recipes.regularization(penalty=InputGradientPenalty(0.1))
    assert net(recipe).penalty == InputGradientPenalty(0.1)
    optimizer = recipes.training(learning_rate=0.1, warm_up=4).compile_arguments()["optimizer"]
    assert float(optimizer.learning_rate) == pytest.approx(0.02)


def test_measured_tuning_measures_and_leaves_the_model():
    x, y = digits(512)
    keras.utils.set_random_seed(0)
    model = compiled(two_dense())
    before = model.get_weights()
    recipe = recipes.measured_tuning(model, x, y, activation="relu")
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert 1e-6 < recipe.optimizer["learning_rate"] < 1
    assert recipe.fit["batch_size"] in (32, 64, 128, 256, 512, 1024)


@pytest.mark.parametrize(("optimizer", "expected"), [("sgd", 2 / (2 * 5)), ("adam", 7.0)])
def test_a_measured_rate_is_no_higher_than_the_curvature_admits(optimizer, expected, monkeypatch):
    # With x = 1 the mean squared error of four weights and a bias has the Hessian 2 [1 1 1 1 1]' [1 1 1 1 1].
    monkeypatch.setattr(tuning, "learning_rate_range", lambda *arguments, **options: SimpleNamespace(valley=7.0))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(optimizer=optimizer, loss="mse")
    y = np.random.default_rng(0).normal(size=(64, 1)).astype(np.float32)
    recipe = recipes.measured_tuning(model, np.ones((64, 4), np.float32), y, batch_size=8)
    assert recipe.optimizer["learning_rate"] == pytest.approx(expected, rel=1e-3)


def test_a_card_tells_what_a_recipe_sets():
    card = str(recipes.training(max_norm=0.5))
    assert "guard = GradientGuard(clipping=by_global_norm(max_norm=0.5))" in card
    assert "see: Pascanu" in card


def test_the_command_lists_them(capsys):
    assert main(["recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in listed] == [recipe.name for recipe in recipes.all()]
    assert main(["recipes"]) == 0
    assert "architecture" in capsys.readouterr().out
