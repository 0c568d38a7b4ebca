import itertools
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from gradrecipes.rescue.changes import catalogue
from gradrecipes.rescue.code import code_of
from gradrecipes.rescue.edits import scaling_of
from gradrecipes.rescue.original import read_original, setup_of
from gradrecipes.rescue.rebuild import rebuild

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(64, 8)) * 50 + 100).astype("float32")
Y = (X[:, :1] * 30 + 7).astype("float32")
SCALING = scaling_of(X, Y, (False,))


def stack():
    yield keras.layers.Dense(8, activation="sigmoid", kernel_initializer=keras.initializers.RandomNormal(0, 3, seed=1))
    yield keras.layers.Dense(8)
    yield keras.layers.ReLU()
    yield keras.layers.BatchNormalization()
    yield keras.layers.Dropout(0.1)
    yield keras.layers.Dense(8, activation="relu", name="last_hidden")
    yield keras.layers.Dense(1, name="head")


def sequential():
    return keras.Sequential([keras.Input((8,)), *stack()])


def functional():
    inputs = keras.Input((8,))
    hidden = inputs
    for layer in stack():
        hidden = layer(hidden)
    return keras.Model(inputs, hidden + 0.0 * keras.ops.sum(inputs, axis=-1, keepdims=True))


def nested():
    inner = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6, activation="tanh"), keras.layers.Dense(4)])
    inputs = {"a": keras.Input((8,), name="a")}
    return keras.Model(inputs, keras.layers.Dense(1)(inner(inputs["a"])))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.net = keras.Sequential(list(stack()))
        self.double = lambda value: 2.0 * value

    def call(self, x):
        return self.net(self.double(x))


MODELS = {"sequential": sequential, "functional": functional, "nested": nested, "subclassed": Subclassed}


def prepared(kind):
    keras.utils.set_random_seed(3)
    model = MODELS[kind]()
    x = {"a": X} if kind == "nested" else X
    model(x)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", metrics=["mae"])
    base = setup_of(model, None, batch_size=32, epochs=1)
    return model, x, read_original(model), base


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_built_again_without_edits_predicts_the_same(kind):
    model, x, original, base = prepared(kind)
    made = rebuild(original, base, base, scaling=scaling_of(x, Y, (False,)))
    assert np.array_equal(np.asarray(made(x)), np.asarray(model(x)))
    assert made.optimizer.get_config()["momentum"] == 0.9
    assert made.optimizer is not model.optimizer


@pytest.mark.parametrize("kind", MODELS)
def test_training_a_rebuilt_model_leaves_the_original_alone(kind):
    model, x, original, base = prepared(kind)
    before = [np.array(one) for one in model.variables]
    made = rebuild(original, base, replace(base, learning_rate=1e-5), scaling=scaling_of(x, Y, (False,)))
    made.fit(x, Y, verbose=0)
    assert all(np.array_equal(one, np.array(now)) for one, now in zip(before, model.variables, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(made.get_weights(), model.get_weights(), strict=True))


@pytest.mark.parametrize("kind", MODELS)
def test_another_seed_draws_other_weights(kind):
    _, x, original, base = prepared(kind)
    one, two, again = (
        rebuild(original, base, base, scaling=scaling_of(x, Y, (False,)), seed=seed).get_weights() for seed in (1, 2, 1)
    )
    assert not np.array_equal(one[0], two[0])
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))


@pytest.mark.parametrize("kind", MODELS)
def test_weights_drawn_anew_are_the_same_whatever_was_built_before(kind):
    drawn = []
    for _ in range(2):
        _, x, original, base = prepared(kind)
        made = rebuild(original, base, replace(base, initializers="fitting"), scaling=scaling_of(x, Y, (False,)))
        drawn.append(made.get_weights())
        keras.Sequential([keras.Input((8,)), *stack(), keras.layers.Dense(1)])  # counts on in the automatic names
        np.random.default_rng().random(), keras.random.uniform((3,))
    assert all(np.array_equal(a, b) for a, b in zip(*drawn, strict=True))


class Halved(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.5


def test_a_schedule_without_a_config_is_kept():
    model = sequential()
    model.compile(keras.optimizers.SGD(Halved(), momentum=0.5), "mse")
    base = setup_of(model, None, batch_size=32, epochs=1)
    assert (base.schedule, base.learning_rate, dict(base.schedule_settings)) == ("Halved", None, {})
    made = rebuild(read_original(model), base, replace(base, clipping=("clipnorm", "1.0")), scaling=SCALING)
    assert isinstance(made.optimizer._learning_rate, Halved)
    assert (made.optimizer.momentum, made.optimizer.clipnorm) == (0.5, 1.0)
    warm = rebuild(read_original(model), base, replace(base, warm_up=4), scaling=SCALING)
    assert isinstance(warm.optimizer._learning_rate.schedule, Halved)
    task = SimpleNamespace(kind="own_loss")
    known = catalogue(base, read_original(model), SCALING, task, steps=10)
    assert "adam" in known
    assert not [name for name in known if name.startswith("rate_")]


@pytest.mark.parametrize("kind", ["sequential", "functional", "subclassed"])
def test_fitting_initializers_draw_weights_of_usual_size(kind):
    model, _, original, base = prepared(kind)
    made = rebuild(original, base, replace(base, initializers="fitting"), scaling=SCALING)
    assert np.std(model.get_weights()[0]) > 2.0
    assert np.std(made.get_weights()[0]) < 0.6


@pytest.mark.parametrize(("kind", "offered"), [("Dense", {"elu"}), ("GRU", {"elu", "relu"})])
def test_what_a_training_has_already_is_no_change(kind, offered):
    model = keras.Sequential([keras.Input((8,) if kind == "Dense" else (3, 8))])
    model.add(getattr(keras.layers, kind)(4, "relu"))
    model.add(keras.layers.Dense(1))
    model.compile("adam", "mse")
    base = setup_of(model, None, batch_size=32, epochs=1)
    known = catalogue(base, read_original(model), SCALING, SimpleNamespace(kind="own_loss"), steps=10)
    assert {name.removeprefix("activation_") for name in known if name.startswith("activation_")} == offered
    assert "adam" not in known and "adam_fast" in known


@pytest.mark.parametrize("kind", ["sequential", "functional"])
def test_activations_are_exchanged_in_hidden_layers_only(kind):
    _, _, original, base = prepared(kind)
    made = rebuild(original, base, replace(base, activation="elu"), scaling=SCALING)
    found = [layer.activation.__name__ for layer in made.layers if hasattr(layer, "activation")]
    assert sorted(found) == ["elu", "elu", "elu", "linear", "linear"]
    assert made.get_layer("head").activation.__name__ == "linear"


class Own(keras.layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)


@pytest.mark.parametrize("form", [Own, keras.layers.Lambda, keras.layers.Activation])
@pytest.mark.parametrize(
    ("function", "flat"),
    [
        (lambda x: keras.ops.sign(x), True),
        (lambda x: keras.ops.cast(keras.ops.round(x), "int32"), True),
        (lambda x: keras.ops.stop_gradient(keras.ops.tanh(x)), True),
        (lambda x: x + keras.ops.stop_gradient(keras.ops.sign(x) - x), False),  # straight through
        (lambda x: keras.ops.maximum(x, 0.0), False),
        (lambda x: keras.ops.sum(keras.ops.sign(x), axis=-1, keepdims=True), False),  # of another shape
    ],
)
def test_what_has_no_slope_is_exchanged_with_the_activations(form, function, flat):
    layers = [keras.layers.Dense(8), form(function), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((8,)), *layers])
    model.compile("sgd", "mse")
    original, base = read_original(model), setup_of(model, None, batch_size=32, epochs=1)
    assert (layers[1].name in original.activations) is flat
    made = rebuild(original, base, replace(base, activation="relu"), scaling=SCALING)
    assert (getattr(made.layers[1], "activation", None) is keras.activations.relu) is flat


@pytest.mark.parametrize("kind", ["sequential", "functional"])
def test_layer_normalization_stands_in_for_batch_normalization(kind):
    _, _, original, base = prepared(kind)
    made = rebuild(original, base, replace(base, normalization="layer"), scaling=SCALING)
    kinds = [type(layer).__name__ for layer in made.layers]
    assert "BatchNormalization" not in kinds
    assert kinds.count("LayerNormalization") == 1


def test_layer_normalization_is_inserted_after_each_hidden_layer():
    model = keras.Sequential([keras.Input((8,)), *[keras.layers.Dense(8, "relu") for _ in range(3)]])
    model.add(keras.layers.Dense(1))
    model.compile("sgd", "mse")
    original, base = read_original(model), setup_of(model, None, batch_size=32, epochs=1)
    made = rebuild(original, base, replace(base, normalization="layer", skips=True), scaling=SCALING)
    kinds = [type(layer).__name__ for layer in made.layers]
    assert kinds.count("LayerNormalization") == kinds.count("Add") == 3


def test_a_residual_net_is_normalized_in_front_of_its_branches():
    inputs = keras.Input((8,))
    hidden = keras.layers.Dense(8, name="stem")(inputs)
    for block in range(3):
        branch = keras.layers.Dense(16, "relu", name=f"wide_{block}")(hidden)
        hidden = keras.layers.Add(name=f"sum_{block}")([hidden, keras.layers.Dense(8, name=f"narrow_{block}")(branch)])
    model = keras.Model(inputs, keras.layers.Dense(1, name="head")(hidden))
    model.compile("sgd", "mse")
    original, base = read_original(model), setup_of(model, None, batch_size=32, epochs=1)
    after = replace(base, normalization="layer")
    made = rebuild(original, base, after, scaling=SCALING)

    def takes(name):
        inputs = made.get_layer(name)._inbound_nodes[0].input_tensors
        return [one._keras_history.operation.name for one in inputs]

    assert takes("wide_0") == ["stem_normalized"]
    assert takes("narrow_0") == ["wide_0"]
    assert takes("sum_1") == ["sum_0", "narrow_1"]
    assert takes("wide_2") == ["sum_1_normalized"]
    assert takes("head") == ["sum_2_normalized"]
    code = code_of(base, after, models=(model, made))
    assert "the sums apart, stem, sum_0, sum_1, sum_2" in code


@pytest.mark.parametrize(("kind", "inputs"), list(itertools.product(MODELS, ["own", "standardized"])))
def test_scaled_targets_keep_the_users_units(kind, inputs, tmp_path):
    _, x, original, base = prepared(kind)
    setup = replace(base, inputs=inputs, targets="standardized", initializers="fitting", learning_rate=1e-3)
    made = rebuild(original, base, setup, scaling=scaling_of(x, Y, (False,)))
    predicted = made.predict(x, verbose=0)
    assert abs(predicted.mean() - Y.mean()) < 5 * Y.std() if inputs == "standardized" else predicted.shape == Y.shape
    made.save(tmp_path / "made.keras")
    if kind == "subclassed":  # a file of one opens where its class is known
        return
    opened = keras.models.load_model(tmp_path / "made.keras")
    assert np.allclose(opened.predict(x, verbose=0), predicted, rtol=1e-5)


def test_standardized_inputs_are_of_unit_size_within_the_model():
    _, x, original, base = prepared("sequential")
    made = rebuild(original, base, replace(base, inputs="standardized"), scaling=SCALING)
    inner = next(layer for layer in made.layers if type(layer).__name__ == "Normalization")
    scaled = np.asarray(inner(x))
    assert np.abs(scaled.mean(axis=0)).max() < 0.1
    assert np.abs(scaled.std(axis=0) - 1.0).max() < 0.1


def test_scaling_of_the_users_own_gives_way_to_standardized_inputs():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Rescaling(1 / 255), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    original, base = read_original(model), setup_of(model, None, batch_size=32, epochs=1)
    after = replace(base, inputs="standardized")
    made = rebuild(original, base, after, scaling=SCALING)
    seen = made.get_layer(model.name).get_layer(model.layers[0].name)
    assert isinstance(seen, keras.layers.Identity)
    assert f"# In place of {seen.name}\n+ keras.layers.Identity()" in code_of(
        base, after, SCALING, models=(model, made)
    )


def test_what_is_not_finite_becomes_the_mean_of_its_column():
    x = X.copy()
    x[3, 2], x[5, 1] = np.nan, 1e9
    _, _, original, base = prepared("sequential")
    made = rebuild(original, base, replace(base, inputs="standardized"), scaling=scaling_of(x, Y, (False,)))
    assert np.isfinite(made.predict(x, verbose=0)).all()


def test_frozen_and_pretrained_weights_are_kept():
    inputs = keras.Input((64,))
    frozen = keras.layers.Dense(64, activation="relu", trainable=False, name="frozen")
    loaded = keras.layers.Dense(64, activation="relu", name="loaded")
    model = keras.Model(inputs, keras.layers.Dense(1, name="head")(loaded(frozen(inputs))))
    values = np.where(RNG.uniform(size=(64, 64)) < 0.5, -0.1, 0.1).astype("float32")
    loaded.set_weights([values, np.zeros(64, "float32")])
    model.compile("sgd", "mse")
    original, base = read_original(model), setup_of(model, None, batch_size=32, epochs=1)
    assert original.kept == {"frozen", "loaded"}
    made = rebuild(original, base, replace(base, initializers="fitting"), scaling=SCALING, seed=1)
    for name in ("frozen", "loaded"):
        assert np.array_equal(made.get_layer(name).get_weights()[0], model.get_layer(name).get_weights()[0])
    assert not np.array_equal(made.get_layer("head").get_weights()[0], model.get_layer("head").get_weights()[0])
    assert not made.get_layer("frozen").trainable


def test_the_rate_of_a_schedule_is_scaled():
    model, _, _, _ = prepared("sequential")
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)
    model.compile(keras.optimizers.SGD(schedule), "mse")
    base = setup_of(model, None, batch_size=32, epochs=1)
    made = rebuild(read_original(model), base, replace(base, rate_factor=0.1), scaling=SCALING)
    assert float(made.optimizer.learning_rate) == pytest.approx(0.05)


def test_head_and_loss_are_made_to_fit():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, activation="sigmoid", name="head")])
    model.compile("sgd", "mse")
    base = replace(setup_of(model, None, batch_size=32, epochs=1), head="sigmoid", units=3, loss="mse")
    wanted = replace(base, head="softmax", units=5, loss="sparse_categorical_crossentropy", from_logits=False)
    made = rebuild(read_original(model), base, wanted, scaling=SCALING)
    assert made.output_shape == (None, 5)
    assert made.get_layer("head").activation.__name__ == "softmax"
    assert made.loss.get_config()["from_logits"] is False


def test_functions_and_layers_that_no_config_describes_are_kept():
    class Scaled(keras.layers.Layer):
        def __init__(self, function):
            super().__init__()
            self.function, self.dense = function, keras.layers.Dense(4)

        def call(self, x):
            return self.function(self.dense(x))

    inputs = keras.Input((8,))
    hidden = keras.layers.Dense(8, activation=lambda value: value**3)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(Scaled(lambda value: 2.0 * value)(hidden)))
    model.compile("sgd", "mse")
    original, base = read_original(model), setup_of(model, None, batch_size=32, epochs=1)
    made = rebuild(original, base, base, scaling=SCALING)
    assert np.array_equal(np.asarray(made(X)), np.asarray(model(X)))
    before = model.get_weights()
    made.fit(X / 100, Y, verbose=0)
    assert all(np.array_equal(one, now) for one, now in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize("form", ["dict", "list", "list_with_losses_by_name"])
def test_each_of_several_targets_is_scaled_and_weighed_by_itself(form):
    inputs = keras.Input((8,))
    outputs = {"kind": keras.layers.Dense(3, activation="softmax", name="kind")(inputs)}
    outputs["size"] = keras.layers.Dense(1, name="size")(inputs)
    losses = {"kind": "sparse_categorical_crossentropy", "size": "mse"}
    y = {"kind": np.arange(64) % 3, "size": Y}
    if form != "dict":
        outputs, y = list(outputs.values()), list(y.values())
        losses = list(losses.values()) if form == "list" else losses
    model = keras.Model(inputs, outputs)
    model.compile("sgd", losses)
    original, base = read_original(model), setup_of(model, None, batch_size=32, epochs=1)
    setup = replace(base, inputs="standardized", targets="standardized")
    made = rebuild(original, base, setup, scaling=scaling_of(X, y, (False,), {1: (1, "mse")}))
    predicted = keras.tree.flatten(made.predict(X, verbose=0))
    assert [one.shape for one in predicted] == [(64, 3), (64, 1)]
    assert abs(predicted[1].mean() - Y.mean()) < 5 * Y.std()
    logs = made.evaluate(X, y, verbose=0, return_dict=True)
    assert 0.1 < logs["loss"] < 20.0  # both of the order of one, though the size is in thousands
    model.compile("sgd", losses, loss_weights=keras.tree.map_structure(lambda _: 1e-6, losses))
    base = setup_of(model, None, batch_size=32, epochs=1)
    made = rebuild(original, base, replace(base, loss_weights="none"), scaling=SCALING)
    assert made.evaluate(X, y, verbose=0, return_dict=True)["loss"] > 1.0


def test_the_training_as_it_is_goes_on_where_its_optimizer_stands():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(X, Y, epochs=1, verbose=0)
    base = setup_of(model, None, batch_size=32, epochs=1)

    def state(setup, seed=0):
        made = rebuild(read_original(model), base, setup, scaling=SCALING, seed=seed)
        return [np.array(one) for one in made.optimizer.variables]

    own = [np.array(one) for one in model.optimizer.variables]
    for seed in (0, 1):
        assert all(np.array_equal(one, other) for one, other in zip(own, state(base, seed), strict=True))
    assert state(replace(base, optimizer_state="fresh"))[0] == 0
    assert state(replace(base, rate_factor=0.1))[0] == 0
