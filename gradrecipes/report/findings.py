"""The findings of a trace in the order in which to read them, and what every form of a report needs of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from gradrecipes.core.findings import Finding, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.engine import in_reading_order
from gradrecipes.diagnosis.judgement import HEALTHY, Judgement, judge

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

    @cached_property
    def judgement(self) -> Judgement:
        """The verdict with its reason."""
        return judge(self.trace, self.findings)

    @property
    def verdict(self) -> str:
        """How the training is: "healthy" where it was seen to learn, "unhealthy", or "undecided".

        It is unhealthy when a finding is critical or a warning, or when the run broke or diverged; notices do not
        count. It is undecided where neither that nor learning was seen.
        """
        return self.judgement.verdict

    @property
    def summary(self) -> str:
        """One line that says how the training is, and why."""
        return f"{self.verdict.capitalize()}: {self.judgement.reason}"

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
