"""What a diagnosis looked at, in sentences: so that a clean bill says what it covers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.codes import CODES
from gradrecipes.diagnosis.verdict import BROKEN, verdict
from gradrecipes.report.wording import number

ARRAYS_NAMED = 4


def looked_at(trace: Trace) -> list[tuple[str, str]]:
    """Return (part, what was seen there) for everything that was measured."""
    found = [
        ("Data", _data(trace.probes.get("data"))),
        ("Validation data", _data(trace.probes.get("validation"))),
        ("Structure", _structure(trace.probes.get("structure"))),
        ("Signal", _signal(trace.probes.get("signal"))),
        ("Loss function", _loss(trace.probes.get("loss"))),
        ("Trial" if "trial" in trace.probes else "Training", _steps(trace)),
        ("Rules", f"{len(CODES)} rules were asked" if trace.probes or len(trace) else ""),
    ]
    return [(part, words) for part, words in found if words]


def _data(data: Any) -> str:
    if not isinstance(data, Mapping):
        return ""
    arrays = [*(data.get("inputs") or []), *(data.get("targets") or [])]
    seen = f"{data.get('samples', 0):,} samples{'' if data.get('complete') else ' of more'}"
    named = "; ".join(_array(array) for array in arrays[:ARRAYS_NAMED])
    more = f"; {len(arrays) - ARRAYS_NAMED} arrays more" if len(arrays) > ARRAYS_NAMED else ""
    return f"{seen}: {named}{more}" if named else seen


def _array(array: Mapping[str, Any]) -> str:
    shape = " x ".join(map(str, array.get("shape") or [])) or "one number"
    words = f"{array.get('name')} ({shape}, {array.get('dtype')})"
    if array.get("unreadable"):
        return f"{words}: {array['unreadable']}"
    if array.get("unique") and array.get("integer_valued"):
        words += f", {array['unique']} distinct values"
    elif array.get("mean") is not None:
        words += f", mean {number(array['mean'])}, standard deviation {number(array.get('std'))}"
    bad = array.get("nonfinite")
    return f"{words}, {bad:,} entries not finite" if bad else f"{words}, all finite"


def _structure(structure: Any) -> str:
    if not isinstance(structure, Mapping):
        return ""
    parts = []
    if structure.get("depth") is not None:
        parts.append(
            f"{structure['depth']} layers with weights one behind the other, {structure.get('skips', 0)} skips"
        )
    counts = structure.get("normalizations") or {}
    parts += [f"{count} x {kind}" for kind, count in counts.items()]
    for output in (structure.get("outputs") or [])[:ARRAYS_NAMED]:
        if output.get("loss"):
            logits = " from logits" if output.get("from_logits") else ""
            parts.append(f"{output['loss']}{logits} on {output.get('activation') or 'unknown'} output {output['name']}")
    return ", ".join(parts)


def _signal(signal: Any) -> str:
    before = signal.get("before") if isinstance(signal, Mapping) else None
    layers = (before or {}).get("layers") or []
    if not layers:
        return ""
    sizes = [layer["output_rms"] for layer in layers if layer.get("output_rms")]
    words = f"one batch through {len(layers)} layers"
    if sizes:
        words += f": outputs of root mean square {number(min(sizes))} to {number(max(sizes))}"
    norms = [layer["output_gradient_norm"] for layer in layers if layer.get("output_gradient_norm")]
    norms = [norm for norm in norms if math.isfinite(norm)]
    return words + (f", gradients of norm {number(min(norms))} to {number(max(norms))}" if norms else "")


def _loss(loss: Any) -> str:
    points = loss.get("points") if isinstance(loss, Mapping) else None
    if not points:
        return ""
    bad = sum(point.get("value") != "finite" or point.get("gradient") != "finite" for point in points)
    return f"evaluated at {len(points)} kinds of predictions, {'all finite' if not bad else f'{bad} not finite'}"


def _steps(trace: Trace) -> str:
    if not len(trace):
        return ""
    trial = trace.probes.get("trial") or {}
    seen = verdict(trace)
    batches = f" over {trial['batches']} batches" if trial.get("batches") else ""
    words = f"{len(trace):,} steps{batches}"
    if seen.state == BROKEN:
        return f"{words}, broken off at step {seen.step}"
    if np.isfinite(seen.start) and np.isfinite(seen.end):
        words += f": the loss went from {number(seen.start)} to {number(seen.end)}"
        words += f" (best constant guess: {number(seen.chance)})" if np.isfinite(seen.chance) else ""
    return words
