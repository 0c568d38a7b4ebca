"""What the variations of a trial say: the same steps with one thing changed, as evidence for a cause."""

from __future__ import annotations

from typing import Any

from gradrecipes.core.finding import Evidence
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.readings import say
from gradrecipes.diagnosis.verdict import BROKEN, verdict

WORDS = {
    "sound_data": "without the samples that are not finite or absurd",
    "scaled_inputs": "with inputs of mean 0 and standard deviation 1",
    "scaled_targets": "with targets of mean 0 and standard deviation 1",
    "fitting_weights": "with initial weights of the size that their initializers should give",
    "all_scaled": "with inputs, targets and initial weights of usual size",
    "fresh_optimizer": "with an optimizer that begins from nothing",
    "larger_batch": "with batches eight times larger",
}
PROVEN, LIKELY, UNPROVEN = 0.95, 0.8, 0.6  # confidence: the variation mends the run; was not tried; does not mend it


def variation(trace: Trace, name: str) -> dict[str, Any] | None:
    """Return the result of a variation, or None where it was not tried."""
    return ((trace.probes.get("trial") or {}).get("varied") or {}).get(name)


def heals(trace: Trace, *names: str) -> bool:
    """Say whether one of these variations mends the run."""
    return any((variation(trace, name) or {}).get("healed", False) for name in names)


def healing_rate(trace: Trace, *, lower: bool) -> float | None:
    """Return the factor of the learning rate, below or above 1, with which the run learns; the nearest to 1."""
    varied = (trace.probes.get("trial") or {}).get("varied") or {}
    factors = [float(name[5:]) for name, result in varied.items() if name.startswith("rate_") and result["healed"]]
    fitting = [factor for factor in factors if (factor < 1) == lower]
    return (max if lower else min)(fitting, default=None)


def confidence(trace: Trace, *names: str) -> float:
    """Return how sure a cause is, by what its variations did."""
    tried = [result for name in names if (result := variation(trace, name)) is not None]
    if any(result["healed"] for result in tried):
        return PROVEN
    return UNPROVEN if tried else LIKELY


def varied_evidence(trace: Trace, *names: str) -> tuple[Evidence, ...]:
    """Return a sentence for each of these variations that was tried: what the same steps did then."""
    seen = verdict(trace)
    found = []
    for name in names:
        result = variation(trace, name)
        if result is None:
            continue
        words = WORDS.get(name) or f"at {float(name[5:]):g} times the learning rate"
        as_it_is = "breaks" if seen.state == BROKEN else f"goes from {say(seen.start)} to {say(seen.end)}"
        if result["end"] is None:
            then = "it breaks all the same" if seen.state == BROKEN else "it breaks"
        else:
            then = f"it goes from {say(result['start'])} to {say(result['end'])}"
        statement = f"As it is, the loss {as_it_is} in a short trial; {words}, {then}."
        found.append(Evidence(statement, result["end"], seen.end if seen.end == seen.end else None, "this trial"))
    return tuple(found)
