"""Write the Keras lines of a prescription with the user's own layers, units, activations and optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from gradrecipes.core.signal_theory import forward_gain
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.description import OptimizerDescription
from gradrecipes.diagnosis.facts.chain import Stage

SHOWN_LAYERS = 6  # distinct lines in a snippet; more would hide the change among repetitions
OPTIMIZERS = {"SGD", "Adam", "AdamW", "Nadam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "Ftrl", "Lion", "Lamb"}
OPTIMIZERS |= {"Adafactor", "Muon"}
KEPT_ARGUMENTS = ("momentum", "nesterov", "weight_decay")  # what the lines repeat of the user's optimizer
_WHAT_CHANGES = "# Change the initializer of these layers; all else stays as you have it."
_KEEP_KERNEL = "\n# Kernel size, strides and padding stay yours: 3 and 'same' only stand for them."


class Initializer(NamedTuple):
    """Name an initializer, the line that makes it, and the standard deviation it gives: formula and numbers."""

    name: str
    line: str
    spread: str
    scale: float
    averages_fans: bool = False

    def deviation(self, stage: Stage) -> float:
        """Return the standard deviation of the weights it draws for a layer."""
        dense = self.averages_fans and stage.kind == "Dense"
        fan = (stage.fan_in + stage.units) / 2 if dense else stage.fan_in  # convolutions: as if the channels stayed
        return math.sqrt(self.scale / fan)


def initializer_for(activation: str) -> Initializer:
    """Return the initializer that keeps the signal's size under an activation."""
    if activation in ("relu", "relu6", "leaky_relu", "gelu", "gelu_approximate", "silu", "swish", "mish", "prelu"):
        return Initializer("HeNormal", "keras.initializers.HeNormal()", "sqrt(2 / fan_in)", 2.0)
    if activation == "selu":
        return Initializer("LecunNormal", "keras.initializers.LecunNormal()", "sqrt(1 / fan_in)", 1.0)
    if activation in ("elu", "celu"):
        scale = forward_gain(activation) ** 2
        arguments = f'scale={scale:.2f}, mode="fan_in", distribution="truncated_normal"'
        line = f"keras.initializers.VarianceScaling({arguments})"
        return Initializer(f"VarianceScaling({scale:.2f})", line, f"sqrt({scale:.2f} / fan_in)", scale)
    spread = "sqrt(2 / (fan_in + fan_out))"
    return Initializer("GlorotNormal", "keras.initializers.GlorotNormal()", spread, 1.0, averages_fans=True)


def layer_lines(stages: Iterable[Stage]) -> str:
    """Return a line for each distinct layer, with the initializer that fits; the layers' names stand behind it."""
    names: dict[str, list[str]] = {}
    for stage in stages:
        names.setdefault(_layer_line(stage), []).append(stage.name)
    all_dense = all(line.startswith("keras.layers.Dense") for line in names)
    lines = ["import keras", "", _WHAT_CHANGES if all_dense else _WHAT_CHANGES + _KEEP_KERNEL]
    lines += [f"{line},  # {_listed(who)}" for line, who in list(names.items())[:SHOWN_LAYERS]]
    if len(names) > SHOWN_LAYERS:
        lines.append(f"# ... and the same kernel_initializer in {len(names) - SHOWN_LAYERS} more kinds of layers")
    return "\n".join(lines) + "\n"


def chain_values(stages: Sequence[Stage]) -> dict[str, Any]:
    """Return what a template needs to build these hidden layers anew: kind, arguments, activation, widths, blocks."""
    hidden = _hidden(stages)
    first = hidden[0]
    initializer = f"kernel_initializer={initializer_for(first.activation).line}"
    return {
        "kind": first.kind,
        "units": first.units,
        "arguments": f"{_kernel_size(first)}use_bias=False, {initializer}",  # the bias moves into the normalization
        "initializer_argument": initializer,
        "keras_activation": _keras_name(first.activation),
        "widths": _widths(hidden),
        "blocks": len(hidden) // 2,
    }


def can_be_residual(stages: Sequence[Stage]) -> bool:
    """Say whether the hidden layers are Dense layers of one width, so that their outputs can be added."""
    hidden = _hidden(stages)
    return len({stage.units for stage in hidden}) == 1 and all(stage.kind == "Dense" for stage in hidden)


def optimizer_line(trace: Trace, learning_rate: float | str, **more: str) -> str:
    """Return the user's optimizer at another rate, as an expression; `more` is added as it stands."""
    optimizer = trace.description.optimizer or OptimizerDescription("Adam")
    name = {known.lower(): known for known in OPTIMIZERS}.get(optimizer.name.lower(), "Adam")
    rate = learning_rate if isinstance(learning_rate, str) else f"{learning_rate:.2g}"
    settings = optimizer.settings
    kept = {key: repr(settings[key]) for key in KEPT_ARGUMENTS if isinstance(settings.get(key), int | float)}
    kept = {key: value for key, value in kept.items() if settings[key]}
    arguments = {"learning_rate": rate, **kept, **more}
    return f"keras.optimizers.{name}({', '.join(f'{key}={value}' for key, value in arguments.items())})"


def compile_lines(optimizer: str) -> str:
    """Return the `model.compile` call with an optimizer and the user's own loss, with all its arguments."""
    return f"model.compile(\n    optimizer={optimizer},\n    loss=model.loss,\n)\n"


def recorded_rate(trace: Trace) -> float | None:
    """Return the learning rate of the run, or None where it is not known."""
    rate = trace.description.learning_rate
    return rate if rate is not None and rate > 0 else None


def _layer_line(stage: Stage) -> str:
    initializer = initializer_for(stage.activation).line
    own = f'activation="{_keras_name(stage.activation)}", ' if stage.inner.name != "linear" else ""
    return f"keras.layers.{stage.kind}({stage.units}, {_kernel_size(stage)}{own}kernel_initializer={initializer})"


def _kernel_size(stage: Stage) -> str:
    return "" if stage.kind == "Dense" else "kernel_size=3, padding='same', "


def _keras_name(activation: str) -> str:
    return {"gelu_approximate": "gelu"}.get(activation, activation)


def _widths(stages: Sequence[Stage]) -> str:
    units: list[Any] = [stage.units for stage in stages]
    return f"[{units[0]}] * {len(units)}" if len(set(units)) == 1 and len(units) > 3 else str(units)


def _hidden(stages: Sequence[Stage]) -> Sequence[Stage]:
    """Return the stages without a linear output layer behind layers that are not linear."""
    head = stages[-1].activation == "linear" != stages[0].activation
    return stages[:-1] if head else stages


def _listed(names: Sequence[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]}, {names[1]} ... {names[-1]}: {len(names)} layers"
