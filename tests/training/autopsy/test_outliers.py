"""What is finite and yet absurd is named: an outlier, a flipped bit, a loss beyond its limit. Sound data are not."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

from gradrecipes.core.trace.autopsy import OffenderKind
from gradrecipes.training.autopsy import autopsy
from gradrecipes.training.autopsy.arrays import sample_outlier, weight_outliers
from tests.training.nets import digits, seeded, state, two_dense

layers = keras.layers
SIZE = 32


def regression() -> tuple[keras.Model, np.ndarray, np.ndarray]:
    x, y = load_diabetes(return_X_y=True)
    x, y = x[:SIZE].astype(np.float32) * 20, (y[:SIZE, None] / 100).astype(np.float32)
    model = seeded(lambda: keras.Sequential([keras.Input((10,)), layers.Dense(8, "tanh"), layers.Dense(1)]), loss="mse")
    model.fit(x, y, epochs=3, verbose=0)
    return model, x, y


@pytest.mark.parametrize("sample", [0, 17, 31])
def test_an_outlier_is_named_by_sample_and_feature(sample):
    model = seeded(two_dense)
    x, y = digits(SIZE)
    x[sample, 29] = 1e6
    before = state(model)
    result = autopsy(model, (x, y))
    after = state(model)
    assert all(np.array_equal(after[name], before[name]) for name in before)
    first = result.first
    assert (first.kind, first.name, first.samples, first.entries) == (
        *(OffenderKind.INPUT, "x", (sample,)),
        ((sample, 29),),
    )
    assert first.found == 1e6
    assert first.finite
    assert result.heaviest_sample == sample


def test_an_outlier_among_the_targets_is_named():
    model, x, y = regression()
    y[21] *= 1e6
    result = autopsy(model, (x, y))
    assert (result.first.kind, result.first.samples) == (OffenderKind.TARGET, (21,))
    assert result.heaviest_sample == 21


def test_an_outlier_that_overflows_is_named_beside_what_it_broke():
    model, x, y = regression()
    y[21] = 1e30  # its square is beyond float32
    result = autopsy(model, (x, y))
    assert [(one.kind, one.samples) for one in result.offenders] == [
        (OffenderKind.LOSS, (21,)),
        (OffenderKind.TARGET, (21,)),
    ]


def test_a_flipped_bit_in_a_weight_is_named():
    model = seeded(two_dense)
    kernel = model.layers[0].kernel
    values = kernel.numpy()
    bits = values.view(np.uint32)
    bits[20, 3] |= np.uint32(1 << 30)  # the highest bit of the exponent
    assert np.isfinite(values).all()
    kernel.assign(values)
    result = autopsy(model, digits(SIZE))
    found = {(one.kind, one.name): one for one in result.offenders}
    weight = found[OffenderKind.WEIGHT, kernel.path]
    assert weight.layer == model.layers[0].name
    assert weight.entries == ((20, 3),)
    assert weight.found == pytest.approx(float(values[20, 3]))


def test_a_loss_beyond_its_limit_leads_to_its_samples():
    model, x, y = regression()
    y[[4, 30]] += 40.0  # wrong, and yet no outlier by a factor of a thousand
    assert autopsy(model, (x, y)).healthy
    first = autopsy(model, (x, y), loss_limit=20.0).first
    assert first.kind is OffenderKind.LOSS
    assert sorted(first.samples) == [4, 30]
    assert autopsy(model, (x, y), loss_limit=1e4).healthy


def test_a_loss_that_all_samples_share_names_none():
    model, x, y = regression()
    first = autopsy(model, (x, y + 100), loss_limit=20.0).first
    assert (first.kind, first.samples) == (OffenderKind.LOSS, ())
    assert "32 of 32 samples" in first.sentence


@pytest.mark.parametrize("load", [load_breast_cancer, load_wine, load_diabetes])
def test_real_tables_hold_no_outlier_even_unscaled(load):
    x, _ = load(return_X_y=True)
    for start in range(0, len(x) - 15, 16):
        assert sample_outlier(x[start : start + 16]) is None


@pytest.mark.slow
def test_trained_nets_are_healthy_though_few_samples_make_up_the_loss():
    model = seeded(two_dense)
    x, y = digits(512)
    model.fit(x, y, epochs=25, verbose=0)
    for start in range(0, 512, 128):
        assert autopsy(model, (x[start : start + 64], y[start : start + 64])).healthy


def test_the_outlier_of_an_array_is_measured_against_the_other_samples():
    x = np.ones((8, 3), np.float32)
    x[:, 2] = 1e6  # one column of another unit is no outlier
    assert sample_outlier(x) is None
    x[5, 0] = 1e5
    found = sample_outlier(x)
    assert (found.entry, found.value, found.factor) == ((5, 0), 1e5, pytest.approx(1e5))
    assert sample_outlier(np.zeros((8, 3), np.float32)) is None
    assert sample_outlier(np.eye(8, dtype=np.float32)) is None


def test_the_outlier_of_weights_is_measured_against_all_others():
    small, large = np.full((3, 3), 1e-3), np.full(4, 2.0)
    assert weight_outliers([small, large]) == {}
    large[1] = 5e3
    found = weight_outliers([small, large])
    assert list(found) == [1]
    assert found[1].entry == (1,)
    assert found[1].factor == pytest.approx(2500)
