"""Write the records of a Trace by hand, as the short dictionaries that traces of version 1 held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.autopsy import Autopsy, LayerReading, Offender
from gradrecipes.core.trace.description import Description
from gradrecipes.core.trace.trace_file import upgrade
from gradrecipes.core.trace.trial_reading import TrialReading


def described(values: Mapping[str, Any]) -> Description:
    """Return the description that these values of version 1 stand for."""
    return upgrade(values, {})[0]


def with_records(trace: Trace, description: Mapping[str, Any], probes: Mapping[str, Any]) -> Trace:
    """Return the trace, with the description and the probes that these values of version 1 stand for."""
    trace.description, trace.probes = upgrade(description, probes)
    return trace


def set_autopsy(trace: Trace, *offenders: Offender, layers: tuple[LayerReading, ...] = ()) -> Trace:
    """Return the trace, with an autopsy of its trial that found these offenders."""
    trial = replace(trace.probes.trial or TrialReading(), autopsy=Autopsy(offenders, layers))
    trace.probes = replace(trace.probes, trial=trial)
    return trace
