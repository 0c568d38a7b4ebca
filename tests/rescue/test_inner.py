from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from gradrecipes.core.findings import Kind
from gradrecipes.diagnosis.registry import rules
from gradrecipes.rescue.changes import BY_CAUSE, STANDARD, Change, candidates, catalogue
from gradrecipes.rescue.code import code_of
from gradrecipes.rescue.edits import scaling_of
from gradrecipes.rescue.feed import balanced_weights, is_padded, read_feed
from gradrecipes.rescue.inner import calls_itself
from gradrecipes.rescue.original import read_original, setup_of
from gradrecipes.rescue.rebuild import rebuild
from gradrecipes.rescue.task import BINARY, NUMBERS, Task

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 64)).astype("float32")
Y = X[:, :1]
SCALING = scaling_of(X, Y, (False,))


class Stage(keras.layers.Layer):
    def __init__(self, activation, last="linear"):
        super().__init__()
        self.first = keras.layers.Dense(8, activation)
        self.second = keras.layers.Dense(8, last)

    def call(self, inputs):
        return self.second(self.first(inputs))


class Tower(keras.layers.Layer):
    def __init__(self, activation="sigmoid", gate="linear"):
        super().__init__()
        self.stages = [Stage(activation, gate), Stage(activation, gate)]

    def call(self, inputs):
        for stage in self.stages:
            inputs = stage(inputs)
        return inputs


class WithStep(keras.Model):
    def __init__(self):
        super().__init__()
        self.tower, self.head = Tower(), keras.layers.Dense(1, "sigmoid", dtype="mixed_float16")

    def call(self, inputs):
        return self.head(self.tower(inputs))

    def train_step(self, data):
        return super().train_step(data)


def in_a_graph(layer):
    return keras.Sequential([keras.Input((64,)), layer, keras.layers.Dense(1, name="head")])


def read(model):
    model(X)
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return read_original(model, X[:2]), setup_of(model, None, batch_size=32, epochs=1)


def activations(model):
    return [one.activation.__name__ for one in model._flatten_layers() if isinstance(one, keras.layers.Dense)]


@pytest.mark.parametrize("kind", ["graph", "with_step"])
def test_activations_within_layers_of_the_users_own_are_exchanged(kind):
    model = WithStep() if kind == "with_step" else in_a_graph(Tower())
    original, base = read(model)
    after = replace(base, activation="relu", initializers="fitting")
    made = rebuild(original, base, after, scaling=SCALING)
    assert activations(made).count("relu") == 2
    assert activations(made).count("sigmoid") == (kind == "with_step")  # its head
    assert activations(model).count("sigmoid") == 2 + (kind == "with_step")
    code = code_of(base, after, models=(model, made))
    where = "model.tower" if kind == "with_step" else "tower"
    assert f"# In {where}.stages[0].first, {where}.stages[1].first\n+ activation='relu', kernel_initializer=" in code
    kernels = [made.get_weights()[0], rebuild(original, base, after, scaling=SCALING).get_weights()[0]]
    assert np.array_equal(*kernels)
    assert not np.array_equal(kernels[0], model.get_weights()[0])
    assert not np.array_equal(kernels[0], rebuild(original, base, after, scaling=SCALING, seed=1).get_weights()[0])


def test_a_gate_within_a_layer_keeps_its_activation():
    original, base = read(in_a_graph(Tower("tanh", "sigmoid")))
    made = rebuild(original, base, replace(base, activation="relu"), scaling=SCALING)
    assert sorted(activations(made)) == ["linear", "relu", "relu", "sigmoid", "sigmoid"]


class Cell(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        wide = keras.initializers.RandomNormal(stddev=1.0, seed=1)
        self.state_size, self.entry = 8, keras.layers.Dense(8)
        self.again = keras.layers.Dense(8, use_bias=False, kernel_initializer=wide)

    def build(self, input_shape):
        self.entry.build(input_shape), self.again.build((None, 8))

    def call(self, inputs, states):
        state = keras.ops.relu(self.entry(inputs) + self.again(states[0]))
        return state, [state]


def test_a_cell_of_the_users_own_within_a_layer_of_keras_is_drawn_anew():
    layers = [keras.layers.Reshape((16, 4)), keras.layers.RNN(Cell()), keras.layers.Dense(1, name="head")]
    model = keras.Sequential([keras.Input((64,)), *layers])
    original, base = read(model)
    after = replace(base, initializers="fitting")
    made = rebuild(original, base, after, scaling=SCALING)
    kernel = np.asarray(made.layers[1].cell.again.kernel)
    assert np.allclose(kernel @ kernel.T, np.eye(8), atol=1e-5)
    assert np.std(model.layers[1].cell.again.kernel) > 0.7
    assert 'cell.again\n+ kernel_initializer="orthogonal"' in code_of(base, after, models=(model, made))
    same = rebuild(original, base, base, scaling=SCALING)
    assert np.array_equal(np.asarray(same(X)), np.asarray(model(X)))


def with_a_base(whole):
    values = [np.where(RNG.uniform(size=(64, 64)) < 0.5, -0.1, 0.1).astype("float32"), np.ones(64, "float32")]
    base = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, "tanh", name="loaded")], name="base")
    base.layers[0].set_weights(values)
    layers = [base, keras.layers.Dense(8, "sigmoid", name="hidden"), keras.layers.Dense(1, name="head")]
    classifier = keras.Sequential([keras.Input((64,)), *layers], name="classifier")
    (classifier if whole else base).trainable = False
    inputs = keras.Input((64,))
    return keras.Model(inputs, classifier(inputs)), values


def test_layers_within_a_nested_model_are_edited_and_pretrained_ones_kept():
    model, values = with_a_base(whole=False)
    original, base = read(model)
    made = rebuild(original, base, replace(base, activation="relu", initializers="fitting"), scaling=SCALING, seed=1)
    assert sorted(activations(made)) == ["linear", "relu", "tanh"]
    inner = made.get_layer("classifier")
    assert np.array_equal(inner.get_layer("base").get_weights()[0], values[0])
    assert [len(one.trainable_weights) for one in inner.layers] == [0, 2, 2]  # frozen as before
    assert not np.array_equal(inner.get_layer("hidden").get_weights()[0], model.get_weights()[2])
    made = rebuild(original, base, replace(base, normalization="layer"), scaling=SCALING)
    assert "LayerNormalization" in [type(one).__name__ for one in made._flatten_layers()]


def test_frozen_layers_that_were_never_trained_are_trained():
    model, values = with_a_base(whole=True)
    original, base = read(model)
    assert original.untrained == {"hidden", "head"}
    made = rebuild(original, base, replace(base, trainable="untrained"), scaling=SCALING)
    assert len(model.trainable_weights) == 0
    assert [one.path.split("/")[-2] for one in made.trainable_weights] == ["hidden", "hidden", "head", "head"]
    assert np.array_equal(made.get_layer("classifier").get_layer("base").get_weights()[0], values[0])
    assert len(made.optimizer.variables) > 0
    code = code_of(base, replace(base, trainable="untrained"), models=(model, made))
    lines = ["+ model.trainable = True"]
    lines += ['+ model.get_layer("classifier").get_layer("base").trainable = False']
    assert code.splitlines() == ["# Before compile", *lines]
    made = rebuild(original, base, replace(base, trainable="all"), scaling=SCALING)
    assert len(made.trainable_weights) == 6


def test_an_optimizer_that_a_model_holds_is_built_anew_for_what_is_no_longer_frozen():
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    model.layers[0].trainable = False
    model.compile("sgd", "mse")
    model.second_optimizer = keras.optimizers.Adam(0.25)
    model.second_optimizer.build(model.trainable_variables)
    original, base = read(model)
    made = rebuild(replace(original, surgical=False), base, replace(base, trainable="all"), scaling=SCALING)
    made.second_optimizer.apply(
        [keras.ops.ones_like(one) for one in made.trainable_variables], made.trainable_variables
    )
    assert float(made.second_optimizer.learning_rate) == 0.25
    assert len(model.second_optimizer._trainable_variables) == 2


def test_layers_in_half_precision_compute_in_float32_where_only_layers_are():
    model = WithStep()
    original, base = read(model)
    assert base.precision == "mixed_float16"
    after = replace(base, precision="float32")
    made = rebuild(original, base, after, scaling=SCALING)
    assert made(X).dtype == "float32"
    assert model(X).dtype == "float16"
    assert "# In model.head\n+ dtype='float32'" in code_of(base, after, models=(model, made))


def test_dropout_penalties_constraints_and_moving_averages_are_set_in_place(tmp_path):
    layers = [
        keras.layers.Dense(8, kernel_regularizer=keras.regularizers.L2(10.0), kernel_constraint="max_norm"),
        keras.layers.BatchNormalization(momentum=0.999, epsilon=1e-8),
        keras.layers.Dropout(0.9),
        keras.layers.Dense(1, name="head"),
    ]
    model = keras.Sequential([keras.Input((64,)), *layers])
    original, base = read(model)
    assert (original.drops, original.penalized, original.averaged) == (True, True, True)
    after = replace(base, dropout="none", regularizers="none", moving_averages="fast")
    made = rebuild(original, base, after, scaling=SCALING)
    made.save(tmp_path / "made.keras")
    for one in (made, keras.models.load_model(tmp_path / "made.keras")):
        assert one.losses == [] and one.layers[0].kernel.constraint is None
        assert (one.layers[1].momentum, one.layers[1].epsilon, one.layers[2].rate) == (0.9, 1e-3, 0.0)
    code = code_of(base, after, models=(model, made))
    assert "kernel_constraint=None" in code and "kernel_regularizer=None" in code
    assert "momentum=0.9, epsilon=0.001" in code
    assert float(model.losses[0]) > 0
    assert {"no_dropout", "no_penalty", "moving_averages"} <= set(
        catalogue(base, original, SCALING, Task("own_loss", None, 0.0, None, None), steps=100)
    )


def test_padding_behind_sequences_is_masked():
    rows = RNG.integers(1, 9, (64, 12))
    padded = np.where(np.arange(12) < RNG.integers(2, 12, 64)[:, None], rows, 0)
    assert (is_padded(padded), is_padded(padded[:, ::-1]), is_padded(rows)) == (True, False, False)
    layers = [keras.layers.Embedding(9, 4), keras.layers.LSTM(3), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((12,)), *layers])
    model.compile("sgd", "mse")
    original, base = read(model)
    known = catalogue(base, original, SCALING, Task(BINARY, 1, 0.5, None, None), steps=10, padded=True)
    changed = known["mask"].apply(base)
    made = rebuild(original, base, changed, scaling=SCALING)
    alone = padded[:1, : np.count_nonzero(padded[0])]
    for layer in model.layers:
        alone = layer(alone)
    assert np.allclose(made(padded)[:1], alone, atol=1e-6)
    assert not np.allclose(model(padded)[:1], alone, atol=1e-4)
    assert "+ mask_zero=True" in code_of(base, changed, models=(model, made))


class Costly(keras.layers.Layer):
    def call(self, inputs):
        self.add_loss(keras.ops.sum(keras.ops.square(inputs)))
        return inputs


@pytest.mark.parametrize("surgical", [True, False])
def test_what_a_layer_of_the_users_own_adds_to_the_loss_is_weighed_down(surgical):
    model = in_a_graph(Costly())
    model.compile("sgd", "mse")
    original, base = read(model)
    assert original.adds
    known = catalogue(base, original, SCALING, Task(NUMBERS, 1, 0.0, X, X), steps=10)
    changed = known["added_losses"].apply(base)
    assert changed.added_losses == 1 / 64
    made = rebuild(replace(original, surgical=surgical), base, changed, scaling=SCALING)
    model(X), made(X)
    assert float(made.losses[0]) == pytest.approx(float(model.losses[0]) / 64)
    assert "+ self.add_loss(0.016 * loss)" in code_of(base, changed)


def test_an_overlap_of_a_linear_output_is_bounded_and_keeps_its_loss():
    original, base = read(in_a_graph(Tower()))
    base = replace(base, loss="overlap", head="linear", units=1)
    known = catalogue(base, original, SCALING, Task(BINARY, 1, 0.5, None, None, shares=True), steps=100)
    assert known["bounded_head"].apply(base) == replace(base, head="sigmoid")
    base = replace(base, loss="binary_crossentropy")
    known = catalogue(base, original, SCALING, Task(BINARY, 1, 0.5, None, None, shares=True), steps=100)
    assert "bounded_head" not in known


class ByHand(keras.Model):
    def __init__(self, whole):
        super().__init__()
        self.tower, self.head, self.whole = Tower(), keras.layers.Dense(1), whole

    def call(self, inputs):
        return self.head(self.tower(inputs))

    def train_step(self, data):
        x, y = data
        self.seen = self(x) if self.whole else self.head(self.tower(x))
        return {"loss": keras.ops.mean((y - self.seen) ** 2)}


def test_scaling_goes_into_the_call_that_a_train_step_makes():
    x, y = X * 50 + 100, Y * 30 + 700
    model = ByHand(whole=True)
    original, base = read(model)
    original = replace(original, in_call=True)
    after, scaling = replace(base, inputs="standardized", targets="standardized"), scaling_of(x, y, (False,))
    made = rebuild(original, base, after, scaling=scaling)
    apart = (np.asarray(made(x)) - np.asarray(model((x - x.mean(axis=0)) / x.std(axis=0))) * y.std() - y.mean()) / 30
    assert np.abs(apart).max() < 0.2  # the tails do not enter the scale
    made.train_step((keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(y)))
    assert abs(float(keras.ops.mean(made.seen)) - 700) < 60
    code = code_of(base, after, scaling, models=(model, made))
    assert "+ inputs = (inputs - x.mean(axis=0)) / x.std(axis=0)" in code
    assert "+ return outputs * " in code
    assert "loss_weights" not in code
    known = catalogue(base, original, scaling, Task("numbers", 1, 0.0, None, None), steps=100)
    assert {"inputs", "targets"} <= set(known)
    known = catalogue(base, original, scaling, Task("own_loss", 1, 0.0, None, None), steps=100)
    assert {"inputs", "targets"}.isdisjoint(known)


@pytest.mark.parametrize("whole", [True, False])
def test_a_train_step_that_takes_parts_of_the_model_is_not_scaled_in_its_call(whole):
    model = ByHand(whole)
    original, base = read(model)
    feed, _ = read_feed(X, Y, batch_size=32)
    built = partial(rebuild, original, base, scaling=SCALING)
    assert calls_itself(lambda: built(base), feed.take(np.arange(2))) is whole


def test_each_class_weighs_as_much_where_one_is_rare():
    labels = np.array([0] * 90 + [1] * 10)
    weights = balanced_weights(labels)
    assert weights == {"0": 0.5556, "1": 5.0}
    assert balanced_weights(np.eye(2)[labels]) == weights
    assert balanced_weights(np.arange(50) % 3) == {}
    assert balanced_weights(np.array([0.0, np.nan])) == balanced_weights(np.ones((4, 3))) == {}
    _, base = read(in_a_graph(Tower()))
    code = code_of(base, replace(base, class_weights=weights))
    assert code == "# In fit\n+ class_weight={0: 0.5556, 1: 5}"


def test_a_change_acts_on_each_cause_that_a_rule_can_name():
    causes = {code for code, rule in rules().items() if rule.kind is Kind.CAUSE}
    own_code = ["frozen_random_numbers"]  # what the Python of a user's own step draws, no setting changes
    assert [code for code in causes if not BY_CAUSE.get(code)] == own_code


@pytest.mark.parametrize("codes", [(), ("saturated_units", "corrupt_batch")])
def test_what_is_tried_does_not_depend_on_a_right_diagnosis(codes):
    known = {
        name: Change(name, name, int(name in ("initializers", "mask")), replace)
        for name in (*STANDARD, "clip", "rate_0.1")
    }
    findings = [SimpleNamespace(code=code, kind=Kind.CAUSE) for code in codes]
    tried = [frozenset(change.name for change in changes) for changes in candidates(findings, known)]
    assert {frozenset([name]) for name in known} <= set(tried)
    standard = set(STANDARD) - {"head_and_loss", "positive_outputs"}  # one of three heads
    sets = [standard, standard - {"initializers", "mask"}, standard - {"adam"} | {"rate_0.1", "clip"}]
    assert all(tried.index(frozenset(names)) < 12 for names in sets)
