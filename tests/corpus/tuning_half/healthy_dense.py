"""Sound dense nets that a hasty rule would take for sick ones."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _digits() -> tuple:
    x, y = data.digits()
    return x[:1400] / 16, y[:1400], (x[1400:] / 16, y[1400:])


def four_units() -> Program:
    """Two layers of four tanh units."""
    keras.utils.set_random_seed(111)
    x, y = data.iris()
    model = keras.Sequential(
        [
            layers.Input((4,)),
            layers.Dense(4, activation="tanh"),
            layers.Dense(4, activation="tanh"),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile(optimizers.Adam(0.03), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, data.standardized(x), y, batch_size=16, epochs=20)


def two_thousand_units() -> Program:
    """A width of 2048 and a rate of 2e-5, which is enough at that width."""
    keras.utils.set_random_seed(112)
    x, y, validation = _digits()
    inputs = keras.Input((64,))
    hidden = layers.Dense(2048, activation="relu", kernel_initializer="he_normal")(inputs)
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(hidden))
    model.compile(optimizers.Adam(2e-5), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=10, validation_data=validation)


def thirty_layers_normalized() -> Program:
    """Thirty plain layers with LayerNorm behind each."""
    keras.utils.set_random_seed(113)
    x, y, validation = _digits()
    model = keras.Sequential([layers.Input((64,))])
    for _ in range(30):
        model.add(layers.Dense(64, kernel_initializer="he_normal"))
        model.add(layers.LayerNormalization())
        model.add(layers.Activation("relu"))
    model.add(layers.Dense(10))
    model.compile(optimizers.Adam(1e-3), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=64, epochs=8, validation_data=validation)


def forty_residual_blocks() -> Program:
    """Forty residual blocks with BatchNorm, eighty layers deep."""
    keras.utils.set_random_seed(114)
    x, y = data.digits()
    inputs = keras.Input((64,))
    hidden = layers.Dense(32)(inputs)
    for _ in range(40):
        branch = layers.Activation("relu")(layers.BatchNormalization()(hidden))
        hidden = layers.Add()([hidden, layers.Dense(32, kernel_initializer="he_normal")(branch)])
    hidden = layers.BatchNormalization()(hidden)
    model = keras.Model(inputs, layers.Dense(10)(hidden))
    model.compile(optimizers.SGD(0.05), LOGITS, metrics=["accuracy"])
    return Program(model, x / 16, y, batch_size=64, epochs=6)


def self_normalizing() -> Program:
    """Twelve SELU layers with LeCun's weights and alpha dropout."""
    keras.utils.set_random_seed(115)
    x, y = data.breast_cancer()
    model = keras.Sequential([layers.Input((30,))])
    for _ in range(12):
        model.add(layers.Dense(48, activation="selu", kernel_initializer="lecun_normal"))
        model.add(layers.AlphaDropout(0.05))
    model.add(layers.Dense(1, activation="sigmoid"))
    model.compile(optimizers.SGD(0.005, momentum=0.9), "binary_crossentropy", metrics=["accuracy"])
    return Program(model, data.standardized(x), y, batch_size=32, epochs=10)


def rate_of_one_half() -> Program:
    """Multinomial logistic regression on pixels from 0 to 1 with SGD at a rate of one half."""
    keras.utils.set_random_seed(116)
    x, y, validation = _digits()
    model = keras.Sequential([layers.Input((64,)), layers.Dense(10, activation="softmax")])
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    model.compile(optimizers.SGD(0.5), loss, metrics=["accuracy"])
    return Program(
        model,
        x,
        keras.utils.to_categorical(y, 10),
        batch_size=128,
        epochs=10,
        validation_data=(validation[0], keras.utils.to_categorical(validation[1], 10)),
    )


def edge_of_stability() -> Program:
    """Gradient descent on all 500 samples at once, at nearly the largest rate that it bears."""
    keras.utils.set_random_seed(117)
    x, y = data.digits()
    targets = keras.utils.to_categorical(y[:500], 10)
    model = keras.Sequential(
        [
            layers.Input((64,)),
            layers.Dense(40, activation="tanh"),
            layers.Dense(40, activation="tanh"),
            layers.Dense(10),
        ]
    )
    model.compile(optimizers.SGD(0.5), "mse", metrics=["categorical_accuracy"])
    return Program(model, x[:500] / 16, targets, batch_size=500, epochs=250)


def most_units_dropped() -> Program:
    """Dropout of 0.7, under which the training loss stays above that of validation."""
    keras.utils.set_random_seed(118)
    x, y, validation = _digits()
    model = keras.Sequential(
        [
            layers.Input((64,)),
            layers.Dense(256, activation="relu"),
            layers.Dropout(0.7),
            layers.Dense(256, activation="relu"),
            layers.Dropout(0.7),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=10, validation_data=validation)


def one_in_ten() -> Program:
    """Is it an eight? One sample in ten says yes; the last bias starts at the logarithm of the odds."""
    keras.utils.set_random_seed(119)
    x, y, validation = _digits()
    bias = keras.initializers.Constant(np.log(0.1 / 0.9))
    inputs = keras.Input((64,))
    hidden = layers.Dense(64, activation="leaky_relu")(inputs)
    hidden = layers.Dense(64, activation="leaky_relu")(hidden)
    model = keras.Model(inputs, layers.Dense(1, activation="sigmoid", bias_initializer=bias)(hidden))
    model.compile(optimizers.Nadam(0.002), "binary_crossentropy", metrics=["accuracy"])
    validation = (validation[0], (validation[1] == 8).astype("float32"))
    return Program(model, x, (y == 8).astype("float32"), epochs=8, validation_data=validation)


CASES = (
    Case("four_units_wide", four_units, "scikit-learn's iris, as small a net as tutorials show"),
    Case(
        "wide_at_a_small_rate",
        two_thousand_units,
        "Lee et al., 1902.06720: wide nets learn while their weights hardly move",
    ),
    Case("thirty_layers_with_layer_norm", thirty_layers_normalized, "Ba, Kiros, Hinton, 1607.06450"),
    Case("forty_residual_blocks", forty_residual_blocks, "He et al., 1603.05027"),
    Case("self_normalizing_net", self_normalizing, "Klambauer et al., 1706.02515"),
    Case("logistic_regression_at_half", rate_of_one_half, "Szegedy et al., 1512.00567, label smoothing; plain SGD"),
    Case("edge_of_stability", edge_of_stability, "Cohen et al., 2103.00065"),
    Case("dropout_of_seven_tenths", most_units_dropped, "Srivastava et al., JMLR 15, 2014"),
    Case("one_in_ten", one_in_ten, "TensorFlow tutorial 'Classification on imbalanced data': the bias of the odds"),
)
