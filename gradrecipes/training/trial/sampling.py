"""Batches for a probe, drawn by a seed of its own so that nobody else's random numbers move."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from gradrecipes.core.analysis.range_test import MOST_BATCHES
from gradrecipes.core.arguments import require_whole


def is_arrays(x: Any) -> bool:
    """Return whether the data are arrays or tensors, and not a dataset or a generator that makes batches itself."""
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
        ValueError: No samples, different numbers of them, or a number out of range.
    """
    parts = [part for part in keras.tree.flatten(data) if part is not None]
    strangers = [part for part in parts if not len(getattr(part, "shape", ()))]
    strangers += [part for part in data if part is not None and not keras.tree.flatten(part)]
    if strangers or data[0] is None:
        raise ValueError(
            "The data must be arrays, samples first. Received: "
            f"{f'{strangers[0]!r:.80}' if strangers else 'none'}. Turn lists into arrays with numpy.asarray."
        )
    counts = {len(part) for part in parts}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"All data must have one number of samples, at least 1. Received: {sorted(counts)}.")
    samples = counts.pop()
    require_whole("seed", seed, least=0, remedy="Another seed draws other samples.")
    require_whole("batches", batches, least=1, remedy="20 suit most measurements.")
    if batches > MOST_BATCHES:
        raise ValueError(
            f"`batches` may be at most {MOST_BATCHES:,}. Received: batches={batches!r}. 20 suit most nets."
        )
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
