import ast
from dataclasses import replace

import keras
import numpy as np
import pytest

from gradrecipes.rescue.changes import catalogue
from gradrecipes.rescue.code import code_of, optimizer_line
from gradrecipes.rescue.edits import scaling_of
from gradrecipes.rescue.feed import read_feed
from gradrecipes.rescue.original import read_original, setup_of
from gradrecipes.rescue.rebuild import rebuild
from gradrecipes.rescue.task import task_of

X = np.random.default_rng(0).normal(5.0, 3.0, size=(60, 4)).astype("float32")
Y = (X.sum(axis=1, keepdims=True) * 100).astype("float32")
COSINE = keras.optimizers.schedules.CosineDecay(0.4, decay_steps=100, warmup_target=0.8, warmup_steps=10)


def parts(optimizer):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8, activation="tanh") for _ in range(5)]
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(1)])
    model.compile(optimizer, "mse")
    base = replace(setup_of(model, None, batch_size=8, epochs=2), head="linear", units=1, loss="mse")
    return model, base, scaling_of(X, Y, (False,))


def added(code):
    return [line[2:] for line in code.splitlines() if line.startswith("+ ")]


@pytest.mark.parametrize("optimizer", [keras.optimizers.SGD(COSINE, momentum=0.9), keras.optimizers.Adam(0.1)])
def test_every_line_of_every_change_is_python_without_gaps(optimizer):
    model, base, scaling = parts(optimizer)
    feed, _ = read_feed(X, Y, batch_size=8)
    known = catalogue(base, read_original(model), scaling, task_of(feed, base), steps=100)
    assert len(known) > 12
    for change in known.values():
        lines = added(code_of(base, change.apply(base), scaling))
        assert lines, change.name
        for line in lines:
            assert "..." not in line
            statement = " = " in line or line.startswith(("keras.", "scaling."))
            ast.parse(line if statement else f"call({line}\n)")


def test_a_schedule_is_written_whole_with_its_rates_multiplied():
    _, base, _ = parts(keras.optimizers.SGD(COSINE))
    line = optimizer_line(replace(base, rate_factor=0.1))
    made = eval(line, {"keras": keras})
    assert float(made.learning_rate) == pytest.approx(0.04)
    assert made.get_config()["learning_rate"]["config"]["warmup_target"] == pytest.approx(0.08)


def test_the_lines_that_scale_the_data_make_a_model_in_the_users_units():
    model, base, scaling = parts(keras.optimizers.SGD(0.01))
    code = code_of(base, replace(base, inputs="standardized", targets="standardized"), scaling)
    scope = {"keras": keras, "model": model}
    exec("\n".join(line for line in added(code) if line.startswith("model = ")), scope)
    predicted = scope["model"].predict(X, verbose=0)
    assert abs(predicted.mean() - Y.mean()) < 3 * Y.std()
    assert scope["model"].layers[0].mean.shape[-1] == 4
    assert f"loss_weights=[{1 / Y.var():.1e}"[:16] in code


def test_batches_of_a_dataset_are_made_anew():
    _, base, scaling = parts(keras.optimizers.SGD(0.01))
    larger = replace(base, batch_size=64)
    assert added(code_of(base, larger, scaling)) == ["batch_size=64"]
    assert added(code_of(base, larger, scaling, arrays=False)) == ["dataset = dataset.unbatch().batch(64)"]


def test_layers_are_named_with_the_arguments_that_they_need():
    hidden = keras.layers.Dense(8, name="one", kernel_initializer=keras.initializers.RandomNormal(0.0, 3.0))
    bend, out = keras.layers.ReLU(name="bend"), keras.layers.Dense(1, name="out")
    model = keras.Sequential([keras.Input((4,)), hidden, bend, out])
    model.compile("sgd", "mse")
    original, base = read_original(model), setup_of(model, None, batch_size=8, epochs=1)
    scaling = scaling_of(X, Y, (False,))
    changed = replace(base, initializers="fitting", activation="elu", normalization="layer")
    made = rebuild(original, base, changed, scaling=scaling)
    lines = code_of(base, changed, scaling, models=(model, made)).splitlines()
    assert lines == [
        "# In one",
        '+ kernel_initializer="he_normal"',
        "# After one",
        "+ keras.layers.LayerNormalization()",
        "# In place of bend",
        '+ keras.layers.Activation("elu")',
    ]


def test_weights_that_were_assigned_are_said_to_be_left_alone():
    model, base, scaling = parts("sgd")
    model.set_weights([100.0 * one for one in model.get_weights()])
    changed = replace(base, initializers="fitting")
    made = rebuild(read_original(model), base, changed, scaling=scaling)
    assert "assign or load none" in code_of(base, changed, scaling, models=(model, made))
