"""Report during `fit` what is wrong with it, as soon as that is sure."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import keras

from gradrecipes.callbacks.attached import AttachedCallback
from gradrecipes.core.arguments import require_flag, require_whole
from gradrecipes.core.findings import Finding, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.probes import AttentionReading, Probes, SignalReading
from gradrecipes.diagnosis.engine import find
from gradrecipes.diagnosis.outcome import verdict
from gradrecipes.probes.attention import AttentionProbe
from gradrecipes.probes.examine import look_before_fit
from gradrecipes.report.diagnosis import Diagnosis
from gradrecipes.report.findings import confidence, path
from gradrecipes.training.fit.prepared_step import Request

_LOG = logging.getLogger(__name__)

SURE = 0.75  # confidence from which on a finding is reported; what others explain away falls below it
PATIENCE = 100  # steps before which only a run that breaks or diverges is reported: a slow start is not
RARER = 10  # a judgement waits for a tenth of the steps so far, but for no more than so many `check_every`


class Doctor(AttachedCallback):
    """Report what is wrong with a training while it runs, as soon as it is certain, and after how many steps.

    It records what `GradientMonitor` records, and asks the rules every `check_every` steps. A finding is reported once,
    as a warning in the log, when it is critical or a warning, certain, and seen at two checks in a row. The training
    is not changed, unless `stop` is True.

    Args:
        data: `(x, y)` or `(x, y, sample_weight)` that the model is fitted to, to be looked at before the first step:
            with them causes in data, labels, loss and weights can be named, too, and the logits of attention layers
            are read at each check, whose growth is seen before the loss moves. None to judge by the steps alone.
        check_every: Steps from one check to the next, at least 1; a long run is checked more rarely.
        stop: Whether a critical finding ends the training.
        on_finding: Called with each finding when it is reported, or None.

    Attributes:
        findings: Those reported, in the order in which they became certain.
        steps: Code to the number of steps after which it was certain.
        diagnosis: All that the rules see in the record now, as `gradrecipes.diagnose(doctor.trace)` does.
        stop_reason: Why the training was ended, or None.

    Raises:
        TypeError: `data` is no tuple of two or three, `stop` no boolean, `on_finding` no function.
        ValueError: `check_every` is no positive whole number; in `fit`: the model is not compiled.

    Example:
        >>> doctor = Doctor(data=(x, y))
        >>> _ = model.fit(x, y, verbose=0, callbacks=[doctor])
        >>> doctor.findings
        []
    """

    def __init__(
        self,
        *,
        data: tuple[Any, ...] | None = None,
        check_every: int = 20,
        stop: bool = False,
        on_finding: Callable[[Finding], Any] | None = None,
    ):
        require_whole("check_every", check_every, least=1, remedy="20 costs little.")
        require_flag("stop", stop, remedy="True ends the training at a critical finding.")
        if data is not None and not (isinstance(data, tuple | list) and 2 <= len(data) <= 3):
            raise TypeError(
                f"`data` must be (x, y) or (x, y, sample_weight). Received: a {type(data).__name__}. "
                "Pass what you pass to model.fit; leave it out for datasets and generators."
            )
        if on_finding is not None and not callable(on_finding):
            raise TypeError(f"`on_finding` must be a function of a finding. Received: on_finding={on_finding!r}.")
        super().__init__(Request(samples=True, log=None, check=self._check, check_every=check_every))
        self.data = data
        self.check_every = check_every
        self.stop = stop
        self.on_finding = on_finding
        self.findings: list[Finding] = []
        self.steps: dict[str, int] = {}
        self.stop_reason: str | None = None
        self._read_attention: Callable[[], tuple[AttentionReading, ...]] | None = None
        self._seen_last: set[str] = set()
        self._checks = 0
        self._next = 0

    @property
    def diagnosis(self) -> Diagnosis:
        """What the rules see in the record now."""
        trace = self.trace
        return Diagnosis(tuple(find(trace)), trace)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Look at data and model, if there are data, and put the pipeline in place."""
        super().on_train_begin(logs)
        self._seen_last, self._checks, self._next, self.stop_reason = set(), 0, 0, None
        self._probes, self._read_attention = Probes(), None
        if self.data is not None:
            x, y, *weights = self.data
            batch_size = self.params.get("batch_size") if isinstance(self.params, dict) else None
            weight = weights[0] if weights else None
            attention = AttentionProbe(self.model)
            how = {"sample_weight": weight, "batch_size": batch_size, "attention": attention}
            self._probes = look_before_fit(self.model, x, y, **how)
            if self._probes.signal and self._probes.signal.attention:
                few = keras.tree.map_structure(lambda array: array[: batch_size or 32], x)
                self._read_attention = partial(attention.read, few)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Judge the whole run, and give the model its own train function back."""
        super().on_train_end(logs)
        self._judge(last=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_read_attention": None}

    def _check(self) -> None:
        if self._session.steps_run >= self._next:
            self._judge()

    def _judge(self, *, last: bool = False) -> None:
        trace = self._session.collect()
        if not len(trace):
            return
        trace.probes = trace.probes.filled_from(self._probes)
        if self._read_attention is not None:
            trace.probes = replace(trace.probes, signal_after=SignalReading(attention=self._read_attention()))
        pause = min(max(self.check_every, len(trace) // 10), RARER * self.check_every)
        self._next = self._session.steps_run + pause
        self._checks += 1
        alarming = [finding for finding in find(trace) if self._alarms(finding, trace)]
        for finding in alarming:
            again = finding.code in self._seen_last or (last and self._checks < 3)
            if again and finding.code not in self.steps:
                self._speak(finding, trace)
        self._seen_last = {finding.code for finding in alarming}

    def _alarms(self, finding: Finding, trace: Trace) -> bool:
        sure = finding.severity is not Severity.NOTICE and finding.confidence >= SURE
        return sure and (len(trace) >= PATIENCE or verdict(trace).unhealthy)

    def _speak(self, finding: Finding, trace: Trace) -> None:
        steps = len(trace)
        self.findings.append(finding)
        self.steps[finding.code] = steps
        way = path(finding, trace)
        remedy = f" Remedy: {finding.prescriptions[0].title}." if finding.prescriptions else ""
        _LOG.warning(
            "After %d steps it is %s: %s (%s).%s%s",
            steps,
            confidence(finding.confidence),
            finding.title,
            finding.code,
            f" {way}." if way else "",
            remedy,
        )
        self._session.add_event("finding", finding.code, {"title": finding.title, "steps": steps})
        if self.on_finding is not None:
            self.on_finding(finding)
        if self.stop and finding.severity is Severity.CRITICAL and self.stop_reason is None:
            self.stop_reason = finding.title
            self.model.stop_training = True
