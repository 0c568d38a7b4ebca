"""Events that the rows of a Trace imply."""

from __future__ import annotations

import numpy as np

from gradrecipes.core.event import Event
from gradrecipes.core.trace import APPLIED, OUTCOMES, Trace


def skip_events(trace: Trace, first_row: int) -> list[Event]:
    """Return an event for every skipped step from a row of the trace on."""
    outcome = trace.steps["outcome"][first_row:]
    events = []
    for row in np.flatnonzero(outcome != APPLIED) + first_row:
        steps = trace.steps
        details = {"loss": float(steps["loss"][row]), "gradient_norm": float(steps["gradient_norm"][row])}
        reason = OUTCOMES[int(steps["outcome"][row])]
        events.append(
            Event("skip", int(steps["step"][row]), int(steps["epoch"][row]), int(steps["batch"][row]), reason, details)
        )
    return events
