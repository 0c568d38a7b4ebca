"""Presets and convolutions: gains against an integral written apart, variances as drawn, one object for all layers."""

from __future__ import annotations

import itertools
import math

import keras
import numpy as np
import pytest

from gradrecipes.core.signal_theory import ACTIVATIONS, leaky_relu
from gradrecipes.initializers import DeltaOrthogonal, DrawnAnew, Fixup, ScaledInitializer, gain, preset

Z = np.linspace(-14.0, 14.0, 1_000_001)
trapezoid = getattr(np, "trapezoid", None) or np.trapz  # its name before numpy 2
DENSITY = np.exp(-0.5 * Z**2) / math.sqrt(2 * math.pi)
IN_KERAS = {
    **{name: getattr(keras.activations, name) for name in sorted(ACTIVATIONS) if hasattr(keras.activations, name)},
}


@pytest.mark.parametrize("name", sorted(set(IN_KERAS) - {"exponential", "gelu_approximate"}))
def test_the_gain_against_a_fine_integral_of_what_keras_computes(name):
    phi = np.asarray(IN_KERAS[name](Z.astype(np.float32)), np.float64)
    slope = np.diff(phi) / np.diff(Z)  # float32, so a little rough
    forward = 1 / math.sqrt(trapezoid(phi**2 * DENSITY, Z))
    assert gain(name) == pytest.approx(forward, rel=2e-5)
    assert gain(IN_KERAS[name]) == gain(name)
    backward = 1 / math.sqrt(np.sum(slope**2 * DENSITY[1:]) * (Z[1] - Z[0]))
    assert gain(name, preserve="gradient") == pytest.approx(backward, rel=0.05)


@pytest.mark.parametrize("shape", [(300, 200), (3, 3, 40, 50), (200, 300)])
@pytest.mark.parametrize("distribution", ["normal", "truncated_normal", "uniform"])
@pytest.mark.parametrize("kind", ["he", "lecun", "glorot"])
def test_the_variance_is_that_of_the_kind(kind, distribution, shape):
    kernel = np.asarray(preset("gelu", kind=kind, distribution=distribution, seed=1)(shape))
    window = math.prod(shape[:-2])
    fans = {"glorot": window * (shape[-2] + shape[-1]) / 2}
    expected = 1.533530 / math.sqrt(fans.get(kind, window * shape[-2]))
    assert kernel.std() == pytest.approx(expected, rel=4 / math.sqrt(kernel.size))
    assert abs(kernel.mean()) < 4 * expected / math.sqrt(kernel.size)


@pytest.mark.parametrize("shape", [(64, 64), (64, 160), (160, 64), (3, 3, 8, 16)])
def test_an_orthogonal_preset_has_the_variance_of_the_others(shape):
    kernel = np.asarray(preset("tanh", kind="orthogonal", seed=3)(shape), np.float64).reshape(-1, shape[-1])
    inputs, units = kernel.shape
    assert inputs * kernel.var() == pytest.approx(gain("tanh") ** 2, rel=0.02)
    gram = kernel.T @ kernel if inputs >= units else kernel @ kernel.T
    np.testing.assert_allclose(gram, np.eye(len(gram)) * gram[0, 0], atol=1e-5)


# Layers through which a plain net of width 256 keeps its signal; size 1 is an unstable balance of GELU and SiLU.
@pytest.mark.parametrize(
    "name, depth", [("relu", 20), ("selu", 20), ("tanh", 20), ("softplus", 20), ("gelu", 5), ("silu", 5)]
)
@pytest.mark.parametrize("kind", ["he", "orthogonal"])
def test_a_deep_net_keeps_its_signal(name, depth, kind):
    signal = np.random.default_rng(0).normal(size=(200, 256)).astype(np.float32)
    shared = preset(name, kind=kind)
    for layer in range(depth):
        initializer = shared if layer else preset("linear", kind=kind)
        signal = signal @ np.asarray(initializer((256, 256)))
        size = np.sqrt(np.mean(signal**2))
        signal = np.asarray(IN_KERAS[name](signal))
    assert 0.6 < size < 1.6  # 20 layers of LeCun's leave .001 with ReLU


def test_one_object_starts_every_layer_differently():
    shared = preset("relu")
    keras.utils.set_random_seed(5)
    first, second = (np.asarray(shared((6, 7))) for _ in range(2))
    assert not np.allclose(first, second)
    keras.utils.set_random_seed(5)
    np.testing.assert_array_equal(np.asarray(shared((6, 7))), first)
    again = preset("relu", seed=9)
    np.testing.assert_array_equal(again((6, 7)), again((6, 7)))


def test_a_seed_generator_is_a_seed():
    generator = preset("relu", seed=keras.random.SeedGenerator(4))
    copy = generator.clone()
    first = np.asarray(generator((4, 4)))
    assert not np.allclose(first, generator((4, 4)))
    np.testing.assert_array_equal(copy((4, 4)), first)


def test_layers_that_share_it_differ():
    shared = DrawnAnew("glorot_uniform")
    one, other = (keras.layers.Dense(4, kernel_initializer=shared) for _ in range(2))
    one.build((None, 4)), other.build((None, 4))
    assert not np.allclose(one.kernel, other.kernel)
    plain = keras.initializers.GlorotUniform()
    np.testing.assert_array_equal(plain((4, 4)), plain((4, 4)))  # what it is for
    seeded = DrawnAnew(keras.initializers.GlorotUniform(seed=1))
    np.testing.assert_array_equal(seeded((4, 4)), keras.initializers.GlorotUniform(seed=1)((4, 4)))


def test_another_slope():
    assert preset(leaky_relu(0.5)).gain == pytest.approx(math.sqrt(2 / 1.25))
    assert preset(None).gain == pytest.approx(1.0)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: preset("gleu"), "'gleu'.*gelu"),
        (lambda: preset("relu", kind="xavier"), "he, lecun, glorot, orthogonal.*'xavier'"),
        (lambda: preset("relu", distribution="gauss"), "normal, truncated_normal, uniform.*'gauss'"),
        (lambda: preset("relu", preserve="both"), "signal, gradient.*'both'"),
        (lambda: preset("relu", kind="orthogonal", distribution="uniform"), "orthogonal.*leave `distribution` out"),
        (lambda: ScaledInitializer(0), "gain=0"),
        (lambda: ScaledInitializer(float("nan")), "gain=nan"),
    ],
)
def test_what_is_unknown_is_refused_with_the_choices(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match="seed='one'"):
        preset("relu", seed="one")
    with pytest.raises(TypeError, match="Keras initializer"):
        DrawnAnew(np.ones(3))


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
