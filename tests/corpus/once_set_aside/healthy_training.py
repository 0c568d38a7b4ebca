"""Sound programs whose data, losses, rates or curves may look suspicious."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program


def edge_of_stability() -> Program:
    """Full-batch gradient descent at the edge of stability: the loss falls, but not smoothly."""
    keras.utils.set_random_seed(121)
    x, y = data.digits()
    x, y = data.standardized(x[:400]), y[:400]
    model = keras.Sequential([keras.Input((64,)), layers.Dense(48, "tanh"), layers.Dense(48, "tanh"), layers.Dense(10)])
    model.compile(optimizers.SGD(0.6), "mse", metrics=["accuracy"])
    return Program(model, x, keras.utils.to_categorical(y, 10), 400, 150)


def rescued_pixels() -> Program:
    """Pixels of 0 to 255 go in raw, and the first layer of the model scales them."""
    keras.utils.set_random_seed(122)
    x, y = data.mnist(1500)
    inputs = keras.Input((28, 28))
    hidden = layers.Rescaling(1 / 255.0)(inputs)
    hidden = layers.Dense(64, "relu")(layers.Flatten()(hidden))
    outputs = layers.Dense(10, "softmax")(hidden)
    model = keras.Model(inputs, outputs)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 32, 4)


def normalization_layer() -> Program:
    """Raw measurements, from thousandths to thousands, into a Normalization layer that was adapted to them."""
    keras.utils.set_random_seed(123)
    x, y = data.breast_cancer()
    scale = layers.Normalization()
    scale.adapt(x)
    inputs = keras.Input((30,))
    hidden = layers.Dense(24, "gelu")(scale(inputs))
    outputs = layers.Dense(1)(hidden)
    model = keras.Model(inputs, outputs)
    model.compile(optimizers.Adam(0.003), keras.losses.BinaryCrossentropy(from_logits=True), metrics=["accuracy"])
    return Program(model, x[:450], y[:450], 32, 10, (x[450:], y[450:]))


def counts() -> Program:
    """A Poisson regression with its logarithmic link: exponential output, zeros among the targets."""
    keras.utils.set_random_seed(124)
    rng = np.random.default_rng(124)
    x = rng.normal(size=(1500, 5)).astype("float32")
    y = rng.poisson(np.exp(0.8 + x @ [0.5, -0.4, 0.3, 0.0, 0.2])).astype("float32")[:, None]
    model = keras.Sequential([keras.Input((5,)), layers.Dense(16, "tanh"), layers.Dense(1, "exponential")])
    model.compile(optimizers.Adam(0.005), "poisson")
    return Program(model, x, y, 32, 10)


def robust_prices() -> Program:
    """Prices of 5 to 50 as they are, under a Huber loss, with a last bias that starts at their median."""
    keras.utils.set_random_seed(125)
    x, y = data.boston()
    x, y = data.standardized(x), y.astype("float32")[:, None]
    model = keras.Sequential([keras.Input((13,)), layers.Dense(64, "relu"), layers.Dense(32, "relu")])
    model.add(layers.Dense(1, bias_initializer=keras.initializers.Constant(float(np.median(y)))))
    model.compile(optimizers.Adam(0.005), keras.losses.Huber(2.0), metrics=["mae"])
    return Program(model, x, y, 32, 20)


def rare_class() -> Program:
    """One class in twenty, weights for the samples, and a last bias at the logarithm of the odds."""
    keras.utils.set_random_seed(126)
    x, y = data.digits()
    x, y = x / 16.0, (y == 8).astype("float32")[:, None]
    keep = (y[:, 0] == 0) | (np.arange(len(y)) % 2 == 0)
    x, y = x[keep], y[keep]
    odds = float(np.log(y.mean() / (1.0 - y.mean())))
    model = keras.Sequential([keras.Input((64,)), layers.Dense(32, "relu")])
    model.add(layers.Dense(1, "sigmoid", bias_initializer=keras.initializers.Constant(odds)))
    model.compile(optimizers.Adam(0.003), "binary_crossentropy", metrics=[keras.metrics.AUC(name="auc")])
    return Program(model, x, y, 64, 12)


def warmed_up() -> Program:
    """The rate starts at 0, rises for a hundred steps and falls to 0 along a cosine: the first step moves nothing."""
    keras.utils.set_random_seed(127)
    x, y = data.digits()
    schedule = optimizers.schedules.CosineDecay(0.0, 300, warmup_target=0.005, warmup_steps=100)
    model = keras.Sequential([keras.Input((64,)), layers.Rescaling(1 / 16.0)])
    model.add(layers.Dense(64, "silu"))
    model.add(layers.Dense(64, "silu"))
    model.add(layers.Dense(10, "softmax"))
    model.compile(optimizers.AdamW(schedule), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 32, 7)


def smoothed_labels() -> Program:
    """Label smoothing keeps the loss from ever coming near 0; gradients are clipped, though they hardly need it."""
    keras.utils.set_random_seed(128)
    x, y = data.digits()
    x = x / 16.0
    model = keras.Sequential([keras.Input((64,)), layers.Dense(64, "leaky_relu"), layers.Dense(10)])
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
    model.compile(optimizers.SGD(0.2, momentum=0.9, nesterov=True, global_clipnorm=1.0), loss, metrics=["accuracy"])
    return Program(model, x, keras.utils.to_categorical(y, 10), 64, 6)


def one_batch() -> Program:
    """All the data in one batch, with Adagrad and its large rate."""
    keras.utils.set_random_seed(129)
    x, y = data.wine()
    x = data.standardized(x)
    model = keras.Sequential([keras.Input((13,)), layers.Dense(16, "tanh"), layers.Dense(3, "softmax")])
    model.compile(optimizers.Adagrad(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 178, 40)


def single_rows() -> Program:
    """Batches of one row, as in the first neural networks; noisy from step to step, and it learns."""
    keras.utils.set_random_seed(130)
    x, y = data.iris()
    x = data.standardized(x)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, "tanh"), layers.Dense(3, "softmax")])
    model.compile(optimizers.SGD(0.03), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 1, 8)


def two_heads() -> Program:
    """Two inputs and two outputs of different kinds: a car's mileage and the continent it was built on."""
    keras.utils.set_random_seed(131)
    x, y = data.auto_mpg()
    x, y = x.astype("float32"), data.standardized(y[:, None])
    inputs = {"engine": keras.Input((4,), name="engine"), "shape": keras.Input((2,), name="shape")}
    hidden = layers.Concatenate()(
        [layers.Dense(24, "relu")(inputs["engine"]), layers.Dense(8, "relu")(inputs["shape"])]
    )
    hidden = layers.Dense(24, "relu")(hidden)
    outputs = {
        "mileage": layers.Dense(1, name="mileage")(hidden),
        "continent": layers.Dense(3, "softmax", name="continent")(hidden),
    }
    model = keras.Model(inputs, outputs)
    losses = {"mileage": "mse", "continent": "sparse_categorical_crossentropy"}
    model.compile("rmsprop", losses, metrics={"continent": "accuracy"}, loss_weights={"mileage": 1.0, "continent": 0.5})
    columns = {"engine": data.standardized(x[:, :4]), "shape": data.standardized(x[:, 4:6])}
    return Program(model, columns, {"mileage": y, "continent": x[:, 6].astype("int32") - 1}, 32, 20)


def many_labels() -> Program:
    """Several labels may hold at once: five sigmoid outputs under a binary crossentropy."""
    keras.utils.set_random_seed(132)
    x, y = data.digits()
    labels = np.stack([y % 2 == 0, y > 4, y % 3 == 0, y == 7, np.isin(y, (0, 6, 8, 9))], axis=1).astype("float32")
    model = keras.Sequential([keras.Input((64,)), layers.BatchNormalization(), layers.Dense(64, "relu")])
    model.add(layers.Dropout(0.3))
    model.add(layers.Dense(5, "sigmoid"))
    model.compile("adam", "binary_crossentropy", metrics=["binary_accuracy"])
    return Program(model, x, labels, 32, 8)


def half_precision() -> Program:
    """Mixed precision with its loss scale, which starts at 32768: scaled gradients are huge and meant to be."""
    keras.utils.set_random_seed(133)
    x, y = data.digits()
    model = keras.Sequential([keras.Input((64,)), layers.Rescaling(1 / 16.0), layers.Dense(64, "relu")])
    model.add(layers.Dense(10, "softmax", dtype="float32"))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x, y, 32, 6)


CASES = tuple(
    Case(build.__name__, build, source, needs="mixed_float16" if build is half_precision else "")
    for build, source in (
        (
            edge_of_stability,
            "Cohen et al. 2021, Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability",
        ),
        (rescued_pixels, "Keras guide, Working with preprocessing layers: Rescaling in the model"),
        (normalization_layer, "Keras guide, Working with preprocessing layers: Normalization and adapt"),
        (counts, "Keras documentation of the Poisson loss; McCullagh and Nelder 1989"),
        (
            robust_prices,
            "Keras documentation of Huber; Karpathy 2019, A Recipe for Training Neural Networks: init well",
        ),
        (rare_class, "TensorFlow tutorial, Classification on imbalanced data: initial bias"),
        (warmed_up, "Keras documentation of CosineDecay with warm-up; Goyal et al. 2017"),
        (smoothed_labels, "Szegedy et al. 2016; Müller et al. 2019, When Does Label Smoothing Help?"),
        (one_batch, "Duchi et al. 2011; Keras documentation of Adagrad: larger rates than the default"),
        (single_rows, "LeCun et al. 1998, Efficient BackProp: stochastic learning"),
        (two_heads, "Keras guide, The functional API: models with several inputs and outputs"),
        (many_labels, "Keras example, Large-scale multi-label text classification"),
        (half_precision, "Keras guide, Mixed precision"),
    )
)
