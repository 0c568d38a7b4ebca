"""Whatever fit takes becomes a few batches, with every sample once before any again and the suspects among them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradrecipes.training.trial_data import BATCHES_READ, trial_data

X = np.arange(100.0).reshape(50, 2)
Y = np.arange(50)


def samples(batches):
    return np.concatenate([np.asarray(batch[1]) for batch in batches])


def test_arrays_are_cut_without_repeats_and_by_the_seed():
    data = trial_data(X, Y, batch_size=8)
    first, again, other = data.cut(6), data.cut(6), data.cut(6, seed=1)
    assert len(set(samples(first).tolist())) == 48
    assert np.array_equal(samples(first), samples(again)) and not np.array_equal(samples(first), samples(other))
    assert first[0][0].dtype == tf.float32 and first[0][1].dtype == tf.int64
    assert (data.samples, data.complete, data.batch_size) == (50, True, 8)


def test_suspects_are_met_early():
    data = trial_data(X, Y, batch_size=5)
    missing = [sample for sample in range(50) if sample not in samples(data.cut(4))][:2]
    batches = data.cut(4, suspects=missing)
    assert set(missing) <= set(np.asarray(batches[2][1]).tolist())


def test_dictionaries_tables_and_lists_of_inputs():
    data = trial_data({"a": X, "b": X[:, :1]}, [float(value) for value in Y], batch_size=10)
    x, y = data.cut(1)[0]
    assert set(x) == {"a", "b"} and y.shape == (10,)
    (pair, _) = trial_data([X, X], Y, batch_size=10).cut(1)[0]
    assert len(pair) == 2


def test_samples_weigh_as_their_classes_do_in_fit():
    y, given = np.arange(50) % 3, np.linspace(1.0, 2.0, 50, dtype=np.float32)
    weights = {0: 2.0, 2: 0.5}  # what is not named weighs 1
    expected = np.array([weights.get(int(label), 1.0) for label in y], np.float32)
    assert np.array_equal(trial_data(X, y, class_weight=weights).sample_weight, expected)
    one_hot = trial_data(X, np.eye(3)[y], sample_weight=given, class_weight=weights)
    np.testing.assert_allclose(one_hot.sample_weight, expected * given)
    batches = trial_data(tf.data.Dataset.from_tensor_slices((X, y[:, None])).batch(10), class_weight=weights).cut(5)
    assert np.array_equal(np.concatenate([np.asarray(batch[2]) for batch in batches]), expected)
    with pytest.raises(ValueError, match=r"needs one class a sample. Received: targets in a ndarray of shape \(50, 1"):
        trial_data(X, np.eye(3)[y][:, None], class_weight=weights)
    with pytest.raises(ValueError, match="Received: no targets"):
        trial_data(X, class_weight=weights)


def test_a_batch_is_no_larger_than_the_data():
    assert trial_data(X[:3], Y[:3], batch_size=64).batch_size == 3


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return X[:4], Y[:4]


@pytest.mark.parametrize("source", ["dataset", "generator", "sequence"])
def test_of_what_brings_batches_the_first_are_read(source):
    def generator():
        while True:
            yield X[:4], Y[:4]

    endless = {
        "dataset": lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).repeat(),
        "generator": generator,
        "sequence": lambda: Sequence(),
    }
    data = trial_data(endless[source]())
    assert not data.complete and len(data.batches) == BATCHES_READ and data.batch_size == 4
    assert len(data.x) == data.samples == len(data.y)


@pytest.mark.parametrize(
    ("x", "y", "error", "words"),
    [
        (None, None, ValueError, "no data"),
        (X[:0], Y[:0], ValueError, "empty"),
        (X, Y[:3], ValueError, "one number of samples"),
        (np.array(["a", "b"]), Y[:2], TypeError, "StringLookup"),
        (np.array([{}, {}], dtype=object), Y[:2], TypeError, "arrays of numbers"),
        (tf.data.Dataset.from_tensor_slices(X).batch(2), Y, ValueError, "Leave y out"),
        (iter([]), None, ValueError, "no batch"),
    ],
)
def test_what_cannot_be_tried_is_refused_in_words(x, y, error, words):
    with pytest.raises(error, match=words):
        trial_data(x, y)


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "all"])
def test_batch_sizes_are_whole_numbers(size):
    with pytest.raises(ValueError, match="batch_size"):
        trial_data(X, Y, batch_size=size)
