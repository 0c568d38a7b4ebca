"""failing_step: a training step cannot be run at all.

## What it does
Reports that building the model, or its first training step, raised an error, in which part, and with which message.

## Why it is bad
`model.fit` raises the same error, usually with a long traceback from TensorFlow.

## Example
Labels from 1 to 10 for ten units; inputs with another number of columns than the model has.

## Remedy
Fix what the message names. The evidence lists the shapes of data, outputs and targets.

## References
- Keras guide: "Training and evaluation with the built-in methods".
"""

from __future__ import annotations

from gradrecipes.core.findings import Evidence, Finding, Kind, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.data_reading import DataReading
from gradrecipes.diagnosis.prescriptions import prescription
from gradrecipes.diagnosis.registry import rule

PARTS = {"build": "The model could not be built on these inputs", "step": "A training step raised an error"}


@rule(
    code="failing_step",
    kind=Kind.CAUSE,
    title="A training step cannot be run at all",
    short="a step that cannot be run",
    order=10,
)
def failing_step(trace: Trace) -> Finding | None:
    """Tell that a step could not be run, and why."""
    failure = trace.probes.failure
    if failure is None:
        return None
    said = f"{PARTS.get(failure.stage, 'The training raised an error')}: {failure.type}"
    message = failure.message
    return Finding(
        code="failing_step",
        title=said,
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=1.0,
        explanation=f"{said}. `model.fit` would raise the same error, with a long traceback. The message: {message}",
        evidence=(Evidence(f"The message: {message}", source="TensorFlow and Keras"), *_shapes(trace)),
        prescriptions=(prescription("compare_shapes"),),
    )


def _shapes(trace: Trace) -> tuple[Evidence, ...]:
    data = trace.probes.data or DataReading()
    arrays = [*data.inputs, *data.targets]
    if not arrays:
        return ()
    listed = ", ".join(f"{array.name} {list(array.shape)} {array.dtype}" for array in arrays)
    outputs = trace.description.outputs
    made = ", ".join(f"{output.name} {list(output.shape)}" for output in outputs if output.shape)
    return (Evidence(f"Shapes of one sample: {listed}" + (f"; the outputs are {made}" if made else "") + "."),)
