"""The rule of the batch size on noisy runs, on statistics of one or two samples, and on small batches that are fine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.rules.batch_too_small import batch_too_small
from tests.records import with_records

STEPS = 100
RANDOM = np.random.default_rng(0)
LEARNS = np.linspace(2.3, 0.5, STEPS)
STALLS = 2.3 + 0.01 * RANDOM.normal(size=STEPS)
BREAKS = np.concatenate([np.full(60, 2.3), np.full(STEPS - 60, np.nan)])
OSCILLATES = np.tile([2.3, 2.4, 2.2, 2.35], 25)  # then between next to nothing and ten times as much
OSCILLATES[25:] = np.tile([0.2, 9.0, 2.6, 20.0, 0.1], 15)
FAR = {"noise_scale": 3000.0, "low": 1500.0, "high": 9000.0, "batch_size": 8}
LARGER_LEARNS = {"larger_batch": {"start": 2.3, "end": 1.0, "over_chance": 0.43, "fall": 0.57, "broken": None}}
LARGER_BREAKS = {"larger_batch": {"start": 2.3, "end": None, "over_chance": None, "fall": None, "broken": 7}}
LARGER_STALLS = {"larger_batch": {"start": 2.3, "end": 2.3, "over_chance": 1.0, "fall": 0.0, "broken": None}}
BATCH_NORM = {"structure": {"normalizations": {"BatchNormalization": 3}}}


def run(
    loss: np.ndarray, batch_size: Any = 8, *, varied: dict | None = None, norm: float = 1.0, **probes: Any
) -> Trace:
    trace = Trace(["dense"])
    description = {"batch_size": batch_size, "learning_rate": 0.1, "optimizer": {"name": "SGD"}}
    trace.extend(
        step=range(STEPS), loss=loss, gradient_norm=np.ones(STEPS), layer_gradient_norm=np.full((STEPS, 1), norm)
    )
    trace.extend_samples(step=[0], weight_norm=[[8.0]])
    return with_records(trace, description, {**probes, "trial": {"batches": 25, "chance": 2.3, "varied": varied or {}}})


@pytest.mark.parametrize(
    "trace, words, confidence",
    [
        (run(STALLS, 1, **BATCH_NORM), "one sample at a time", 0.8),
        (run(STALLS, 2, varied=LARGER_LEARNS, **BATCH_NORM), "two samples at a time", 0.95),
        (run(BREAKS, 2, varied=LARGER_BREAKS, **BATCH_NORM), "two samples", 0.6),
        (run(np.linspace(2.6, 1.9, STEPS), 2, norm=176.0, **BATCH_NORM), "two samples", 0.8),
        (run(OSCILLATES, noise=FAR), "A batch of 8 is too small", 0.6),
        (run(STALLS, noise=FAR, varied=LARGER_LEARNS), "A batch of 8", 0.95),
        (run(STALLS, 4, varied=LARGER_LEARNS), "A batch of 4", 0.8),
    ],
)
def test_fires(trace, words, confidence):
    finding = batch_too_small(trace)
    assert finding.code == "batch_too_small" and finding.confidence == confidence
    assert words in finding.title
    assert len(finding.explanation) > 100 and finding.evidence
    for prescription in finding.prescriptions:
        compile(prescription.code, prescription.title, "exec")
    finding.to_dict()


@pytest.mark.parametrize(
    "trace",
    [
        run(LEARNS, 1, **BATCH_NORM),
        run(np.linspace(2.6, 1.9, STEPS), 2, **BATCH_NORM),
        run(LEARNS, 2, norm=176.0, **BATCH_NORM),
        run(LEARNS, noise=FAR, varied=LARGER_LEARNS),
        run(STALLS, 32, **BATCH_NORM),
        run(STALLS, 1, structure={"normalizations": {"LayerNormalization": 3}}),
        run(STALLS, 1),
        run(STALLS, noise={**FAR, "low": 40.0}),
        run(STALLS, noise=FAR, varied=LARGER_STALLS),  # more samples do not help: it is something else
        run(BREAKS, noise=FAR, varied=LARGER_LEARNS),  # noise does not break a run
        run(OSCILLATES, noise=None),
        run(STALLS, None, noise=FAR, **BATCH_NORM),
        Trace(),
    ],
)
def test_is_silent(trace):
    assert batch_too_small(trace) is None


def test_the_size_that_is_prescribed_lies_above_the_noise():
    finding = batch_too_small(run(STALLS, noise=FAR, varied=LARGER_LEARNS))
    assert "batch_size=2048" in finding.prescriptions[0].code
    assert "gradient_accumulation_steps=256" in finding.prescriptions[1].code
