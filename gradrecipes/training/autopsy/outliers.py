"""Find finite outliers: a value a thousand times beyond all others, a gradient too large to be squared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from gradrecipes.core.trace.autopsy import Offender, OffenderKind, listed
from gradrecipes.training.autopsy.arrays import (
    Outlier,
    dense,
    is_float,
    leaves,
    sample_outlier,
    weight_outliers,
)
from gradrecipes.training.autopsy.forward import owners_of
from gradrecipes.training.autopsy.step import Step

SQUARE_OVERFLOWS = math.sqrt(float(np.finfo(np.float32).max))  # 1.84e19: beyond, float32 cannot hold the square
AFTER_THE_GRADIENT = (OffenderKind.OPTIMIZER_SLOT, OffenderKind.WEIGHT)
DOMINATES = 10.0  # times the next largest gradient; the ratio of neighbours in a sorted batch is rarely beyond 3


def outlying_offenders(
    step: Step, norms: Sequence[float], loss_limit: float | None, broken: Sequence[Offender]
) -> list[Offender]:
    """Return what is finite and yet out of all proportion, most telling first.

    Args:
        step: The step.
        norms: The gradient norm of each sample, or nothing.
        loss_limit: The loss beyond which the step is an outlier, or None.
        broken: What is not finite; an outlier in the same samples is told as well.
    """
    over = loss_limit is not None and step.loss is not None and step.loss > loss_limit
    offenders = [*_weights(step), *_data(step, norms, broken, over)]
    if all(offender.kind in AFTER_THE_GRADIENT for offender in broken):  # what broke before it explains its size
        offenders += _gradients(step)
    if over and not offenders and not broken:
        offenders.append(_loss(step, loss_limit))
    return offenders


def dominant_sample(norms: Sequence[float]) -> int | None:
    """Return the sample whose gradient is `DOMINATES` times that of any other, or None."""
    known = [(norm, sample) for sample, norm in enumerate(norms) if not math.isnan(norm)]
    if len(known) < 2:
        return None
    (first, sample), (second, _) = sorted(known, reverse=True)[:2]
    return sample if first > 0 and first >= DOMINATES * second else None


def _weights(step: Step) -> Iterator[Offender]:
    variables = [variable for variable in step.variables if is_float(dense(variable).dtype)]
    arrays = [dense(variable) for variable in variables]
    owners = owners_of(step.model)
    for place, outlier in weight_outliers(arrays).items():
        variable = variables[place]
        yield Offender(
            kind=OffenderKind.WEIGHT,
            name=variable.path,
            found=outlier.value,
            sentence=f"The entry {list(outlier.entry)} of the weight is {outlier.value:.4g}, {outlier.factor:.2g} "
            "times the largest of all other weights. Training does not do that to one entry: a flipped bit, a damaged "
            "file or an edit by hand does. Go back to a copy that is intact.",
            layer=owners.get(id(variable)),
            entries=(outlier.entry,) if outlier.entry else (),
            dtype=arrays[place].dtype.name,
        )


def _data(step: Step, norms: Sequence[float], broken: Sequence[Offender], over: bool) -> Iterator[Offender]:
    hurt = {sample for offender in broken for sample in offender.samples}
    everywhere = any(not offender.samples for offender in broken)
    dominant = dominant_sample(norms)
    parts = (
        (OffenderKind.INPUT, "x", step.batch.x),
        (OffenderKind.TARGET, "y", step.batch.y),
        (OffenderKind.SAMPLE_WEIGHT, "sample_weight", step.batch.sample_weight),
    )
    for kind, name, structure in parts:
        for path, tensor in leaves(name, structure):
            if not isinstance(tensor, tf.Tensor) or tensor.shape.rank == 0 or tensor.shape[0] != step.batch.size:
                continue
            outlier = sample_outlier(tensor.numpy())
            if outlier is None:
                continue
            sample = outlier.entry[0]
            if sample in hurt or everywhere or over or sample == dominant:
                yield _outlier(kind, path, outlier, norms, tensor.dtype.name)


def _outlier(kind: OffenderKind, path: str, outlier: Outlier, norms: Sequence[float], dtype: str) -> Offender:
    sample = outlier.entry[0]
    others = [norm for other, norm in enumerate(norms) if other != sample and math.isfinite(norm)]
    weight = ""
    if others and math.isfinite(norms[sample]):
        weight = (
            f" Its own gradient has the norm {norms[sample]:.3g}; the median of the other samples is "
            f"{float(np.median(others)):.3g}."
        )
    return Offender(
        kind=kind,
        name=path,
        found=outlier.value,
        sentence=f"{path}{list(outlier.entry)} is {outlier.value:.4g}: finite, but {outlier.factor:.2g} times beyond "
        f"what the other samples of the batch hold there.{weight} Check where this row comes from; scale the data "
        "robustly, or clip it.",
        samples=(sample,),
        entries=(outlier.entry,),
        dtype=dtype,
    )


def _gradients(step: Step) -> Iterator[Offender]:
    owners = owners_of(step.model)
    largest = None
    for variable, numbers in zip(step.variables, step.numbers, strict=False):
        if numbers is None or numbers.found or numbers.largest / step.scale <= SQUARE_OVERFLOWS:
            continue
        if largest is None or numbers.largest > largest[1].largest:
            largest = variable, numbers
    if largest is not None:
        variable, numbers = largest
        yield Offender(
            kind=OffenderKind.GRADIENT,
            name=variable.path,
            found=numbers.largest / step.scale,
            sentence=f"The gradient with respect to {variable.path} is finite, but reaches "
            f"{numbers.largest / step.scale:.3g}. Its square is beyond float32: a clip by norm then gives NaN or "
            "zeros, and the second moment of Adam becomes inf, which breaks the weights a step later.",
            layer=owners.get(id(variable)),
            dtype=numbers.dtype,
        )


def _loss(step: Step, loss_limit: float) -> Offender:
    order = sorted(range(len(step.sample_losses)), key=lambda sample: -step.sample_losses[sample])
    above = tuple(sample for sample in order if step.sample_losses[sample] > loss_limit)
    if above and 2 * len(above) <= step.batch.size:
        rest = [loss for sample, loss in enumerate(step.sample_losses) if sample not in above]
        samples, why = (
            above,
            f"It comes from {listed(above)}, up to {step.sample_losses[order[0]]:.3g} each; the median of the others "
            f"is {float(np.median(rest)):.3g}. Look at these rows and their labels.",
        )
    else:
        share = f"{len(above)} of {step.batch.size} samples lie beyond it" if above else "No sample alone is beyond it"
        samples, why = (), f"{share}, so no single row is to blame: the weights have left the good region."
    return Offender(
        kind=OffenderKind.LOSS,
        name="loss",
        found=float(step.loss),
        sentence=f"The loss of the batch is {step.loss:.4g}, beyond the limit of {loss_limit:.4g}. {why}",
        samples=samples,
    )
