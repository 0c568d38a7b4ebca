"""The variations of a trial: the same steps with one thing changed. What each changes stands in `probes/variations`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variation:
    """Name one change of a trial.

    Args:
        name: In the record.
        label: In a table.
        words: In a sentence, as in "with inputs of mean 0 and standard deviation 1, the loss falls".
        rate: Factor of the learning rate, or None.
    """

    name: str
    label: str
    words: str
    rate: float | None = None


AS_IT_IS = Variation("as_it_is", "unchanged", "once more, over fewer batches")
FINITE_DATA = Variation("finite_data", "bad samples replaced", "without the samples that are not finite or outlying")
SCALED_INPUTS = Variation("scaled_inputs", "inputs scaled", "with inputs of mean 0 and standard deviation 1")
SCALED_TARGETS = Variation("scaled_targets", "targets scaled", "with targets of mean 0 and standard deviation 1")
FITTING_WEIGHTS = Variation(
    "fitting_weights", "initial weights of usual size", "with initial weights of the size that initializers give"
)
ALL_SCALED = Variation(
    "all_scaled", "inputs, targets, weights scaled", "with inputs, targets and initial weights of usual size"
)
FRESH_OPTIMIZER = Variation("fresh_optimizer", "optimizer state reset", "with an optimizer whose state was reset")
LARGER_BATCH = Variation("larger_batch", "batches 8 times larger", "with batches eight times larger")
WARM_UP = Variation(
    "warm_up", "learning rate warmed up", "with a learning rate that rises from 0 over the first half of the steps"
)
UNFROZEN = Variation("unfrozen", "all weights trained", "with all weights trained, the frozen ones too")
BALANCED_TERMS = Variation("balanced_terms", "loss terms balanced", "with loss terms that start equally large")
VARIATIONS = {
    one.name: one
    for one in (
        AS_IT_IS,
        FINITE_DATA,
        SCALED_INPUTS,
        SCALED_TARGETS,
        FITTING_WEIGHTS,
        ALL_SCALED,
        FRESH_OPTIMIZER,
        LARGER_BATCH,
        WARM_UP,
        UNFROZEN,
        BALANCED_TERMS,
    )
}
_RATE = "rate_"


def at_rate(factor: float) -> Variation:
    """Return the variation that multiplies the learning rate.

    Example:
        >>> at_rate(0.1).label
        'learning rate x 0.1'
    """
    words = f"at {factor:g} times the learning rate"
    return Variation(f"{_RATE}{factor:g}", f"learning rate x {factor:g}", words, factor)


def variation_of(name: str) -> Variation:
    """Return the variation with a name; one that is not known is called by its name."""
    if name in VARIATIONS:
        return VARIATIONS[name]
    factor = name.removeprefix(_RATE)
    try:
        return at_rate(float(factor)) if name.startswith(_RATE) else Variation(name, name.replace("_", " "), name)
    except ValueError:
        return Variation(name, name.replace("_", " "), name)
