"""Where a training step broke: the first offender, those after it, and what every layer showed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gradrecipes.core.trace.record import to_json

ROWS_SHOWN = 40  # lines of the layer table in a terminal; `to_dict` holds all of them
SAMPLES_SHOWN = 12  # indices that a line of text lists


class OffenderKind(StrEnum):
    """What is to blame, in the order in which a training step meets it; a broken weight was there before the step."""

    WEIGHT = "weight"
    INPUT = "input"
    LAYER_OUTPUT = "layer_output"
    TARGET = "target"
    SAMPLE_WEIGHT = "sample_weight"
    LOSS = "loss"
    GRADIENT = "gradient"
    OPTIMIZER_SLOT = "optimizer_slot"


@dataclass(frozen=True)
class Offender:
    """Name one place where a step broke: what, where, for which samples, and why that happens.

    Args:
        kind: What is to blame.
        name: Path of the array in the batch (`"x['pixels']"`), path of the variable, or name of the layer.
        found: `"nan"`, `"inf"` or `"-inf"`, or the number, which is finite and an outlier.
        sentence: What happened and what to do about it, for somebody in trouble.
        layer: The layer it sits in; for a gradient, the layer whose backward pass made it. None for the loss.
        samples: Indices within the batch, from 0; empty where it is not a matter of single samples.
        entries: The first few positions within the array, the index of the sample included.
        dtype: Of the array it was found in, such as `"float16"`.
    """

    kind: OffenderKind
    name: str
    found: str | float
    sentence: str = ""
    layer: str | None = None
    samples: tuple[int, ...] = ()
    entries: tuple[tuple[int, ...], ...] = ()
    dtype: str = ""

    @property
    def finite(self) -> bool:
        """Whether what was found is a finite outlier, not NaN or Inf."""
        return not isinstance(self.found, str) and math.isfinite(self.found)

    def to_dict(self) -> dict[str, Any]:
        """Return the offender as plain JSON values."""
        return to_json(self)

    def __str__(self) -> str:
        kind = self.kind.value.replace("_", " ")
        samples = f", {listed(self.samples)}" if self.samples else ""
        found = self.found if isinstance(self.found, str) else f"{self.found:.3g}"
        return f"{kind} {self.name}{samples}: {found}\n{self.sentence}"


@dataclass(frozen=True)
class Operation:
    """Name the innermost operation that made NaN or Inf out of finite numbers.

    Args:
        name: Its path in the traced step, which names layers and sub-layers.
        type: TensorFlow's type, such as `"Log"`.
        words: What it does wrong, such as "the logarithm of 0".
        backward: Whether it belongs to the backward pass.
        dtype: Of what it made, such as `"float16"`.
    """

    name: str
    type: str
    words: str
    backward: bool = False
    dtype: str = ""

    @property
    def overflows_float16(self) -> bool:
        """Whether it left the range of float16, from numbers that float32 may well hold the result of."""
        return self.dtype == "float16" and "overflow" in self.words

    def __str__(self) -> str:
        return f"{self.words}{' in the backward pass' if self.backward else ''} (operation {self.name})"


@dataclass(frozen=True)
class LayerReading:
    """What one layer showed in the step; a layer that ran several times is joined over its calls.

    Args:
        layer: Name of the layer.
        kind: Name of its class.
        dtype: Of its output.
        input_rms: Root mean square of the finite entries of its inputs; NaN where nothing was captured.
        output_rms: The same of its outputs.
        output_max: Largest magnitude of the finite entries of its outputs.
        nonfinite_share: Share of the entries of its outputs that are NaN or Inf, from 0 to 1.
        output_gradient_norm: L2 norm of the unscaled gradient with respect to its outputs; NaN where none came.
        weight_gradient_norm: L2 norm of the unscaled gradient with respect to its own weights; NaN without weights.
    """

    layer: str
    kind: str = ""
    dtype: str = ""
    input_rms: float = math.nan
    output_rms: float = math.nan
    output_max: float = math.nan
    nonfinite_share: float = math.nan
    output_gradient_norm: float = math.nan
    weight_gradient_norm: float = math.nan

    @property
    def growth(self) -> float:
        """How many times larger the outputs are than the inputs; NaN where one of them is not known."""
        return self.output_rms / self.input_rms if self.input_rms > 0 else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return the reading as plain JSON values."""
        return to_json({**vars(self), "growth": self.growth})


@dataclass(frozen=True)
class Autopsy:
    """Say where a training step broke first, what followed, and what every layer showed.

    Args:
        offenders: In the order of the step; places that only pass on what came before them are left out.
            What is not finite comes before outliers.
        layers: A reading of every layer that ran, in the order in which they finished.
        batch_size: Samples in the batch.
        loss: The loss of the batch; NaN where it could not be computed.
        sample_losses: float `[batch_size]`, the loss of each sample alone; empty where it could not be had.
        sample_gradient_norms: float `[batch_size]`, L2 norm of each sample's gradient over all weights; NaN for
            samples that were not measured, empty where none was.
        reached: How far the first offender got, in sentences.
        notes: What could not be analysed, and what else is worth knowing.
        complete: Whether the step could be run to its end.
        operation: The innermost operation that broke; None where it could not be seen.

    Example:
        >>> offender = Offender(OffenderKind.INPUT, "x", "nan", "The data hold a NaN.", samples=(5,))
        >>> print(Autopsy((offender,), batch_size=8).first)
        input x, sample 5: nan
        The data hold a NaN.
    """

    offenders: tuple[Offender, ...] = ()
    layers: tuple[LayerReading, ...] = ()
    batch_size: int = 0
    loss: float = math.nan
    sample_losses: tuple[float, ...] = ()
    sample_gradient_norms: tuple[float, ...] = ()
    reached: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    complete: bool = True
    operation: Operation | None = None

    @property
    def first(self) -> Offender | None:
        """The first offender, or None."""
        return self.offenders[0] if self.offenders else None

    @property
    def healthy(self) -> bool:
        """Whether the step could be run to its end and nothing was found."""
        return self.complete and not self.offenders

    @property
    def heaviest_sample(self) -> int | None:
        """The sample that adds most to the gradient, or None where that was not measured."""
        norms = [norm if math.isfinite(norm) else -1.0 for norm in self.sample_gradient_norms]
        return max(range(len(norms)), key=norms.__getitem__) if norms and max(norms) >= 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Return the whole as plain JSON values; a number JSON cannot hold becomes its name."""
        return {**to_json(self), "layers": [reading.to_dict() for reading in self.layers]}

    def __str__(self) -> str:
        lines = [f"Autopsy of one step: {self.batch_size} samples, loss {self.loss:.4g}"]
        if self.first is None and not self.complete:
            lines += ["Nothing to blame in what could be analysed; the step did not run to its end."]
        elif self.first is None:
            lines += ["Nothing to blame: weights, batch, outputs, loss, gradients and optimizer are finite and sane."]
        else:
            lines += [f"First offender: {self.first}", *self.reached]
        if self.operation is not None:
            lines.append(f"Operation: {self.operation}")
        for number, offender in enumerate(self.offenders[1:], start=2):
            lines.append(f"Offender {number}: {offender}")
        if (heaviest := self.heaviest_sample) is not None:
            norm = self.sample_gradient_norms[heaviest]
            lines.append(f"Largest contribution: sample {heaviest}, whose own gradient has the norm {norm:.3g}")
        return "\n".join([*lines, *self._table(), *(f"Note: {note}" for note in self.notes)])

    def _table(self) -> list[str]:
        if not self.layers:
            return []
        head = ("layer", "output rms", "largest", "not finite", "grad of output", "grad of weights")
        shown = [
            (
                reading.layer,
                f"{reading.output_rms:.3g}",
                f"{reading.output_max:.3g}",
                f"{reading.nonfinite_share:.2%}",
                f"{reading.output_gradient_norm:.3g}",
                f"{reading.weight_gradient_norm:.3g}",
            )
            for reading in self.layers[:ROWS_SHOWN]
        ]
        rows = [head, *(tuple("-" if cell == "nan" else cell for cell in row) for row in shown)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = ["", *("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)]
        more = len(self.layers) - ROWS_SHOWN
        return [*lines, *([f"... and {more} more layers"] if more > 0 else []), ""]


def listed(samples: Sequence[int]) -> str:
    """Return indices as text: "sample 5", "samples 1, 5 and 9", "256 samples (first 0, 1 and 2)"."""
    names = [str(int(sample)) for sample in samples]
    if len(names) == 1:
        return f"sample {names[0]}"
    if len(names) <= SAMPLES_SHOWN:
        return f"samples {', '.join(names[:-1])} and {names[-1]}"
    shown = names[:SAMPLES_SHOWN]
    return f"{len(names)} samples (first {', '.join(shown[:-1])} and {shown[-1]})"


def in_words(found: str | float) -> str:
    """Return NaN or infinity in words."""
    return {"nan": "NaN", "inf": "infinity", "-inf": "minus infinity"}.get(str(found), str(found))
