"""From what was recorded to what it means: one function for people who want an answer."""

from __future__ import annotations

import os
from typing import Any

from gradrecipes.core.trace import Trace
from gradrecipes.report.diagnosis import Diagnosis


def diagnose(subject: Trace) -> Diagnosis:
    """Tell what is wrong with a recorded training, why, how sure that is, and what to do.

    Args:
        subject: The record of a training, from `GradientMonitor().trace` or `Trace.load(path)`.

    Returns:
        The findings, most severe first, with the trace they rest on.

    Raises:
        TypeError: Something other than a Trace; the message says how to get one from what came.

    Example:
        >>> from gradrecipes.core.trace import Trace
        >>> diagnose(Trace(layers=["dense"])).findings
        ()
    """
    from gradrecipes.diagnosis.engine import find

    if not isinstance(subject, Trace):
        raise TypeError(f"diagnose needs a Trace. Received: {_named(subject)}. {_remedy(subject)}")
    return Diagnosis(tuple(find(subject)), subject)


def _named(subject: Any) -> str:
    if isinstance(subject, str | os.PathLike):
        return f"{type(subject).__name__} {str(subject)!r}"
    return "None" if subject is None else f"a {type(subject).__name__}"


def _remedy(subject: Any) -> str:
    if isinstance(subject, str | os.PathLike):
        return f"For a saved trace, pass Trace.load({str(subject)!r})."
    if isinstance(getattr(subject, "trace", None), Trace):
        return "Pass its trace: diagnose(monitor.trace)."
    return (
        "Record one: monitor = gradrecipes.GradientMonitor(); model.fit(x, y, callbacks=[monitor]); "
        "then diagnose(monitor.trace)."
    )
