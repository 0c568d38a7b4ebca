"""Find out which batch size suits a model and its data, without training."""

from __future__ import annotations

from typing import Any

import keras

from gradrecipes.plots.measured import NoiseScale
from gradrecipes.training.recovery.model_state import preserve_state
from gradrecipes.training.trial.micro_batches import MicroBatches
from gradrecipes.training.trial.sampling import draw_batches, is_arrays


def noise_scale(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    batch_size: int = 32,
    micro_batch_size: int | None = None,
    batches: int = 20,
    seed: int = 0,
) -> NoiseScale:
    """Measure how much of a batch's gradient is noise, and say whether the batch is too small or too large.

    Each batch is cut into micro-batches; from the gradients of both follow the true gradient and its noise. The
    model is left as it was. Measure again after some training: the scale usually grows as the loss falls.
    BatchNormalization ties the samples of a micro-batch together, which biases the figure.

    Args:
        model: A compiled model.
        x: Arrays as `model.fit` takes them.
        y: Targets.
        batch_size: The batch size to judge, at least 2.
        micro_batch_size: Samples in a part, a divisor of the batch size. Defaults to the largest divisor that
            makes at least 8 parts.
        batches: How many batches, at least 2; more make the interval narrower.
        seed: Which samples.

    Returns:
        `NoiseScale`, with `noise_scale` in samples, its interval, `advice` and a plot.

    Raises:
        ValueError: A model that is not compiled, or arguments out of range.
        TypeError: Data that are no arrays.

    Example:
        >>> found = gr.probes.noise_scale(model, x, y, batch_size=16, batches=8)
        >>> found.noise_scale > 0
        True

    References:
        McCandlish et al. 2018, arXiv 1812.06162.
    """
    if not is_arrays(x):
        raise TypeError(f"`x` must be arrays, which can be cut into micro-batches. Received: {type(x).__name__}.")
    if not isinstance(batches, int) or batches < 2:
        raise ValueError(f"`batches` must be a whole number, at least 2. Received: batches={batches!r}.")
    parts = MicroBatches(model, batch_size=batch_size, micro_batch_size=micro_batch_size)
    data = draw_batches((x, y), batch_size=batch_size, batches=batches, seed=seed)
    if not model.built:
        model(keras.tree.map_structure(lambda part: part[:1], data[0]))
    with preserve_state(model):
        signals, noises = parts.measure(data)
    return NoiseScale(signals, noises, batch_size=batch_size)
