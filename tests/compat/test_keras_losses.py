"""Binary cross-entropies are seen wherever a program calls them, and are the same as before."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradrecipes.compat.keras_losses import binary_cross_entropies_reported

ONES, ANSWERS = tf.ones((4, 1)), tf.constant([[-1.0], [0.2], [0.4], [2.0]])


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (keras.losses.BinaryCrossentropy(), [(False, False)]),
        (keras.losses.binary_crossentropy, [(False, False)]),
        (keras.ops.binary_crossentropy, [(False, False)]),
        (keras.losses.BinaryCrossentropy(from_logits=True), [(True, False)]),
        (lambda y, p: tf.nn.sigmoid_cross_entropy_with_logits(labels=y, logits=p), [(True, False)]),
        (
            lambda y, p: tf.nn.sigmoid_cross_entropy_with_logits(labels=y, logits=keras.activations.sigmoid(p)),
            [(True, True)],
        ),
        (keras.losses.MeanSquaredError(), []),
    ],
)
def test_each_call_is_seen_once_and_computes_what_it_did(loss, expected):
    seen = []
    before = np.asarray(loss(ONES, ANSWERS))
    with binary_cross_entropies_reported(lambda answers, logits, noted: seen.append((logits, noted))):
        within = np.asarray(loss(ONES, ANSWERS))
    assert seen == expected
    np.testing.assert_array_equal(within, before)
    np.testing.assert_array_equal(loss(ONES, ANSWERS), before)
    assert len(seen) == len(expected)
