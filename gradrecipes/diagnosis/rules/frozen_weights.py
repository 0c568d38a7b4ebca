"""frozen_weights: layers that have to learn are frozen, so the training makes no progress.

## What it does
Counts the weights that are trained and those that are frozen. It fires where no weight is trained, and where the run
does not learn although it learns in the same steps with all weights trained. A frozen layer whose bias is still all
zeros, or whose normalization never saw data, has never been trained: a backbone that was built without its pretrained
weights. A net whose frozen part was trained, and whose head learns, is not reported. It fires as well where the answers
depend on variables that belong to no layer of the model, and, in a run that does not learn, on weights that a train
step of the user's own never changes.

## Why it is bad
A layer with random weights transforms its input at random; later layers can only weight the result. With the head
frozen, the layers before it must adapt to random outputs. The loss then stalls or falls slowly, and no learning rate
helps.

## Example
```python
base = keras.applications.MobileNetV2(weights=None, include_top=False, pooling="avg")  # "imagenet" was meant
base.trainable = False
model = keras.Sequential([base, keras.layers.Dense(10, activation="softmax")])
```

## Remedy
Train what has never been trained; freeze only a pretrained part, and train the head. Compile again afterwards.

## References
- Keras guide: "Transfer learning and fine-tuning".
- Yosinski et al., "How transferable are features in deep neural networks?", arXiv 1411.1792.
"""

from __future__ import annotations

from gradrecipes.core.findings import Evidence, Finding, Kind, Prescription, Severity, named
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.description import FrozenLayer
from gradrecipes.core.trace.trial_reading import FROZEN, NOT_UPDATED, UNFROZEN, UNTRACKED, TrialReading
from gradrecipes.diagnosis.keras_lines import compile_lines, optimizer_line, recorded_rate
from gradrecipes.diagnosis.outcome import PROVEN, Verdict, fixes, halved_by, variation, variation_evidence, verdict
from gradrecipes.diagnosis.prescriptions import prescription
from gradrecipes.diagnosis.registry import rule

# Why weights stand still -> (title, explanation, prescription).
STILL = {
    UNTRACKED: (
        "The weights {names} belong to no layer: they are not trained",
        "They are variables that Keras does not track: a tf.Variable, or a layer that is not an attribute of a layer. "
        "They are not among model.trainable_variables, and keep their initial values.",
        "track_weights",
    ),
    NOT_UPDATED: (
        "The train step never changes {names}",
        "The step does not ask for their gradients, or does not apply them.",
        "update_all_weights",
    ),
    FROZEN: (
        "One turn of the train step trains no weight: {names} is frozen",
        "The step asks for the gradients of an empty list of weights: trainable = False holds in every turn of the "
        "step, also in the one that was meant to train these.",
        "unfreeze",
    ),
}


@rule(
    code="frozen_weights",
    kind=Kind.CAUSE,
    title="Layers that have to learn are frozen",
    short="weights frozen that have to learn",
    order=75,
    brings_about=("unbalanced_loss_terms", "excessive_regularization", "stalled_loss"),
)
def frozen_weights(trace: Trace) -> Finding | None:
    """Tell whether the frozen weights are what keeps a run from learning."""
    return _frozen(trace) or _still(trace)


def _still(trace: Trace) -> Finding | None:
    """Tell which weights no step changes because Keras does not know them, or the train step leaves them out."""
    learned, still = verdict(trace).learned, (trace.probes.trial or TrialReading()).still
    left_out = [] if learned else [one for one in still if one.why == NOT_UPDATED]
    layers = [one for one in still if one.why in (UNTRACKED, FROZEN)] or left_out
    if not layers:
        return None
    names, entries = named([one.name for one in layers]), sum(one.entries for one in layers)
    title, why, remedy = STILL[layers[0].why]
    statement = f"The training depends on {entries:,} weights of {names}, and no step of the trial changed one of them"
    return Finding(
        code="frozen_weights",
        title=title.format(names=names),
        kind=Kind.CAUSE,
        severity=Severity.WARNING if learned else Severity.CRITICAL,
        confidence=PROVEN,
        explanation=f"{statement}. {why}",
        layer=layers[-1].name if layers[-1].name in trace.layers else None,
        evidence=(Evidence(f"{statement}.", 0.0, float(entries), "this trial"),),
        prescriptions=(_unfreeze(trace) if layers[0].why == FROZEN else prescription(remedy),),
    )


def _frozen(trace: Trace) -> Finding | None:
    trained = trace.description.trainable_entries
    nothing = trained == 0
    frozen = [layer for layer in trace.description.frozen if layer.kernel or nothing]
    if not frozen or trained is None:
        return None
    seen = verdict(trace)
    if not nothing and not _proven(trace, seen):
        return None
    entries = sum(layer.entries for layer in trace.description.frozen)
    share = trained / (trained + entries)
    names = named([layer.name for layer in frozen])
    counted = f"{trained:,} of {trained + entries:,} weights are trained; frozen: {names}"
    return Finding(
        code="frozen_weights",
        title="No weight is trained: all are frozen" if nothing else f"The net learns only with {names} trained too",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL if nothing or not seen.learned else Severity.NOTICE,
        confidence=1.0 if nothing else PROVEN,
        explanation=f"{counted}. {_why(frozen, nothing)}",
        layer=frozen[-1].name if frozen[-1].name in trace.layers else None,
        evidence=(
            Evidence(f"{counted}.", share, 1.0, "the model"),
            *_never_trained(frozen),
            *variation_evidence(trace, UNFROZEN),
        ),
        prescriptions=(_unfreeze(trace),),
    )


def _proven(trace: Trace, seen: Verdict) -> bool:
    """Return whether the run learns with all weights trained, and neither learns without nor is known to need more.

    A run that learns already counts only where what is frozen was never trained: all weights of a net that was do
    better than its head alone, which is no reason to train them.
    """
    result = variation(trace, UNFROZEN)
    if result is None:
        return False
    if not seen.learned:
        return fixes(result, seen)
    untrained = any(layer.untrained for layer in trace.description.frozen)
    return untrained and halved_by(trace, seen, UNFROZEN)


def _why(frozen: list[FrozenLayer], nothing: bool) -> str:
    if nothing:
        return "The optimizer has no variable to update, so the loss stays what it is."
    if any(layer.untrained for layer in frozen):
        return (
            "The frozen layers were never trained: they transform their input at random, and the trained layers "
            "can only weight the result. Freeze only weights that were trained before."
        )
    return (
        "The trained layers cannot make up for the frozen ones: the net learns in the same steps with all weights "
        "trained."
    )


def _never_trained(frozen: list[FrozenLayer]) -> tuple[Evidence, ...]:
    known = [layer for layer in frozen if layer.untrained is not None]
    untrained = [layer for layer in known if layer.untrained]
    if not untrained:
        return ()
    statement = (
        f"Frozen layers that were never trained: {len(untrained)} of {len(known)}. Their biases are exactly 0, or "
        "their moving statistics have their initial values."
    )
    return (Evidence(statement, float(len(untrained)), 0.0, "the model before the first step"),)


def _unfreeze(trace: Trace) -> Prescription:
    return prescription("unfreeze", compile=compile_lines(optimizer_line(trace, recorded_rate(trace) or 1e-3)))
