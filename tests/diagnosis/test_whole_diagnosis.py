"""What only a diagnosis from model to finding shows: probes, trial and rules must mean the same by the same words."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

import gradrecipes as gr

layers = keras.layers
X, Y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)[:800]
Y = Y[:800]
AMOUNT = X.mean(axis=1, keepdims=True) * 10 - 3
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def codes(model, x, y, **more):
    return [finding.code for finding in gr.diagnose(model, x, y, **more).findings]


@pytest.fixture
def half_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.slow
def test_a_loss_scaler_that_looks_for_its_scale_is_no_illness(half_precision):
    """Squares of 400 raise the first scaled gradients beyond float16; two steps later the scale fits."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), layers.Dense(32, "relu"), layers.Dense(10, dtype="float32")])
    model.compile("adam", LOGITS, loss_weights=[64.0])
    diagnosis = gr.diagnose(model, X, Y)
    assert diagnosis.trace.description.loss_scaler == "LossScaleOptimizer"
    assert not np.isfinite(diagnosis.trace.gradient_norm[:2]).all()
    assert diagnosis.findings == ()


@pytest.mark.parametrize(
    ("initializer", "expected"), [("zeros", True), pytest.param("he_normal", False, marks=pytest.mark.slow)]
)
def test_a_net_that_no_gradient_enters_is_told_though_its_last_bias_learns(initializer, expected):
    keras.utils.set_random_seed(0)
    hidden = [layers.Dense(16, "relu", kernel_initializer=initializer) for _ in range(2)]
    model = keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(1, "sigmoid", kernel_initializer=initializer)])
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy")
    found = codes(model, X, (Y < 3).astype("float32"))
    assert (found[:1] == ["vanishing_initialization"]) is expected and bool(found) is expected


def test_branches_that_begin_at_zero_are_not_cut_off():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    x = layers.Dense(32, "relu")(inputs)
    for _ in range(3):
        branch = layers.Dense(32, "relu", kernel_initializer="zeros")(x)
        x = layers.Add()([x, branch])
    model = keras.Model(inputs, layers.Dense(10, kernel_initializer="zeros")(x))
    model.compile(keras.optimizers.Adam(0.003), LOGITS)
    assert codes(model, X, Y) == []


def _dropped(*rates):
    first, second = map(layers.Dropout, rates)
    return keras.Sequential([keras.Input((64,)), first, layers.Dense(16, "relu"), second, layers.Dense(10)]), "sgd"


def _with_norm_at_most(norm):
    hidden = [layers.Dense(32, "relu", kernel_constraint=keras.constraints.MaxNorm(norm)) for _ in range(2)]
    return keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(10)]), "adam"


@pytest.mark.parametrize(
    ("build", "strength", "expected"),
    [
        (_dropped, (0.98, 0.95), ["excessive_regularization"]),
        pytest.param(_dropped, (0.2, 0.5), [], marks=pytest.mark.slow),
        pytest.param(_with_norm_at_most, (0.01,), ["excessive_regularization"], marks=pytest.mark.slow),
        pytest.param(_with_norm_at_most, (2.0,), [], marks=pytest.mark.slow),
    ],
)
def test_regularization_is_told_where_the_net_learns_only_without(build, strength, expected):
    keras.utils.set_random_seed(0)
    model, optimizer = build(*strength)
    model.compile(optimizer, LOGITS)
    before = model.to_json(), [weight.copy() for weight in model.get_weights()]
    assert codes(model, X, Y)[:1] == expected
    assert model.to_json() == before[0]
    assert all(np.array_equal(one, other) for one, other in zip(before[1], model.get_weights(), strict=True))


@pytest.mark.parametrize(
    ("size", "expected"), [(300.0, ["embedding_spike"]), pytest.param(0.05, [], marks=pytest.mark.slow)]
)
def test_vectors_that_throw_the_first_answers_far_out_are_blamed_before_the_rate(size, expected):
    keras.utils.set_random_seed(0)
    tokens = np.random.default_rng(0).integers(0, 200, (800, 12))
    start = keras.initializers.RandomNormal(stddev=size)
    model = keras.Sequential(
        [
            keras.Input((12,), dtype="int32"),
            layers.Embedding(200, 32, embeddings_initializer=start),
            layers.GlobalAveragePooling1D(),
            layers.Dense(64, "relu"),
            layers.Dense(3),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), LOGITS)
    assert codes(model, tokens, (tokens[:, 0] % 3), batch_size=16)[:1] == expected


class Block(layers.Layer):
    """Adds to its input inside its call, where no layer shows it."""

    def __init__(self, normalized):
        super().__init__()
        self.normalization = layers.LayerNormalization() if normalized else layers.Identity()
        self.up = layers.Dense(128, "relu", kernel_initializer="he_normal")
        self.down = layers.Dense(32, kernel_initializer="he_normal")

    def call(self, x):
        return x + self.down(self.up(self.normalization(x)))


@pytest.mark.slow
@pytest.mark.parametrize(("normalized", "expected"), [(False, "missing_normalization"), (True, None)])
def test_blocks_that_add_within_their_call_are_seen_to_grow(normalized, expected):
    keras.utils.set_random_seed(0)
    blocks = [Block(normalized) for _ in range(12)]
    end = [layers.LayerNormalization()] if normalized else []
    model = keras.Sequential([keras.Input((64,)), layers.Dense(32), *blocks, *end, layers.Dense(10)])
    model.compile(keras.optimizers.SGD(0.03, momentum=0.9), LOGITS)
    assert next(iter(codes(model, X, Y)), None) == expected


class Table(keras.Model):
    """Adds its branches in its own call; neither a layer nor a block shows the sums."""

    def __init__(self, normalized):
        super().__init__()
        kind = layers.LayerNormalization if normalized else layers.Identity
        self.first, self.last = layers.Dense(32), layers.Dense(10)
        self.before = [kind() for _ in range(13)]
        self.up = [layers.Dense(64, "relu", kernel_initializer="he_normal") for _ in range(12)]
        self.down = [layers.Dense(32, kernel_initializer="he_normal") for _ in range(12)]

    def call(self, x):
        x = self.first(x)
        for before, up, down in zip(self.before[1:], self.up, self.down, strict=True):
            x = x + down(up(before(x)))
        return self.last(self.before[0](x))


@pytest.mark.slow
@pytest.mark.parametrize(("normalized", "expected"), [(False, "missing_normalization"), (True, None)])
def test_sums_in_the_call_of_a_model_are_seen_by_what_the_layers_take(normalized, expected):
    keras.utils.set_random_seed(0)
    model = Table(normalized)
    model.compile(keras.optimizers.SGD(0.03, momentum=0.9), LOGITS)
    assert next(iter(codes(model, X, Y)), None) == expected


@pytest.mark.parametrize(
    ("power", "expected"), [("exp(8 x)", "unbounded_activation"), pytest.param("tanh(x)", None, marks=pytest.mark.slow)]
)
def test_arithmetic_without_weights_that_blows_a_signal_up_is_named(power, expected):
    keras.utils.set_random_seed(0)
    act = {"exp(8 x)": lambda x: keras.ops.exp(8.0 * x), "tanh(x)": keras.ops.tanh}[power]
    model = keras.Sequential(
        [keras.Input((64,)), layers.Dense(32), layers.Lambda(act), layers.Dense(32, "relu"), layers.Dense(10)]
    )
    model.compile("adam", LOGITS)
    assert next(iter(codes(model, X, Y)), None) == expected


def test_a_threshold_is_no_amplifier():
    keras.utils.set_random_seed(0)
    shut = [layers.Dense(32), layers.ReLU(threshold=6.0)]
    model = keras.Sequential([keras.Input((64,)), *shut, layers.Dense(10)])
    model.compile("adam", LOGITS)
    assert codes(model, X, Y)[0] == "dead_units"


class Subtracts(keras.Model):
    """Computes a squared error of its own, of predictions [n, 1] and targets [n]."""

    def __init__(self, flat):
        super().__init__()
        self.flat = flat
        self.net = keras.Sequential([layers.Dense(32, "relu"), layers.Dense(1)])
        self.mean = keras.metrics.Mean(name="loss")

    def call(self, x):
        return self.net(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            predicted = self(x, training=True)
            loss = tf.reduce_mean(tf.square(y - (predicted[:, 0] if self.flat else predicted)))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        self.mean.update_state(loss)
        return {"loss": self.mean.result()}


@pytest.mark.parametrize(
    ("flat", "expected"), [(False, ["loss_output_mismatch"]), pytest.param(True, [], marks=pytest.mark.slow)]
)
def test_a_step_that_compares_all_with_all_is_told(flat, expected):
    keras.utils.set_random_seed(0)
    model = Subtracts(flat)
    model(X[:1])
    model.compile(keras.optimizers.Adam(0.003))
    assert codes(model, X, AMOUNT[:, 0])[:1] == expected


@pytest.mark.slow
def test_a_last_bias_that_starts_at_the_median_is_no_growth():
    keras.utils.set_random_seed(0)
    start = keras.initializers.Constant(20.0)
    hidden = [layers.Dense(64, "relu"), layers.Dense(32, "relu")]
    model = keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(1, bias_initializer=start)])
    model.compile(keras.optimizers.Adam(0.005), keras.losses.Huber(2.0))
    assert codes(model, X, 20 + 5 * AMOUNT) == []


def test_moments_that_are_no_number_are_named_though_the_loss_stays_finite():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), layers.Dense(16, "relu"), layers.Dense(10)])
    model.compile("adam", LOGITS)
    good = model.get_weights()
    model.train_on_batch(np.full((4, 64), np.nan, np.float32), Y[:4])
    model.set_weights(good)
    assert codes(model, X, Y)[0] == "optimizer_state"


class Likelihood(keras.Model):
    """Predicts mean and logarithm of the variance, in a train step of its own."""

    def __init__(self):
        super().__init__()
        self.net = keras.Sequential([layers.Dense(16, "relu"), layers.Dense(2)])

    def call(self, x):
        return self.net(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            mean, spread = tf.unstack(self(x, training=True), axis=1)
            loss = tf.reduce_mean(0.5 * spread + 0.5 * tf.square(y - mean) * tf.exp(-spread))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


@pytest.mark.parametrize(
    ("dollars", "expected"), [(9000.0, ["unscaled_targets"]), pytest.param(1.0, [], marks=pytest.mark.slow)]
)
def test_targets_that_only_a_train_step_of_its_own_knows_are_scaled_too(dollars, expected):
    keras.utils.set_random_seed(0)
    model = Likelihood()
    model(X[:1])
    model.compile(keras.optimizers.SGD(0.01))
    assert codes(model, X, (dollars * (AMOUNT[:, 0] + (4 if dollars > 1 else 0))).astype("float32"))[:1] == expected


def test_columns_of_a_dict_are_scaled_by_their_names():
    """Keras flattens a dict by its sorted keys; a table in another order is the same table."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    region, people = rng.integers(0, 20, 800), rng.lognormal(11, 1.2, (800, 1)).astype("float32")
    inputs = {"region": keras.Input((), dtype="int32", name="region"), "people": keras.Input((1,), name="people")}
    joined = layers.Concatenate()([layers.Embedding(20, 6)(inputs["region"]), inputs["people"]])
    model = keras.Model(inputs, layers.Dense(1)(layers.Dense(32, "relu")(joined)))
    model.compile(keras.optimizers.Adam(0.003), "mse")
    y = (np.log(people[:, 0]) - 11).astype("float32")
    assert codes(model, {"region": region, "people": people}, y)[0] == "unscaled_inputs"


class Classes(keras.Model):
    """Computes its cross-entropy of logits in its own train step."""

    def __init__(self, activation, rank):
        super().__init__()
        self.hidden, self.last = layers.Dense(32, "relu"), layers.Dense(rank, activation)

    def call(self, x):
        return self.last(self.hidden(x))

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            predicted = self(x, training=True)
            loss = (
                tf.nn.sigmoid_cross_entropy_with_logits(y, predicted)
                if predicted.shape[-1] == 1
                else tf.nn.sparse_softmax_cross_entropy_with_logits(y, predicted)
            )
            loss = tf.reduce_mean(loss)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "rank", "expected"),
    [("softmax", 10, "loss_output_mismatch"), ("sigmoid", 1, "loss_output_mismatch"), (None, 10, None)],
)
def test_a_cross_entropy_in_a_train_step_of_its_own_is_known_by_its_value(activation, rank, expected):
    keras.utils.set_random_seed(0)
    model = Classes(activation, rank)
    model(X[:1])
    model.compile(keras.optimizers.SGD(0.1))
    y = Y if rank == 10 else (Y < 5).astype("float32")[:, None]
    assert next(iter(codes(model, X, y)), None) == expected


@pytest.mark.parametrize(("frozen", "told"), [(True, True), (False, False)])
def test_a_net_that_stays_frozen_in_its_own_turn_is_told(frozen, told):
    class Duel(keras.Model):
        def __init__(self):
            super().__init__()
            self.forger = keras.Sequential([keras.Input((3,)), layers.Dense(16, "relu"), layers.Dense(2)])
            self.judge = keras.Sequential([keras.Input((2,)), layers.Dense(16, "relu"), layers.Dense(1)])
            self.judge.trainable = not frozen

        def call(self, noise):
            return self.forger(noise)

        def train_step(self, data):
            real = data[0] if isinstance(data, tuple) else data
            noise, losses = tf.random.normal((tf.shape(real)[0], 3)), {}
            for name, net, signs in (("judge", self.judge, (-1.0, 1.0)), ("forger", self.forger, (0.0, -1.0))):
                with tf.GradientTape() as tape:
                    judged = [self.judge(real), self.judge(self.forger(noise))]
                    parts = [tf.reduce_mean(tf.nn.softplus(s * one)) for s, one in zip(signs, judged, strict=True)]
                    losses[name] = tf.add_n(parts)
                gradients = tape.gradient(losses[name], net.trainable_variables)
                self.optimizers[name].apply(gradients, net.trainable_variables)
            return losses

    keras.utils.set_random_seed(0)
    model = Duel()
    model.compile()
    model.optimizers = {name: keras.optimizers.Adam(1e-3) for name in ("judge", "forger")}
    real = np.random.default_rng(0).normal(2.0, 0.5, size=(256, 2)).astype("float32")
    found = [one.code for one in gr.diagnose(model, real).findings]
    assert ("frozen_weights" in found) == told and "failing_step" not in found


@pytest.mark.parametrize(("size", "expected"), [(1e-4, ["unscaled_targets"]), (1.0, [])])
def test_targets_far_below_unit_size_are_told_where_the_net_learns_scaled_ones(size, expected):
    keras.utils.set_random_seed(9)
    x = np.random.default_rng(3).normal(size=(800, 6)).astype("float32")
    y = size * (np.tanh(x[:, :1]) * x[:, 1:2] + 0.5 * x[:, 2:3])
    model = keras.Sequential([keras.Input((6,)), layers.Dense(32, "relu"), layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.003), "mse")
    assert codes(model, x, y, epochs=15)[:1] == expected
