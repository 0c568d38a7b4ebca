"""Programs with embeddings and attention that fail, and what mends them."""

from __future__ import annotations

from functools import partial

import keras
from keras import initializers, layers, ops, optimizers

from tests.corpus import data
from tests.corpus.case import Case, Program

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def wide_vectors(reach: float = 12.0) -> Program:
    """Word vectors that reach from -12 to 12, as some that are loaded from files do, under an LSTM."""
    keras.utils.set_random_seed(81)
    x, y = data.source_tokens(1500)
    vectors = initializers.RandomUniform(-reach, reach)
    model = keras.Sequential()
    model.add(layers.Input((40,)))
    model.add(layers.Embedding(1000, 50, embeddings_initializer=vectors))
    model.add(layers.LSTM(48))
    model.add(layers.Dense(3, activation="softmax"))
    model.compile(optimizers.Adam(0.002), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Program(model, x[:1200], y[:1200], epochs=5, validation_data=(x[1200:], y[1200:]))


class TiedModel(keras.Model):
    """A convolutional character model whose embedding also gives the logits."""

    def __init__(self, alphabet: int, width: int, stddev: float):
        super().__init__()
        self.embedding = layers.Embedding(alphabet, width, initializers.RandomNormal(stddev=stddev))
        self.mixing = layers.Conv1D(width, 5, activation="tanh")
        self.last = layers.Dense(width)

    def call(self, indices):
        hidden = self.embedding(indices)
        hidden = self.last(self.mixing(hidden)[:, -1]) + hidden[:, -1]
        return ops.matmul(hidden, ops.transpose(self.embedding.embeddings))


def tied_to_unit_vectors(stddev: float = 1.0) -> Program:
    """Embedding and logits share a table of unit deviation: the logits begin at the root of the width, and beyond."""
    keras.utils.set_random_seed(82)
    x, y, alphabet = data.characters(length=20, number=4000)
    model = TiedModel(alphabet, 128, stddev)
    model.compile(optimizers.SGD(0.5), LOGITS, metrics=["accuracy"])
    return Program(model, x, y, batch_size=32, epochs=4)


def _block(hidden, width: int, heads: int):
    attended = layers.MultiHeadAttention(heads, width // heads)(hidden, hidden)
    hidden = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([hidden, attended]))
    fed = layers.Dense(width)(layers.Dense(2 * width, activation="relu")(hidden))
    return layers.LayerNormalization(epsilon=1e-6)(layers.Add()([hidden, fed]))


def transformer_without_warm_up(rate: float = 0.02) -> Program:
    """Three blocks with the normalization behind the sum, Adam at 0.02 from the first step."""
    keras.utils.set_random_seed(83)
    x, y = data.source_tokens(1500)
    tokens = keras.Input((40,), dtype="int32")
    hidden = layers.Embedding(1000, 32)(tokens)
    for _ in range(3):
        hidden = _block(hidden, 32, 2)
    outputs = layers.Dense(3)(layers.GlobalAveragePooling1D()(hidden))
    model = keras.Model(tokens, outputs)
    model.compile(optimizers.Adam(rate), LOGITS, metrics=["accuracy"])
    return Program(model, x[:1200], y[:1200], epochs=5, validation_data=(x[1200:], y[1200:]))


CASES = (
    Case(
        "word_vectors_to_twelve",
        wide_vectors,
        "keras issue 10273, 'Why the range of embedding make so much difference ?'",
        "embedding_spike",
        accepted=("saturated_units",),
        repaired=partial(wide_vectors, reach=0.05),
    ),
    Case(
        "logits_tied_to_unit_vectors",
        tied_to_unit_vectors,
        "Press, Wolf, 1608.05859, on tied embeddings; mp2893/med2vec issue 22 on their initial weights",
        "embedding_spike",
        accepted=("exploding_initialization",),
        repaired=partial(tied_to_unit_vectors, stddev=0.05),
    ),
    Case(
        "transformer_without_warm_up",
        transformer_without_warm_up,
        "Xiong et al., 2002.04745: normalization behind the sum needs warm-up",
        "learning_rate_too_high",
        repaired=partial(transformer_without_warm_up, rate=0.001),
    ),
)
