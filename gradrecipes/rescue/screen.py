"""A rescue on one screen: at most 40 lines of 80 columns."""

from __future__ import annotations

import textwrap
from typing import Any

LINES, COLUMNS = 40, 80
TRIED_SHOWN = 6  # other trials that are listed
CODE_LINES = 16


def screen(rescue: Any) -> str:
    """Return a `Rescue` as plain text."""
    evidence, proof = rescue.evidence, rescue.evidence.proof
    lines = [rescue.verdict.upper() + ("" if evidence.complete else " (stopped early)"), ""]
    if rescue.diagnosis.findings:
        first = rescue.diagnosis.findings[0]
        lines += _wrapped(f"Found: {first.title} ({first.code})")
    else:
        lines += _wrapped("The diagnosis found nothing wrong.")
    if evidence.control is not None:
        lines += _wrapped(f"As it is: {evidence.measured} {evidence.control:.3f} (chance {evidence.chance:.3f}).")
    if rescue.changes and proof is not None:
        lines += ["", "Changes:"]
        for change in rescue.changes:
            loss = "" if change.needed is None else f" (without it {-change.needed:+.3f})"
            lines += _wrapped(f"- {change.title}{loss}")
        pairs = ", ".join(f"{a:.3f} to {b:.3f}" for a, b in zip(proof.control, proof.changed, strict=True))
        lines += ["", *_wrapped(f"{evidence.measured.capitalize()} on held-back data, seed by seed: {pairs}.")]
        if proof.interval is not None:
            low, high = proof.interval.low, proof.interval.high
            lines += _wrapped(f"Difference {proof.difference:+.3f}, 95% interval {low:+.3f} to {high:+.3f}.")
        code = rescue.as_code().splitlines()
        lines += ["", *[line[:COLUMNS] for line in code[:CODE_LINES]]]
        lines += ["..."] if len(code) > CODE_LINES else []
    elif rescue.verdict == "not rescued":
        best = sorted((one for one in evidence.trials if one.changes), key=lambda one: -one.score)[:TRIED_SHOWN]
        lines += ["", "Nothing that was tried wins by more than chance. The best:"]
        for trial in best:
            lines += _wrapped(f"- {' + '.join(trial.changes)}: {trial.score:.3f} after {trial.steps} steps")
    else:
        lines += _wrapped("The training as it is learns, to its end; the model is returned as it was.")
    cost = f"{len(evidence.trials)} trials, {evidence.spent_steps:.0f} steps = {evidence.trainings:.1f} trainings"
    seconds = sum(evidence.seconds.values())
    lines += ["", *_wrapped(f"{cost}, {seconds:.0f} s.")]
    return "\n".join(lines[:LINES])


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, COLUMNS, subsequent_indent="  ")
