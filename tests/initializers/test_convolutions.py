"""The delta-orthogonal kernel is an isometry: shown in float64 numpy, by shifts of a circle."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest

from gradrecipes.initializers import DeltaOrthogonal, Fixup


def circular_convolution(x, kernel):
    """Convolve on a torus: every offset of the window is one shift of the whole input."""
    window = kernel.shape[:-2]
    out = np.zeros((*x.shape[:-1], kernel.shape[-1]))
    axes = tuple(range(1, 1 + len(window)))
    for offset in itertools.product(*map(range, window)):
        shift = tuple((size - 1) // 2 - place for size, place in zip(window, offset, strict=True))
        out += np.roll(x, shift, axes) @ kernel[offset]
    return out


@pytest.mark.parametrize("shape", [(3, 4, 4), (5, 4, 9), (3, 3, 6, 6), (2, 4, 3, 8), (3, 3, 3, 4, 5)])
def test_it_keeps_every_norm(shape):
    kernel = np.asarray(DeltaOrthogonal(seed=1)(shape), np.float64)
    assert kernel.shape == shape
    size = (2, *[7] * (len(shape) - 2), shape[-2])
    x = np.random.default_rng(0).normal(size=size)
    norm = np.linalg.norm(circular_convolution(x, kernel).reshape(2, -1), axis=1)
    np.testing.assert_allclose(norm, np.linalg.norm(x.reshape(2, -1), axis=1), rtol=1e-6)
    orthogonal = np.asarray(keras.initializers.Orthogonal(seed=1)(shape), np.float64)
    other = np.linalg.norm(circular_convolution(x, orthogonal).reshape(2, -1), axis=1)
    assert not np.allclose(other, norm, rtol=0.005)  # the usual kernel is no isometry


def test_it_keeps_norms_through_many_layers_of_keras():
    x = np.random.default_rng(1).normal(size=(2, 9, 9, 6)).astype(np.float32)
    net = keras.Sequential(
        [keras.layers.Conv2D(6, 3, padding="same", kernel_initializer=DeltaOrthogonal()) for _ in range(20)]
    )
    np.testing.assert_allclose(np.linalg.norm(net(x)), np.linalg.norm(x), rtol=1e-4)


def test_the_gain_is_a_factor():
    one, three = (np.asarray(DeltaOrthogonal(gain, seed=2)((3, 4, 4))) for gain in (1.0, 3.0))
    np.testing.assert_allclose(three, 3 * one, rtol=1e-6)


@pytest.mark.parametrize("shape, words", [((4, 4), "3 to 5 axes"), ((3, 3, 8, 4), "8 channels, 4 filters")])
def test_kernels_that_cannot_be_isometries_are_refused(shape, words):
    with pytest.raises(ValueError, match=words):
        DeltaOrthogonal()(shape)


@pytest.mark.parametrize("blocks, layers, factor", [(100, 2, 0.1), (16, 3, 0.5), (1, 2, 1.0)])
def test_fixup_shrinks_he(blocks, layers, factor):
    kernel = np.asarray(Fixup(blocks, layers_per_block=layers, seed=0)((400, 400)))
    assert kernel.std() == pytest.approx(factor * np.sqrt(2 / 400), rel=0.01)


@pytest.mark.parametrize("arguments", [{"blocks": 0}, {"blocks": 3, "layers_per_block": 1}, {"blocks": 2.5}])
def test_fixup_refuses(arguments):
    with pytest.raises(ValueError, match="whole number"):
        Fixup(**arguments)
