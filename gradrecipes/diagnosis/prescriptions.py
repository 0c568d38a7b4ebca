"""What to do about a finding, written with the user's own layers, arrays and optimizer.

The texts stand in `prescriptions.toml`. Here stands what depends on the net: which of them fit, and what is filled in.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from string import Template
from typing import Any

from gradrecipes.core.findings import Prescription
from gradrecipes.core.signal_theory import batch_normalized_factor, layer_normalized_factor
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.probes import WeightScale
from gradrecipes.diagnosis.facts.chain import Stage
from gradrecipes.diagnosis.facts.data_facts import Head
from gradrecipes.diagnosis.facts.readings import rounded
from gradrecipes.diagnosis.keras_lines import (
    can_be_residual,
    chain_values,
    compile_lines,
    initializer_for,
    layer_lines,
    optimizer_line,
    recorded_rate,
)

MIN_NORMALIZED_DEPTH = 10  # weighted layers from which a plain net needs normalization: He alone reaches .58 at 30
MIN_NORMALIZED_UNITS = 4  # units; the normalization of one unit is 0 and that of two is a sign

WARM_UP_RAISES = 2.0  # how much more than the lowered rate a warmed-up run is given to try
WARM_UP_STEPS, DECAY_STEPS = 200, 10_000  # steps; placeholders that the reader adapts to the length of the run
MAX_NAMES = 4  # names that a line lists


@cache
def texts() -> dict[str, dict[str, str]]:
    """Return the prescriptions of `prescriptions.toml` by key, each with its fields."""
    return tomllib.loads((resources.files(__package__) / "prescriptions.toml").read_text(encoding="utf-8"))


def prescription(key: str, **values: Any) -> Prescription:
    """Return a prescription of `prescriptions.toml`.

    Args:
        key: Its table.
        values: What stands for `$name` in its texts, each by its name.

    Example:
        >>> print(prescription("fewer_layers", fewer=5, depth=20).code, end="")
        DEPTH = 5  # hidden layers; there are 20 now
    """
    return Prescription(**{field: Template(text).substitute(values) for field, text in texts()[key].items()})


# -- the data ------------------------------------------------------------------------------------------
def leave_out_nonfinite(names: Sequence[str], everything: Sequence[str]) -> Prescription:
    """Return the advice to drop the samples that are not finite, from all the arrays."""
    checks = " & ".join(f"np.isfinite({name}).reshape(len({name}), -1).all(axis=1)" for name in names)
    return prescription("leave_out_nonfinite", checks=checks, kept=_kept(everything))


def leave_out_marked(name: str, marks: Sequence[float], everything: Sequence[str]) -> Prescription:
    """Return the advice to drop the samples of an array that hold a number that stands for a missing one."""
    checks = f"~np.isin({name}, {[float(mark) for mark in marks]}).reshape(len({name}), -1).any(axis=1)"
    return prescription("leave_out_marked", checks=checks, kept=_kept(everything))


def leave_out_samples(samples: Sequence[int], name: str, everything: Sequence[str]) -> Prescription:
    """Return the advice to look at single samples of an array and to leave them out of all."""
    shown = [int(sample) for sample in samples]
    return prescription("leave_out_samples", samples=shown, name=name, kept=_kept(everything))


def _kept(names: Sequence[str]) -> str:
    """Return the lines that keep the valid samples of arrays, parts of structures (`x.pixels`) among them."""
    return "".join(f"{name} = {name}[sound]\n" for name in names)


def scale_targets(name: str, *, positive: bool, units: int = 1) -> tuple[Prescription, ...]:
    """Return the advice to train on targets of unit size, and to give back the user's units.

    Args:
        name: Of the array, such as `"y"`, `"y['box']"` or `"y[1]"`; the structure of the targets is kept.
        positive: Whether all targets are positive and span orders of magnitude.
        units: Entries of the output.
    """
    values = {
        "name": name,
        "part": name.replace("y", "predictions", 1),
        "scaled": _replaced(name, f"({name} - mean) / std"),
        "logarithm": _replaced(name, f"np.log1p({name})"),
        "units": units,
    }
    keys = ("standardize_targets", "start_at_the_mean", *(("learn_the_logarithm",) if positive else ()))
    return tuple(prescription(key, **values) for key in keys)


def _replaced(name: str, value: str) -> str:
    """Return the targets with one of their arrays replaced, as an expression that keeps their structure.

    Example:
        >>> _replaced("y['box']", "z"), _replaced("y[1]", "z"), _replaced("y", "z")
        ("{**y, 'box': z}", '[*y[:1], z, *y[2:]]', 'z')
    """
    inner = re.fullmatch(r"y\[(.+)\]", name)
    if inner is None:
        return value
    key = inner[1]
    return f"[*y[:{key}], {value}, *y[{int(key) + 1}:]]" if key.isdigit() else f"{{**y, {key}: {value}}}"


def scaling_lines(inputs: Mapping[str, bool], target: str | None) -> str:
    """Return lines that train on scaled arrays and give the predictions in the user's units.

    Args:
        inputs: For each array of inputs, by the name it has in the user's program (`x`, `x['image']`), whether it holds
            pixels from 0 to 255.
        target: Name of the array of targets, or None to leave them as they are.

    Example:
        >>> print(scaling_lines({"x": False}, "y"), end="")
        x_mean, x_std = x.mean(axis=0), x.std(axis=0) + 1e-7
        y_mean, y_std = y.mean(axis=0), y.std(axis=0) + 1e-7
        model.fit((x - x_mean) / x_std, (y - y_mean) / y_std)
        predictions = model.predict((x - x_mean) / x_std) * y_std + y_mean
    """
    lines, fed, learned, back = [], "x", "y", ""
    for name, pixels in inputs.items():
        short = _identifier(name)
        how = "127.5, 127.5" if pixels else f"{name}.mean(axis=0), {name}.std(axis=0) + 1e-7"
        lines.append(f"{short}_mean, {short}_std = {how}")
        if name == "x":
            fed = "(x - x_mean) / x_std"
        else:
            lines.append(f"{name} = ({name} - {short}_mean) / {short}_std")
    if target is not None:
        short = _identifier(target)
        lines.append(f"{short}_mean, {short}_std = {target}.mean(axis=0), {target}.std(axis=0) + 1e-7")
        if target == "y":
            learned, back = "(y - y_mean) / y_std", " * y_std + y_mean"
        else:
            lines.append(f"{target} = ({target} - {short}_mean) / {short}_std")
    lines += [f"model.fit({fed}, {learned})", f"predictions = model.predict({fed}){back}"]
    if target is not None and target != "y":
        part = target.replace("y", "predictions", 1)
        lines.append(f"{part} = {part} * {short}_std + {short}_mean")
    return "\n".join(lines) + "\n"


def _identifier(name: str) -> str:
    """Return a name for variables: `x_image` for `x['image']`."""
    return re.sub(r"\W+", "_", name).strip("_")


def safe_cross_entropy(own: Sequence[Head]) -> tuple[Prescription, ...]:
    """Return the advice to use Keras' loss on logits, where the last activation says that a cross-entropy is meant."""
    activation = own[0].activation if own else ""
    loss = {"sigmoid": "BinaryCrossentropy", "softmax": "CategoricalCrossentropy"}.get(activation)
    if loss is None:
        return ()
    units = own[0].units or "units"
    return (prescription("cross_entropy_on_logits", loss=loss, units=units, activation=activation),)


# -- the initial weights and the layers ----------------------------------------------------------------
def initialization_prescriptions(trace: Trace, stages: Sequence[Stage]) -> tuple[Prescription, ...]:
    """Return what to do about initial weights that are too large in these layers."""
    activation, count = stages[-2].activation, len(stages)
    initializer = initializer_for(activation)
    narrow = min(stage.units for stage in stages)
    advice = prescription(
        "fitting_initializers",
        initializer=initializer.name,
        spread=initializer.spread,
        activation=activation,
        lines=layer_lines(stages),
    )
    if narrow == 1:
        risk = "With one unit a layer the draw decides: a negative weight switches a ReLU chain off. Widen the layers."
        advice = replace(advice, risk=risk)
    deep = []
    if count >= MIN_NORMALIZED_DEPTH and narrow >= MIN_NORMALIZED_UNITS:
        key = "residual_chain" if can_be_residual(stages) else "normalized_chain"
        values = {"count": count, "why_not_batch": _why_not_batch(activation, count), **chain_values(stages)}
        deep = [prescription(key, initializer=initializer.name, **values)]
    return (*deep, advice, clip(trace, "Clip the gradient as protection, after the repair", repairs=False))


def _why_not_batch(activation: str, depth: int) -> str:
    layer, batch = layer_normalized_factor(activation), batch_normalized_factor(activation)
    if batch < layer + 0.01:
        return f"It multiplies gradients by {rounded(layer)} per {activation} layer, and does not depend on the batch."
    return (
        f"It multiplies gradients by {rounded(layer)} per {activation} layer; BatchNormalization in a plain net by "
        f"{rounded(batch)}, whatever the weights: {rounded(batch**depth)}-fold over {depth} layers. Use "
        "BatchNormalization in nets with skip connections, LayerNormalization in this one."
    )


def use_fitting_initializer(weights: Sequence[WeightScale], activation: str | None) -> Prescription:
    """Return the advice to draw these weights from the initializer that belongs to the activation."""
    own = {weight.kind for weight in weights if weight.role == "matrix"}
    kinds = {weight.kind for weight in weights}
    kind = "Dense" if "Dense" in kinds or not kinds else sorted(kinds)[0]
    first = "filters, kernel_size" if kind.startswith("Conv") else "units"
    fitting = initializer_for(activation or "linear")
    names = list(dict.fromkeys(weight.layer for weight in weights))
    shown = ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
    values = {"initializer": fitting.name, "line": fitting.line, "spread": fitting.spread, "layers": shown}
    if own == kinds and own:
        return prescription("fitting_initializer_of_own", kind=sorted(own)[0], **values)
    return prescription("fitting_initializer", kind=kind, first=first, **values)


def add_residual_blocks(trace: Trace) -> Prescription:
    """Return the advice to give the gradient a way around every two layers, of the kind that the net is made of."""
    if (own := _own_kind(trace)) is not None:
        return prescription("residual_blocks_of_own", kind=own)
    kind = _convolution(trace)
    key = "residual_blocks" if kind is None else "residual_convolutions"
    return prescription(key, width=_hidden_units(trace), kind=kind)


def normalize_before_the_activation(trace: Trace) -> Prescription:
    """Return the advice to set the size of a signal anew in every layer: over the batch in a convolutional net."""
    if (own := _own_kind(trace)) is not None:
        return prescription("normalize_own_layers", kind=own)
    kind = _convolution(trace)
    normalization, first = ("LayerNormalization", "units") if kind is None else ("BatchNormalization", "filters")
    arguments = first if kind is None else f"{first}, 3"
    values = {"normalization": normalization, "first": first, "arguments": arguments}
    return prescription("normalize_before_the_activation", kind=kind or "Dense", **values)


def change_activation(trace: Trace, old: str, new: str) -> tuple[Prescription, ...]:
    """Return the advice to use another activation, with the initializer that belongs to it; none for the same one."""
    if old == new:
        return ()
    if (own := _own_kind(trace)) is not None:
        fitting = initializer_for(new)
        values = {"initializer": fitting.name, "line": fitting.line, "kind": own}
        return (prescription("other_activation_of_own", new=new, old=old, **values),)
    fitting, kind, units = initializer_for(new), _convolution(trace), _hidden_units(trace)
    arguments = f"{units}, 3, padding='same'" if kind else str(units)
    values = {"initializer": fitting.name, "line": fitting.line, "arguments": arguments}
    return (prescription("other_activation", new=new, old=old, kind=kind or "Dense", **values),)


def _own_kind(trace: Trace) -> str | None:
    """Return the class of the user's own layers that most weights of a net belong to; None where Keras' layers do."""
    weighted = [layer for layer in trace.description.layers if layer.units or (layer.custom and layer.parameters)]
    own = [layer.kind for layer in weighted if layer.custom]
    return max(set(own), key=own.count) if 2 * len(own) > len(weighted) else None


def _convolution(trace: Trace) -> str | None:
    """Return the class of the convolutions of a net that is made of them, or None for a net of other layers."""
    kinds = trace.description.kinds
    found = [kind for kind in ("Conv2D", "Conv1D", "Conv3D") if kinds.get(kind, 0) >= max(2, kinds.get("Dense", 0))]
    return found[0] if found else None


def _hidden_units(trace: Trace) -> int:
    """Return the most common width of the layers of a net but the last; 64 where it is not known."""
    units = [layer.units for layer in trace.description.layers if layer.units][:-1]
    return max(set(units), key=units.count) if units else 64


# -- the steps -----------------------------------------------------------------------------------------
def clip(trace: Trace, title: str, *, repairs: bool, learning_rate: float | None = None) -> Prescription:
    """Return the advice to clip by global norm, as a remedy or as protection only."""
    optimizer = optimizer_line(trace, learning_rate or recorded_rate(trace) or 1e-3, global_clipnorm="1.0")
    reason = (
        "It bounds the length of every step, so one large gradient cannot ruin the weights."
        if repairs
        else "It keeps single steps from ruining the weights. It does not repair them: with clipping, a net whose "
        "initial weights are too large stays finite but hardly learns."
    )
    return prescription("clip", title=title, reason=reason, compile=compile_lines(optimizer))


def clip_to_repair(trace: Trace, *, learning_rate: float | None = None) -> tuple[Prescription, ...]:
    """Return the advice to clip by the global norm; none where the optimizer clips by a norm already."""
    optimizer = trace.description.optimizer
    if optimizer is not None and any(optimizer.settings.get(name) for name in ("clipnorm", "global_clipnorm")):
        return ()
    return (clip(trace, "Clip the gradient by its global norm", repairs=True, learning_rate=learning_rate),)


def learning_rate_prescriptions(trace: Trace, rate: float | None, factor: float) -> tuple[Prescription, ...]:
    """Return what to do about steps that are `factor` times too long."""
    times = f"{factor:,.0f}"
    if rate is None:
        lower, better = f"model.optimizer.learning_rate = model.optimizer.learning_rate / {factor:.0f}\n", 1e-3
        title = f"Divide the learning rate by {times}"
    else:
        better = rate / factor
        lower = "import keras\n\n" + compile_lines(optimizer_line(trace, better))
        title = f"Lower the learning rate to {better:.2g}, {times} times less"
    return (
        prescription("lower_learning_rate", title=title, lines=lower),
        warm_up(trace, better * WARM_UP_RAISES),
        *clip_to_repair(trace, learning_rate=better),
    )


def set_learning_rate(trace: Trace, factor: float, why: str) -> Prescription:
    """Return the advice to multiply the learning rate."""
    rate = recorded_rate(trace)
    new = (rate or 1e-3) * factor
    verb = "Raise" if factor > 1 else "Lower"
    title = f"{verb} the learning rate" + (f" from {rate:.2g} to {new:.2g}" if rate else f" {factor:g} times")
    return prescription("set_learning_rate", title=title, reason=why, compile=compile_lines(optimizer_line(trace, new)))


def warm_up(trace: Trace, highest: float | None = None) -> Prescription:
    """Return the advice to let the learning rate rise from 0.

    Args:
        trace: The record.
        highest: The rate to rise to; that of the run by default.
    """
    highest = highest or recorded_rate(trace) or 1e-3
    compiled = compile_lines(optimizer_line(trace, "learning_rate"))
    return prescription("warm_up", highest=f"{highest:.2g}", steps=WARM_UP_STEPS, decay=DECAY_STEPS, compile=compiled)


def fresh_optimizer(trace: Trace) -> Prescription:
    """Return the advice to begin with the optimizer's usual settings and an empty memory."""
    rate = recorded_rate(trace) or 1e-3
    optimizer = trace.description.optimizer
    name = optimizer.name if optimizer is not None and optimizer.name.isidentifier() else "Adam"
    line = f"keras.optimizers.{name}(learning_rate={rate:.2g})"
    return prescription("fresh_optimizer", name=name, compile=compile_lines(line))
