"""Batches for a probe, drawn by a seed of its own so that nobody else's random numbers move."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np


def is_arrays(x: Any) -> bool:
    """Say whether the data are arrays or tensors, and not a dataset or a generator that makes batches itself."""
    parts = keras.tree.flatten(x)
    return bool(parts) and all(hasattr(part, "shape") and hasattr(part, "dtype") for part in parts)


def draw_batches(data: tuple[Any, ...], *, batch_size: int, batches: int, seed: int) -> tuple[Any, ...]:
    """Return so many batches of samples, one after the other; every sample once before any comes again.

    Args:
        data: Arrays or nested structures of them, samples first; None stays None.
        batch_size: Samples in a batch; of fewer samples than that, all.
        batches: How many batches.
        seed: Fixes the order.

    Raises:
        ValueError: No samples, different numbers of them, or a batch size below 1.
    """
    counts = {len(part) for part in keras.tree.flatten(data) if part is not None}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"All data must have one number of samples, at least 1. Received: {sorted(counts)}.")
    samples = counts.pop()
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or not 1 <= batch_size <= samples:
        raise ValueError(
            f"`batch_size` must be a whole number from 1 to the number of samples, {samples}. "
            f"Received: batch_size={batch_size!r}."
        )
    random = np.random.default_rng(seed)
    # Of every round, what does not fill a batch is left out: no batch holds a sample twice.
    rounds = -(-batches // (samples // batch_size))
    whole = samples // batch_size * batch_size
    order = np.concatenate([random.permutation(samples)[:whole] for _ in range(rounds)])[: batches * batch_size]
    return keras.tree.map_structure(lambda part: None if part is None else np.asarray(part)[order], data)
