"""The settings of a training that a rescue may change, as one frozen record; a change is `dataclasses.replace`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras

from gradrecipes.compat.keras_private import compile_arguments
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.description import Description
from gradrecipes.core.trace.record import Record

OWN = "own"  # what the user has, whatever it is
CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")


@dataclass(frozen=True)
class Difference(Record):
    """Name one setting that differs between two setups.

    Args:
        setting: Name of the field of `Setup`.
        before: Its value in the one.
        after: Its value in the other.
    """

    setting: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Setup(Record):
    """Describe how a model is built, compiled and fitted, as far as a rescue may change it.

    Args:
        batch_size: Samples in a batch.
        epochs: Passes over the data.
        optimizer: Class of the optimizer; `"own"` for one that cannot be built again from its config.
        learning_rate: Constant rate; None with a schedule of the user's.
        schedule: Class of the user's schedule, or None.
        schedule_settings: Its arguments.
        rate_factor: What the user's rate or schedule is multiplied by.
        settings: All other settings of the optimizer by Keras' names.
        clipping: `clipnorm`, `clipvalue` or `global_clipnorm` and its value, or None.
        warm_up: Steps over which the rate rises to its value.
        guard: Whether a `GradientGuard` is among the callbacks.
        loss: Name of the loss on the output.
        from_logits: Whether the loss applies the activation itself; None where that is no question.
        head: Activation of the output; `"own"` where it is not known.
        units: Entries of the output's last axis; None where they are not known.
        inputs: `"own"` or `"standardized"`: mean 0 and standard deviation 1 by a Normalization in front.
        targets: `"own"` or `"standardized"`: the layers see standardized targets, predictions keep the user's units.
        initializers: `"own"` or `"fitting"`: drawn anew by initializers that fit the activations.
        activation: `"own"`, or the name of the activation of all hidden layers.
        normalization: `"own"`, or `"layer"`: LayerNormalization after every hidden layer, in place of any other.
        skips: Whether hidden layers whose input and output have one shape add their input to their output.
        precision: Name of the dtype policy.

    Example:
        >>> setup = Setup(batch_size=32, epochs=5, optimizer="SGD", learning_rate=0.1)
        >>> setup.diff(dataclasses.replace(setup, rate_factor=0.1))
        (Difference(setting='rate_factor', before=1.0, after=0.1),)
    """

    batch_size: int
    epochs: int
    optimizer: str = OWN
    learning_rate: float | None = None
    schedule: str | None = None
    schedule_settings: Mapping[str, Any] = field(default_factory=dict)
    rate_factor: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    clipping: tuple[str, ...] = ()
    warm_up: int = 0
    guard: bool = False
    loss: str = OWN
    from_logits: bool | None = None
    head: str = OWN
    units: int | None = None
    inputs: str = OWN
    targets: str = OWN
    initializers: str = OWN
    activation: str = OWN
    normalization: str = OWN
    skips: bool = False
    precision: str = OWN

    def diff(self, other: Setup) -> tuple[Difference, ...]:
        """Return what differs in another setup, setting by setting, in the order of the fields."""
        pairs = [(one.name, getattr(self, one.name), getattr(other, one.name)) for one in dataclasses.fields(self)]
        return tuple(Difference(name, before, after) for name, before, after in pairs if before != after)


def setup_of(model: keras.Model, description: Description | None, *, batch_size: int, epochs: int) -> Setup:
    """Return the setup of a compiled model, as its user has it.

    Args:
        model: A compiled model.
        description: What its trace says of it, or None.
        batch_size: Samples in a batch.
        epochs: Passes over the data.
    """
    compiled = compile_arguments(model)
    output = description.outputs[0] if description is not None and len(description.outputs) == 1 else None
    known = {
        "loss": (output.loss or OWN) if output else OWN,
        "from_logits": output.from_logits if output else None,
        "head": (output.activation or OWN) if output and output.certain else OWN,
        "units": output.units if output else None,
        "precision": model.dtype_policy.name,
    }
    if not compiled or not is_rebuildable(optimizer := keras.optimizers.get(compiled["optimizer"])):
        return Setup(batch_size=batch_size, epochs=epochs, **known)
    config = optimizer_config(optimizer)
    rate = config.pop("learning_rate", None)
    clips = [(name, config.pop(name)) for name in CLIPS if config.get(name) is not None]
    config = {name: value for name, value in config.items() if name not in CLIPS and not isinstance(value, dict | list)}
    return Setup(
        batch_size=batch_size,
        epochs=epochs,
        optimizer=type(unwrapped(optimizer)).__name__,
        learning_rate=float(rate) if isinstance(rate, int | float) else None,
        schedule=rate["class_name"] if isinstance(rate, dict) else None,
        schedule_settings=_plain(rate["config"]) if isinstance(rate, dict) else {},
        settings=config,
        clipping=tuple(map(str, clips[0])) if clips else (),
        **known,
    )


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "name" and value is not None}


def unwrapped(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return the optimizer within a LossScaleOptimizer, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", None) or optimizer


def is_rebuildable(optimizer: Any) -> bool:
    """Return whether an optimizer is one of Keras' that its config describes whole."""
    inner = unwrapped(optimizer)
    return type(inner).__module__.startswith("keras.") and hasattr(keras.optimizers, type(inner).__name__)


def optimizer_config(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    """Return the config of an optimizer, of a wrapped one that of the inner, without its name."""
    config = dict(unwrapped(optimizer).get_config())
    config.pop("name", None)
    return config


def looked_up_inputs(trace: Trace) -> tuple[bool, ...]:
    """Return for each flattened input whether its numbers are only looked up in a table."""
    data = trace.probes.data
    return tuple(bool(one.feeds_embedding) for one in data.inputs) if data is not None else ()
