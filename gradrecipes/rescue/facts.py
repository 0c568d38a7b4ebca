"""What a rescue reads from the record of a diagnosis: the only file here that knows its fields."""

from __future__ import annotations

from typing import Any

import keras

from gradrecipes.core.trace import Trace


def looked_up_inputs(trace: Trace) -> tuple[bool, ...]:
    """Return for each flattened input whether its numbers are only looked up in a table."""
    data = trace.probes.data
    return tuple(bool(one.feeds_embedding) for one in data.inputs) if data is not None else ()


def output_count(model: keras.Model, trace: Trace) -> int:
    """Return how many outputs a model has; one where nothing else is known."""
    outputs: Any = trace.description.outputs
    return len(outputs) if outputs else 1
