"""What the data probe reads, against numpy, and that odd data are facts and not errors."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine

from gradrecipes.core.trace.description import Description
from gradrecipes.probes import data as columns
from gradrecipes.probes.data import data_probe, read_data
from gradrecipes.training.description.describe import describe_model
from gradrecipes.training.trial_data import trial_data

layers = keras.layers


def of(values, **how):
    return data_probe(values, **how).inputs[0]


@pytest.mark.parametrize("shape", [(50,), (50, 1), (50, 7), (50, 4, 3), (50, 5, 5, 2)])
def test_scales_are_those_of_numpy(shape, monkeypatch):
    monkeypatch.setattr(columns, "ENTRIES_AT_ONCE", 60)  # so that it is read in parts
    values = np.random.default_rng(0).normal(3.0, 2.0, shape)
    found = of(values)
    by_column = values.reshape(-1, shape[-1] if len(shape) > 1 else 1)
    assert found.shape == shape[1:] and found.samples == 50
    assert found.rms == pytest.approx(np.sqrt(np.mean(values**2)))
    assert (found.mean, found.std) == (pytest.approx(values.mean()), pytest.approx(values.std()))
    assert (found.min, found.max) == (values.min(), values.max())
    assert found.median_abs == pytest.approx(np.median(np.abs(values)))
    assert found.columns.count == by_column.shape[1] and found.columns.constant == 0
    assert found.columns.std_max == pytest.approx(by_column.std(axis=0).max())
    assert found.columns.std_min == pytest.approx(by_column.std(axis=0).min())
    assert found.columns.mean_abs_max == pytest.approx(np.abs(by_column.mean(axis=0)).max())
    assert not found.integer_valued and not found.outliers


def test_what_is_not_finite_is_counted_and_named(monkeypatch):
    monkeypatch.setattr(columns, "ENTRIES_AT_ONCE", 40)
    values = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    values[[3, 40], 1], values[77, 2], values[77, 3] = np.nan, np.inf, -np.inf
    found = of(values)
    assert found.nonfinite == 4 and found.nonfinite_samples == (3, 40, 77)
    assert found.nonfinite_share == pytest.approx(0.03)
    assert found.columns.nonfinite == (1, 2, 3) and found.columns.empty == ()
    assert found.rms == pytest.approx(np.sqrt(np.mean(values[np.isfinite(values)] ** 2)), rel=1e-5)
    values[:, 0] = np.nan
    assert of(values).columns.empty == (0,)


def test_constant_columns_are_counted():
    values = np.random.default_rng(0).normal(size=(30, 5))
    values[:, 1], values[:, 3] = 0.0, 1e6
    assert of(values).columns.constant == 2
    digits, _ = load_digits(return_X_y=True)
    assert of(digits).columns.constant == int((digits.std(axis=0) == 0).sum())


@pytest.mark.parametrize("load", [load_digits, load_breast_cancer, load_wine, load_diabetes])
def test_real_data_hold_no_outliers(load):
    found = data_probe(*load(return_X_y=True))
    assert [array.outliers for array in [*found.inputs, *found.targets]] == [(), ()]


@pytest.mark.parametrize("seed", range(5))
def test_heavy_tails_and_sparse_features_are_no_outliers(seed):
    random = np.random.default_rng(seed)
    sound = {
        "lognormal": random.lognormal(0, 3, (2000, 8)),
        "exponential": random.exponential(size=(2000, 1)),
        "squared": random.standard_t(3, (2000, 4)) ** 2,
        "scales_apart": random.lognormal(0, 1, (2000, 8)) * 10.0 ** np.arange(8),
        "sparse": 1.0 * (random.random((2000, 300)) < 0.002),
        "text_weights": (random.random((2000, 300)) < 0.01) * random.random((2000, 300)),
        "counts": random.poisson(0.01, (2000, 1)),
        "rarely_not_zero": random.exponential(size=(2000, 1)) * (random.random((2000, 1)) < 0.03),
    }
    assert {name: of(values).outliers for name, values in sound.items()} == {name: () for name in sound}


@pytest.mark.parametrize("rows", [[7], [0, 99, 150], list(range(64, 74))])
def test_damaged_rows_are_found(rows):
    values = np.random.default_rng(1).normal(size=(200, 6, 3))
    values[rows] *= 1e5
    found = of(values)
    assert [outlier.sample for outlier in found.outliers] == rows
    assert found.outlying_samples == len(rows)
    assert all(outlier.factor > 1e4 for outlier in found.outliers)
    assert found.rms > 1e3 and found.rms_without_outliers == pytest.approx(1.0, abs=0.05)


def test_one_damaged_entry_is_found_with_its_column():
    values, _ = load_digits(return_X_y=True)
    values[11, 40] = -4e6
    (outlier,) = of(values).outliers
    assert (outlier.sample, outlier.column, outlier.value) == (11, 40, -4e6)


def test_targets_tell_what_they_could_be():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 60)
    found = data_probe(np.ones((60, 1)), labels).targets[0]
    assert (found.unique, found.values, found.integer_share) == (4, (0, 1, 2, 3), 1.0)
    found = data_probe(np.ones((60, 1)), np.eye(4)[labels]).targets[0]
    assert found.one_hot and found.sums_to_one == 1.0
    soft = random.dirichlet(np.ones(4), 60)
    found = data_probe(np.ones((60, 1)), soft).targets[0]
    assert not found.one_hot and found.sums_to_one == 1.0 and found.row_sum_max == pytest.approx(1.0)
    found = data_probe(np.ones((4, 1)), np.array([-2.0, -0.5, 0.5, 7.0])).targets[0]
    assert [found.share_below_minus_1, found.share_below_0, found.share_above_1] == [0.25, 0.5, 0.25]
    found = data_probe(np.ones((60, 1)), random.normal(size=(2000, 1))).targets[0]
    assert found.unique is None and found.sums_to_one is None


def test_indices_into_an_embedding_are_no_sizes():
    words, numbers = keras.Input((5,), name="words"), keras.Input((3,), name="numbers")
    embedded = layers.Flatten()(layers.Embedding(1000, 3)(words))
    model = keras.Model([words, numbers], layers.Dense(1)(layers.concatenate([embedded, numbers])))
    random = np.random.default_rng(0)
    x = {"numbers": random.random((20, 3)), "words": random.integers(0, 1000, (20, 5))}
    named = {array.name: array for array in data_probe(x, inputs=describe_model(model).inputs).inputs}
    assert named["x['words']"].feeds_embedding and not named["x['numbers']"].feeds_embedding
    assert named["x['words']"].columns is None
    by_place = data_probe([x["words"], x["numbers"]], inputs=describe_model(model).inputs).inputs
    assert [array.feeds_embedding for array in by_place] == [True, False]


ODD = {
    "text": (np.array(["a", "b"]), "it holds text, not numbers"),
    "text_tensor": (tf.constant(["a"]), "it holds text, not numbers"),
    "objects": (np.array([[1, 2], [3]], dtype=object), "it holds objects (list), not numbers"),
    "one_object": (object(), "it holds objects (object), not numbers"),
    "times": (np.array(["2020-01-01"], "datetime64[D]"), "it holds times, not numbers"),
    "complex": (np.array([1j]), "it holds complex numbers"),
    "empty": (np.zeros((0, 3), np.float32), "it is empty"),
    "no_columns": (np.zeros((3, 0)), "it is empty"),
    "numbers_as_objects": (np.array([1, None, 3.5], dtype=object), None),
    "ragged": (tf.ragged.constant([[1.0, 2.0], [np.nan]]), None),
    "sparse": (tf.sparse.from_dense([[0, 1.0], [2, 0]]), None),
    "truth": (tf.constant([True, False]), None),
    "half": (tf.constant([1.0, 2.0], tf.bfloat16), None),
    "scalar": (np.float32(3), None),
    "all_infinite": (np.full((4, 2), np.inf), None),
    "huge": (np.array([1e300, -1e300]), None),
    "one_sample": (np.ones((1, 3)), None),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_data_are_facts_and_not_errors(name):
    values, reason = ODD[name]
    found = data_probe(values, values, values)
    json.dumps(found.to_json(), allow_nan=False)
    assert found.inputs[0].unreadable == reason
    assert found.inputs[0].numeric == (reason is None)
    assert found.targets[0].numeric == found.sample_weight[0].numeric == (reason is None)


def test_none_among_objects_is_missing_and_nothing_is_changed():
    values = np.array([1, None, 3.5], dtype=object)
    assert of(values).nonfinite_samples == (1,)
    assert list(values) == [1, None, 3.5]
    assert data_probe(np.ones((3, 1))).targets == () and data_probe(np.ones((3, 1))).sample_weight == ()


@pytest.mark.parametrize(("buffer", "low", "high"), [(1, 0.99, 1.0), (48, 0.5, 0.9), (768, -0.1, 0.1)])
def test_the_share_of_classes_between_batches_tells_whether_they_are_mixed(buffer, low, high):
    labels = np.repeat(np.arange(8), 96)
    rows = tf.data.Dataset.from_tensor_slices((np.zeros((768, 2), np.float32), labels))
    read = read_data(trial_data(rows.shuffle(buffer, seed=0).batch(32)), Description())
    assert low <= read.targets[0].between_batches <= high
    assert read_data(trial_data(np.zeros((768, 2)), labels), Description()).targets[0].between_batches is None
