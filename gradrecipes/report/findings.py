"""The findings of a trace in the order in which to read them, and what every form of a report needs of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradrecipes.core.findings.finding import Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.engine import in_reading_order
from gradrecipes.diagnosis.outcome.verdict import OSCILLATING, STALLED, losses
from gradrecipes.diagnosis.outcome.verdict import verdict as outcome_of

HEALTHY, UNHEALTHY, UNDECIDED = "healthy", "unhealthy", "undecided"
# Steps of a fit from which a symptom without a cause is reported; before, only a run that breaks or diverges is. The
# callback `Doctor` waits as long: a slow start is not a fault.
MIN_STEPS_OF_SYMPTOM = 100
COUNTED = {
    Severity.CRITICAL: ("critical finding", "critical findings"),
    Severity.WARNING: ("warning", "warnings"),
    Severity.NOTICE: ("notice", "notices"),
}


@dataclass(frozen=True, eq=False, repr=False)
class OrderedFindings:
    """Hold the findings of a trace, most severe first, and say whether the training is healthy.

    Args:
        findings: The findings, in any order; kept as a tuple in the order in which to read them.
        trace: The record they rest on.

    Raises:
        TypeError: Something that is no `Finding`, or no `Trace`.
    """

    findings: tuple[Finding, ...]
    trace: Trace

    def __post_init__(self) -> None:
        found = tuple(self.findings)
        strangers = [item for item in found if not isinstance(item, Finding)]
        if strangers or not isinstance(self.trace, Trace):
            raise TypeError(
                "A Diagnosis is made of findings and a Trace. "
                f"Received: {type((strangers or [self.trace])[0]).__name__}. "
                "`gradrecipes.diagnose(trace)` makes one from a Trace."
            )
        object.__setattr__(self, "findings", tuple(in_reading_order(list(found))))

    @property
    def healthy(self) -> bool:
        """Whether the verdict is "healthy"."""
        return self.verdict == HEALTHY

    @property
    def verdict(self) -> str:
        """How the training is: "healthy", "unhealthy", or "undecided" where the trace does not show it.

        It is unhealthy when a finding is critical or a warning; notices do not count.
        """
        if self._alarming and not self._too_short:
            return UNHEALTHY
        return HEALTHY if self._undecided is None else UNDECIDED

    @property
    def _alarming(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity is not Severity.NOTICE]

    @property
    def _too_short(self) -> bool:
        """Whether a fit of few steps has not learnt yet, and shows symptoms without a cause."""
        if self.trace.probes.trial is not None or not 0 < len(self.trace) < MIN_STEPS_OF_SYMPTOM:
            return False
        only_symptoms = all(finding.kind is Kind.SYMPTOM for finding in self._alarming)
        return only_symptoms and outcome_of(self.trace).state in (STALLED, OSCILLATING)

    @property
    def _undecided(self) -> str | None:
        """Why nothing can be said of the training, or None."""
        if self._alarming:
            return f"Undecided: {_steps(self.trace)} are too few to tell. So far: {self._alarming[0].title}"
        if not len(self.trace):
            if self.findings or not self.trace.probes:
                return "Nothing to judge: the trace holds no training step."
            return "Undecided: no training step was recorded; nothing else is alarming."
        if not np.isfinite(losses(self.trace)).any():
            return f"Undecided: the loss was not seen in {_steps(self.trace)}; nothing else is alarming."
        return None

    @property
    def summary(self) -> str:
        """One line that says how the training is."""
        steps = len(self.trace)
        if self.verdict == UNHEALTHY:
            return f"Unhealthy: {self.findings[0].title}"
        if self._undecided is not None:
            return self._undecided
        if self.trace.probes.trial is not None:
            return f"Healthy: nothing alarming in the data, the net, and {steps:,} trial steps."
        return f"Healthy: nothing alarming in {_steps(self.trace)}."

    @property
    def tally(self) -> str:
        """How many findings of each severity there are: "1 critical finding, 2 warnings"."""
        counts = {level: sum(finding.severity is level for finding in self.findings) for level in Severity}
        parts = [f"{count} {COUNTED[level][count > 1]}" for level, count in counts.items() if count]
        return ", ".join(parts) or "no findings"

    def symptoms(self, finding: Finding) -> list[tuple[str, Finding | None]]:
        """Return what a cause brings about: for each code the finding that shows it here, or None."""
        seen: dict[str, Finding] = {}
        for other in self.findings:
            seen.setdefault(other.code, other)
        return [(code, seen.get(code)) for code in finding.leads_to]

    def causes(self, finding: Finding) -> list[Finding]:
        """Return the findings that name this one among what they lead to."""
        return [other for other in self.findings if finding.code in other.leads_to]


def _steps(trace: Trace) -> str:
    return f"{len(trace):,} recorded {'step' if len(trace) == 1 else 'steps'}"
