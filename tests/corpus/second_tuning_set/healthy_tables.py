"""Sound programs on tables and digits that a hasty rule would take for sick ones."""

from __future__ import annotations

import keras
import numpy as np
from keras import initializers, layers, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def high_but_stable() -> Program:
    """Softmax regression at a rate that is high and stable."""
    keras.utils.set_random_seed(221)
    x, y = data.iris()
    model = keras.Sequential([layers.Input((4,)), layers.Dense(3, activation="softmax")])
    model.compile(optimizers.SGD(0.8), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, data.standardized(x), y, batch_size=16, epochs=20)


def two_moons() -> Program:
    """Two moons by ten tanh units."""
    keras.utils.set_random_seed(222)
    from sklearn.datasets import make_moons

    x, y = make_moons(600, noise=0.15, random_state=0)
    model = keras.Sequential(
        [
            layers.Input((2,)),
            layers.Dense(6, activation="tanh"),
            layers.Dense(4, activation="tanh"),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(optimizers.Adam(0.01), "binary_crossentropy", metrics=["accuracy"])
    return Program(model, x.astype("float32"), y, batch_size=32, epochs=20)


def deep_pre_norm() -> Program:
    """Ten residual blocks that begin with LayerNorm."""
    keras.utils.set_random_seed(223)
    x, y, validation = data.split_digits()
    inputs = keras.Input((64,))
    hidden = layers.Dense(48)(inputs)
    for _ in range(10):
        branch = layers.Dense(96, activation="gelu")(layers.LayerNormalization()(hidden))
        hidden = hidden + layers.Dense(48)(branch)
    model = keras.Model(inputs, layers.Dense(10)(layers.LayerNormalization()(hidden)))
    model.compile(optimizers.AdamW(0.001), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=64, epochs=6, validation_data=validation)


def slow_and_honest() -> Program:
    """SGD at its default rate, slow and steady."""
    keras.utils.set_random_seed(225)
    x, y, validation = data.split_digits()
    model = keras.Sequential(
        [layers.Input((64,)), layers.Dense(64, activation="relu"), layers.Dense(10, activation="softmax")]
    )
    model.compile(optimizers.SGD(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=20, validation_data=validation)


def rare_class() -> Program:
    """A class of four in a hundred, whose odds are the last bias."""
    keras.utils.set_random_seed(226)
    from sklearn.datasets import make_classification

    x, y = make_classification(2000, 20, n_informative=6, weights=[0.96], class_sep=1.5, random_state=1)
    bias = initializers.Constant(float(np.log(y.mean() / (1 - y.mean()))))
    model = keras.Sequential(
        [
            layers.Input((20,)),
            layers.Dense(16, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(1, activation="sigmoid", bias_initializer=bias),
        ]
    )
    model.compile(optimizers.Adam(0.001), "binary_crossentropy", metrics=[keras.metrics.AUC(name="prc", curve="PR")])
    return Program(model, data.standardized(x), y.astype("float32"), batch_size=64, epochs=20)


def one_hot_names() -> Program:
    """Four names out of thirty each, one-hot."""
    keras.utils.set_random_seed(227)
    rng = np.random.default_rng(12)
    codes = rng.integers(0, 30, (1500, 4))
    effects = rng.normal(size=(4, 30))
    y = data.standardized(effects[np.arange(4), codes].sum(1) + 0.3 * rng.normal(size=1500))
    x = np.eye(30, dtype="float32")[codes].reshape(1500, 120)
    model = keras.Sequential([layers.Input((120,)), layers.Dense(32, activation="relu"), layers.Dense(1)])
    model.compile(optimizers.Adam(0.005), "mae")
    return Program(model, x, y, batch_size=32, epochs=15)


def twenty_athletes() -> Program:
    """Twenty samples, in batches of five."""
    keras.utils.set_random_seed(230)
    from sklearn.datasets import load_linnerud

    table = load_linnerud()
    x, y = data.standardized(table.target), data.standardized(table.data)  # the body explains the exercise
    model = keras.Sequential([layers.Input((3,)), layers.Dense(16, activation="tanh"), layers.Dense(3)])
    model.compile(optimizers.Adam(0.02), "mse")
    return Program(model, x, y, batch_size=5, epochs=60)


def cosine() -> Program:
    """Cosine similarity, whose loss falls below zero."""
    keras.utils.set_random_seed(231)
    x, y, _ = data.split_digits()
    codes = np.random.default_rng(13).normal(size=(10, 16)).astype("float32")
    model = keras.Sequential([layers.Input((64,)), layers.Dense(64, activation="relu"), layers.Dense(16)])
    model.compile(
        optimizers.Adam(0.002), keras.losses.CosineSimilarity(), metrics=[keras.metrics.CosineSimilarity(name="cosine")]
    )
    return Program(model, x, codes[y], batch_size=32, epochs=8)


def many_metrics() -> Program:
    """A list of metrics, weighted ones too, and an L2 penalty."""
    keras.utils.set_random_seed(232)
    x, y = data.breast_cancer()
    inputs = keras.Input((30,))
    hidden = layers.Dense(24, activation="relu", kernel_regularizer=keras.regularizers.L2(1e-3))(inputs)
    model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(hidden))
    model.compile(
        optimizers.Adam(0.003),
        "binary_crossentropy",
        metrics=[
            keras.metrics.BinaryAccuracy(),
            keras.metrics.AUC(),
            keras.metrics.Precision(),
            keras.metrics.Recall(),
            keras.metrics.TruePositives(),
            keras.metrics.FalseNegatives(),
            keras.metrics.MeanSquaredError(),
        ],
        weighted_metrics=["accuracy"],
    )
    x = data.standardized(x)
    return Program(
        model,
        x[:450],
        y[:450].astype("float32")[:, None],
        batch_size=32,
        epochs=10,
        validation_data=(x[450:], y[450:].astype("float32")[:, None]),
    )


def parity_plateau() -> Program:
    """Parity of three bits among eight: flat for long, then learnt."""
    keras.utils.set_random_seed(233)
    rng = np.random.default_rng(14)
    bits = rng.integers(0, 2, (2000, 8))
    y = bits[:, :3].sum(1) % 2
    model = keras.Sequential([layers.Input((8,)), layers.Dense(64, activation="relu"), layers.Dense(1)])
    model.compile(
        optimizers.SGD(0.1, momentum=0.9),
        keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy(threshold=0.0)],
    )
    return Program(model, (2 * bits - 1).astype("float32"), y.astype("float32")[:, None], batch_size=64, epochs=15)


def hinge() -> Program:
    """Squared hinge of a tanh, with labels -1 and 1."""
    keras.utils.set_random_seed(234)
    x, y, _ = data.split_digits()
    sign = np.where(y % 2, 1.0, -1.0).astype("float32")[:, None]
    model = keras.Sequential(
        [layers.Input((64,)), layers.Dense(64, activation="relu"), layers.Dense(1, activation="tanh")]
    )
    model.compile(optimizers.Adam(0.002), "squared_hinge")
    return Program(model, x, sign, batch_size=32, epochs=10)


def two_sources() -> Program:
    """The halves of a digit by their names, with Lion."""
    keras.utils.set_random_seed(235)
    x, y = data.digits()
    x = x / 16
    top, bottom = keras.Input((32,), name="top"), keras.Input((32,), name="bottom")
    hidden = layers.Concatenate()(
        [layers.Dense(32, activation="swish")(top), layers.Dense(32, activation="swish")(bottom)]
    )
    model = keras.Model({"top": top, "bottom": bottom}, layers.Dense(10)(hidden))
    model.compile(optimizers.Lion(5e-4), LOGITS, metrics=["accuracy"])
    return Program(model, {"top": x[:, :32], "bottom": x[:, 32:]}, y, batch_size=32, epochs=10)


CASES = (
    Case("softmax_regression_at_high_rate", high_but_stable, "Cohen et al., 2103.00065: a high rate that is stable"),
    Case("two_moons_by_ten_units", two_moons, "scikit-learn's make_moons"),
    Case("ten_blocks_of_layer_norm", deep_pre_norm, "Xiong et al., 2002.04745"),
    Case("slow_and_honest_sgd", slow_and_honest, "Keras tutorial of the first net, with SGD's default rate"),
    Case("four_in_a_hundred", rare_class, "TensorFlow tutorial 'Classification on imbalanced data'"),
    Case("one_hot_categories", one_hot_names, "Keras example 'Structured data classification'"),
    Case("twenty_athletes", twenty_athletes, "scikit-learn's load_linnerud"),
    Case("negative_cosine", cosine, "Keras' page of CosineSimilarity, whose loss is negative"),
    Case("a_list_of_metrics", many_metrics, "TensorFlow tutorial 'Classification on imbalanced data': its metrics"),
    Case("parity_of_three_bits", parity_plateau, "Barak et al., 2207.08799: hidden progress on parities"),
    Case("odd_or_even_by_hinge", hinge, "Keras' page of the hinge losses"),
    Case("two_halves_of_a_digit", two_sources, "Keras guide 'The Functional API'"),
)
