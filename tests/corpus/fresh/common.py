"""Small pieces that several programs of this set share: dense nets, synthesized data and a source task."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers

from tests.corpus import data


def dense_net(
    inputs: int,
    hidden: list[int],
    outputs: int,
    activation: str = "relu",
    last: str | None = None,
    initializer: str | keras.Initializer = "glorot_uniform",
) -> keras.Sequential:
    """Return an uncompiled plain dense net."""
    net = keras.Sequential([keras.Input((inputs,))])
    for units in hidden:
        net.add(layers.Dense(units, activation, kernel_initializer=initializer))
    net.add(layers.Dense(outputs, last))
    return net


def compiled(
    model: keras.Model, optimizer: str | keras.Optimizer, loss: object, metrics: object = None, **options: object
) -> keras.Model:
    """Compile a model and return it."""
    model.compile(optimizer=optimizer, loss=loss, metrics=metrics, **options)
    return model


def column(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, "float32").reshape(-1, 1)


def pendulum(number: int = 1200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (length, release angle, damping, time) in SI units and the angle of a damped pendulum in radians."""
    random = np.random.default_rng(seed)
    length, angle = random.uniform(0.3, 1.5, number), random.uniform(0.1, 0.5, number)
    damping, time = random.uniform(0.05, 0.3, number), random.uniform(0.0, 2.0, number)
    frequency = np.sqrt(9.81 / length - damping**2)
    x = np.stack([length, angle, damping, time], axis=1).astype("float32")
    return x, column(angle * np.exp(-damping * time) * np.cos(frequency * time))


def ballistic_range(number: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (speed in m/s, elevation in degrees, mass in kg) and the range of a throw in metres, up to 3e4."""
    random = np.random.default_rng(seed)
    speed, elevation = random.uniform(50, 500, number), random.uniform(10, 80, number)
    mass = random.uniform(1, 50, number)
    reach = speed**2 * np.sin(2 * np.radians(elevation)) / 9.81
    return np.stack([speed, elevation, mass], axis=1).astype("float32"), column(reach)


def wave_windows(number: int = 600, steps: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return noisy sine waves as number x steps x 1, of amplitude 1, and their frequency, from 0.5 to 3 per window."""
    random = np.random.default_rng(seed)
    frequency, phase = random.uniform(0.5, 3.0, number), random.uniform(0, 2 * np.pi, number)
    time = np.linspace(0, 1, steps)
    wave = np.sin(2 * np.pi * frequency[:, None] * time + phase[:, None])
    return (wave + random.normal(0, 0.05, wave.shape)).astype("float32")[..., None], column(frequency)


def ring(number: int = 1024, seed: int = 0) -> np.ndarray:
    """Return points of the plane near a circle of radius 1 around the origin."""
    random = np.random.default_rng(seed)
    angle = random.uniform(0, 2 * np.pi, number)
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1) + random.normal(0, 0.05, (number, 2))
    return points.astype("float32")


def ratings(number: int = 6000, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Return user and item indices, each number x 1, and their ratings from 1 to 5, of a world of rank 3."""
    users, items = 150, 100
    random = np.random.default_rng(seed)
    taste, trait = random.normal(0, 0.8, (users, 3)), random.normal(0, 0.8, (items, 3))
    user, item = random.integers(0, users, number), random.integers(0, items, number)
    liked = 3.0 + (taste[user] * trait[item]).sum(axis=1) + random.normal(0, 0.2, number)
    return [user[:, None], item[:, None]], column(np.clip(liked, 1.0, 5.0))


def source_task(activation: str = "relu", epochs: int = 8) -> keras.Sequential:
    """Return a body of two dense layers that was trained to tell the digits 0 to 4, pixels from 0 to 1."""
    x, y = data.digits()
    few = y < 5
    body = keras.Sequential(
        [keras.Input((64,)), layers.Dense(64, activation), layers.Dense(32, activation)], name="body"
    )
    net = keras.Sequential([body, layers.Dense(5, "softmax")])
    net.compile("adam", "sparse_categorical_crossentropy")
    net.fit(x[few] / 16, y[few], batch_size=32, epochs=epochs, verbose=0)
    return body


def target_task() -> tuple[np.ndarray, np.ndarray]:
    """Return the digits 5 to 9, pixels from 0 to 1, and their labels from 0 to 4."""
    x, y = data.digits()
    return x[y >= 5] / 16, y[y >= 5] - 5
