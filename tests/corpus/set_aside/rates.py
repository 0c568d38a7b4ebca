"""Programs that fail by their learning rate or their optimizer, and what mends them."""

from __future__ import annotations

import keras
from keras import layers, optimizers

from tests.corpus import data
from tests.corpus.case import Program, failing

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def summed_loss(reduction: str = "sum") -> Program:
    """A loss that is summed over the batch, at a rate for the mean."""
    keras.utils.set_random_seed(371)
    x, y = data.mnist(1500)
    model = keras.Sequential(
        [
            layers.Input((28, 28)),
            layers.Flatten(),
            layers.Dense(96, activation="relu"),
            layers.Dense(96, activation="relu"),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
    model.compile(optimizers.SGD(0.1), loss, metrics=["accuracy"])
    return Program(model, x / 255, y, batch_size=128, epochs=6)


def fast_adagrad(rate: float = 5.0) -> Program:
    """Adagrad at a rate of five."""
    keras.utils.set_random_seed(372)
    x, y = data.source_tokens(1200)
    inputs = keras.Input((40,), dtype="int32")
    hidden = layers.Embedding(1000, 24)(inputs)
    hidden = layers.Conv1D(32, 3, activation="tanh")(hidden)
    hidden = layers.Dense(24, activation="tanh")(layers.GlobalMaxPooling1D()(hidden))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(hidden))
    model.compile(optimizers.Adagrad(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x[:1000], y[:1000], batch_size=32, epochs=6, validation_data=(x[1000:], y[1000:]))


def cosine_of_twenty_steps(steps: int = 20) -> Program:
    """A cosine that is over after twenty steps: its owner gave it epochs."""
    keras.utils.set_random_seed(373)
    x, y = data.digits()
    inputs = keras.Input((8, 8))
    hidden = layers.GRU(48)(inputs)
    model = keras.Model(inputs, layers.Dense(10)(hidden))
    model.compile(optimizers.AdamW(optimizers.schedules.CosineDecay(0.003, steps)), LOGITS, metrics=["accuracy"])
    return Program(
        model,
        x[:1400].reshape(-1, 8, 8) / 16,
        y[:1400],
        batch_size=32,
        epochs=10,
        validation_data=(x[1400:].reshape(-1, 8, 8) / 16, y[1400:]),
    )


def fine_tuning_rate(rate: float = 2e-6) -> Program:
    """The rate with which one fine-tunes BERT, for a net that begins at random."""
    keras.utils.set_random_seed(374)
    x, y = data.diabetes()
    model = keras.Sequential(
        [
            layers.Input((10,)),
            layers.Dense(48, activation="relu"),
            layers.BatchNormalization(),
            layers.Dense(24, activation="relu"),
            layers.Dense(1),
        ]
    )
    model.compile(optimizers.AdamW(rate), "huber", metrics=["mae"])
    return Program(model, data.standardized(x), data.standardized(y), batch_size=16, epochs=15)


def second_moment_that_never_moves(beta: float = 1.0) -> Program:
    """Adam with a beta_2 of 1, whose second moment stays at 0."""
    keras.utils.set_random_seed(375)
    x, y = data.digits()
    model = keras.Sequential([layers.Input((64,)), layers.Dense(64, activation="tanh"), layers.Dense(10)])
    model.compile(optimizers.Adam(0.002, beta_2=beta), LOGITS, metrics=["accuracy"])
    return Program(model, x / 16, y, batch_size=32, epochs=8)


def accumulator_of_a_million(start: float = 1e6) -> Program:
    """Adagrad whose accumulator begins at a million."""
    keras.utils.set_random_seed(376)
    x, y = data.breast_cancer()
    inputs = keras.Input((30,))
    hidden = layers.Dense(32, activation="relu")(inputs)
    hidden = layers.Dense(16, activation="relu")(hidden)
    model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(hidden))
    model.compile(
        optimizers.Adagrad(0.05, initial_accumulator_value=start), "binary_crossentropy", metrics=["accuracy"]
    )
    return Program(model, data.standardized(x), y, batch_size=16, epochs=10)


def blank_picture(rate: float = 5.0) -> Program:
    """An autoencoder by SGD at a rate of five and a momentum of 0.95."""
    keras.utils.set_random_seed(377)
    x, _ = data.mnist(1200)
    x = x[..., None] / 255
    model = keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2D(4, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2DTranspose(1, 3, strides=2, padding="same"),
        ]
    )
    model.compile(optimizers.SGD(rate, momentum=0.95), "mse")
    return Program(model, x, x, batch_size=32, epochs=5)


CASES = (
    failing(
        "loss_summed_over_the_batch",
        summed_loss,
        "Keras' page of losses: reduction='sum'; Goyal et al., 1706.02677",
        "learning_rate_too_high",
        ("dead_units",),
        reduction="sum_over_batch_size",
    ),
    failing(
        "adagrad_at_five",
        fast_adagrad,
        "keras issue 3425; Keras' page of Adagrad on its rate",
        "learning_rate_too_high",
        ("saturated_units",),
        rate=0.05,
    ),
    failing(
        "autoencoder_at_rate_five",
        blank_picture,
        "Stack Overflow on convolutional autoencoders that give a blank picture",
        "learning_rate_too_high",
        ("dead_units",),
        rate=0.02,
    ),
    failing(
        "cosine_of_twenty_steps",
        cosine_of_twenty_steps,
        "Keras' page of CosineDecay: decay_steps",
        "learning_rate_too_low",
        steps=500,
    ),
    failing(
        "rate_of_fine_tuning",
        fine_tuning_rate,
        "keras issue 2711; Devlin et al., 1810.04805, on rates of 2e-5",
        "learning_rate_too_low",
        rate=0.002,
    ),
    failing(
        "second_moment_that_never_moves",
        second_moment_that_never_moves,
        "Kingma, Ba, 1412.6980: beta_2 is below 1",
        "optimizer_state",
        ("learning_rate_too_low",),
        beta=0.999,
    ),
    failing(
        "accumulator_of_a_million",
        accumulator_of_a_million,
        "Keras' page of Adagrad on initial_accumulator_value",
        "optimizer_state",
        ("learning_rate_too_low",),
        start=0.1,
    ),
)
