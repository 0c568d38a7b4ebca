"""Traces with probes, made by hand: one sound trial, and changes that make it sick in one way each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.data_reading import ArrayReading
from gradrecipes.core.trace.description import FrozenLayer, OutputDescription, Regularization
from gradrecipes.core.trace.drawn_once import DrawnOnce
from gradrecipes.core.trace.probes import AttentionReading, LossEquivalent, LossReading
from gradrecipes.core.trace.trace import Event
from gradrecipes.core.trace.trial_reading import AnswersReading, OutputTrial, PlannedRates, VariationResult
from tests.records import with_records

BATCHES, STEPS, DEPTH = 10, 100, 4
FALLING = 2.4 * np.exp(-np.arange(STEPS) / 40.0)
STANDING = np.full(STEPS, 2.3)
BROKEN = np.r_[2.3, 40.0, 900.0, np.full(STEPS - 3, np.nan)]
CLIMBING = 2.3 * 1.08 ** np.arange(STEPS)
CHANCE = 2.3
LEARNS = {"start": 2.3, "end": 0.4, "fall": 0.83, "broken": None, "over_chance": 0.17}
STANDS = {"start": 2.3, "end": 2.3, "fall": 0.0, "broken": None, "over_chance": 1.0}


def trial(
    loss: np.ndarray = FALLING,
    *,
    depth: int = DEPTH,
    activation: str = "relu",
    update: float = 2e-3,
    varied: dict[str, dict[str, Any]] | None = None,
    layers: Callable[[dict[str, Any], int], dict[str, Any]] | None = None,
    after: Callable[[dict[str, Any], int], dict[str, Any]] | None = None,
    weights: Callable[[dict[str, Any], int], dict[str, Any]] | None = None,
    structure: dict[str, Any] | None = None,
    description: dict[str, Any] | None = None,
    loss_read: dict[str, Any] | None = None,
    norm: Any = 1.0,
    **probes: Any,
) -> Trace:
    """Return the record of a trial: sound, but for what the arguments change.

    `layers`, `after` and `weights` take what a sound layer or weight reads, and its place, and return what to change.
    """
    names = [f"dense_{place}" for place in range(depth)]
    read = [_layer(name, activation if place < depth - 1 else "softmax") for place, name in enumerate(names)]
    weighed = [_weight(name) for name in names]
    before = [one | (layers(one, place) if layers else {}) for place, one in enumerate(read)]
    later = [one | (after(one, place) if after else {}) for place, one in enumerate(before)]
    weighed = [one | (weights(one, place) if weights else {}) for place, one in enumerate(weighed)]
    trace = Trace(names)
    finite = np.isfinite(loss)
    norm = np.where(finite, norm, np.nan)
    trace.extend(
        step=np.arange(len(loss)),
        loss=loss,
        gradient_norm=norm,
        layer_gradient_norm=np.repeat(norm[:, None] / 2.0, depth, axis=1),
    )
    trace.extend_samples(
        step=[0, 1, 2],
        weight_norm=np.full((3, depth), 8.0),
        update_ratio=np.full((3, depth), update),
        output_rms=np.ones((3, depth)),
        output_gradient_norm=np.full((3, depth), 0.1),
    )
    described = _description(names, read) | (description or {})
    probed = {
        "data": {"inputs": [], "targets": [], "samples": 1000, "complete": True},
        "structure": {"plain_depth": depth, "outputs": [], "inputs": [], **(structure or {})},
        "signal": {"before": {"layers": before, "weights": weighed}, "after": {"layers": later}},
        "trial": {
            "steps": len(loss),
            "batches": BATCHES,
            "chance": CHANCE,
            "broken": None if finite.all() else int(np.argmin(finite)),
            "autopsy": None,
            "logs": {},
            "varied": varied or {},
        },
        **({"loss": loss_read} if loss_read else {}),
        **probes,
    }
    return with_records(trace, described, probed)


def _layer(name: str, activation: str) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "Dense",
        "activation": activation,
        "dtype": "float32",
        "input_rms": 1.0,
        "output_rms": 1.0,
        "output_mean": 0.4,
        "output_max": 4.0,
        "nonfinite_share": 0.0,
        "zero_share": 0.5,
        "dead_share": 0.05 if activation == "relu" else None,
        "saturated_share": 0.02 if activation in ("tanh", "sigmoid") else None,
        "output_gradient_norm": 0.1,
        "activation_exponent": 1.0 if activation == "relu" else 0.3,
        "activation_gain": 0.71,
    }


def _weight(name: str) -> dict[str, Any]:
    sizes = {"mean": 0.0, "std": 0.177, "rms": 0.177, "largest": 0.6, "least": 0.125, "most": 0.177}
    place = {"path": f"{name}/kernel", "layer": name, "kind": "Dense", "role": "kernel", "shape": [64, 64]}
    return place | sizes | {"fan_in": 64, "fan_out": 64}


def _description(names: list[str], read: list[dict[str, Any]]) -> dict[str, Any]:
    layers = [
        {"name": name, "kind": "Dense", "activation": one["activation"], "fan_in": 64, "units": 64}
        | {"weight_std": None, "parameters": 4160, "trainable": True}
        for name, one in zip(names, read, strict=True)
    ]
    optimizer = {"name": "Adam", "learning_rate": 1e-3, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}
    return {"optimizer": optimizer, "learning_rate": 1e-3, "loss": "sparse_categorical_crossentropy"} | {
        "precision": "float32",
        "batch_size": 32,
        "layers": layers,
    }


def epochs(training: list[float], validation: list[float]) -> Trace:
    """Return the record of a fit of which only the logs of its epochs are known."""
    trace = Trace(["dense"])
    for epoch, (loss, val_loss) in enumerate(zip(training, validation, strict=True)):
        trace.append(step=epoch, epoch=epoch, loss=loss)
        trace.add_event(Event("epoch", epoch, epoch, 0, "", {"logs": {"loss": loss, "val_loss": val_loss}}))
    return trace


def at(*places: int, **changes: Any) -> Callable[[dict[str, Any], int], dict[str, Any]]:
    """Return a change of the layers, or weights, at these places; of all where none is named."""
    return lambda one, place: changes if not places or place in places else {}


def _shrinking(one: dict[str, Any], place: int) -> dict[str, Any]:
    return {"output_gradient_norm": 0.1 * 0.25 ** (DEPTH * 3 - 1 - place)}


def _growing_back(one: dict[str, Any], place: int) -> dict[str, Any]:
    return {"kind": "BatchNormalization" if place % 2 else "Dense", "output_gradient_norm": 0.1 * 1.2 ** (39 - place)}


def _growing_sums(one: dict[str, Any], place: int) -> dict[str, Any]:
    return {"kind": "Add", "output_rms": 1.4**place}


def _embedding(one: dict[str, Any], place: int) -> dict[str, Any]:
    return {"role": "embedding", "rms": 8.0, "std": 8.0} if place == 0 else {}


def _optimizer(**changes: Any) -> dict[str, Any]:
    return {"optimizer": {"name": "Adam", "learning_rate": 1e-3, "beta_1": 0.9, "beta_2": 0.999} | changes}


def _lstm(one: dict[str, Any], place: int) -> dict[str, Any]:
    return {"kind": "LSTM", "activation": "relu", "activation_exponent": 1.0} if place == 0 else {}


def _falls(*falls: float) -> dict[str, dict[str, Any]]:
    """Return variations whose loss falls by these shares: unchanged, and at 10, 100 and 1,000 times the rate."""
    names = ("as_it_is", "rate_10", "rate_100", "rate_1000")
    return {name: STANDS | {"end": 2.3 * (1 - fall), "fall": fall} for name, fall in zip(names, falls, strict=True)}


def drawing(source: str | None) -> Trace:
    trace = trial()
    drawn = None if source is None else DrawnOnce(source, 0.3, (0.9, 1.1))
    trace.probes = replace(trace.probes, loss=replace(trace.probes.loss or LossReading(), drawn_once=drawn))
    return trace


def planned(trace: Trace, at_highest: dict[str, Any], **changes: Any) -> Trace:
    """Return the trial with a schedule that rises to .3 at step 1,000 of 5,000, and what steps at that rate did."""
    result = VariationResult(**{"start": 0.2, "steps": 350} | at_highest)
    rates = PlannedRates(5000, True, 0.0, 0.03, 0.3, 1000, result, **{"raised_over": 300} | changes)
    trace.probes = replace(trace.probes, trial=replace(trace.probes.trial, rates=rates))
    return trace


SPARSE_LOGITS = LossEquivalent("sparse_categorical_crossentropy", True)
FORGETS = {"end": 2.3, "over_baseline": 1.0}
FAILURE = {"stage": "step", "type": "InvalidArgumentError", "message": "a label of 10 lies outside of [0, 10)"}
TRACES: dict[str, Callable[[], Trace]] = {
    "trial_learns": trial,
    "trial_learns_in_tanh": lambda: trial(activation="tanh"),
    "trial_learns_deep": lambda: trial(depth=40),
    "trial_stands": lambda: trial(STANDING),
    "trial_step_fails": lambda: trial(np.zeros(0), failure=FAILURE),
    "trial_weights_tiny": lambda: trial(STANDING, weights=at(rms=1e-4, std=1e-4), varied={"fitting_weights": LEARNS}),
    "trial_weights_alike_and_huge": lambda: trial(CLIMBING, weights=at(rms=1.0, std=0.0, mean=1.0)),
    "trial_weights_alike": lambda: trial(STANDING, weights=at(rms=0.1, std=0.0, mean=0.1)),
    "trial_sigmoids_shrink": lambda: trial(STANDING, depth=12, activation="sigmoid", layers=_shrinking),
    "trial_weights_huge": lambda: trial(
        BROKEN, weights=at(rms=1.0, std=1.0), varied={"fitting_weights": LEARNS, "rate_0.1": LEARNS}
    ),
    "trial_deep_stands": lambda: trial(STANDING, depth=40),
    "trial_deep_mended_by_rate": lambda: trial(STANDING, depth=40, varied={"rate_10": LEARNS}),
    "trial_deep_and_narrow": lambda: trial(np.linspace(2.3, 1.9, 100), depth=60, weights=at(fan_out=16)),
    "trial_deep_and_wide": lambda: trial(np.linspace(2.3, 1.9, 100), depth=60, weights=at(fan_out=512)),
    "trial_deep_and_narrow_learns": lambda: trial(np.linspace(2.3, 0.2, 100), depth=60, weights=at(fan_out=16)),
    "trial_batch_norm_explodes": lambda: trial(STANDING, depth=40, layers=_growing_back),
    "trial_batch_norm_learns": lambda: trial(depth=40, layers=_growing_back),
    "trial_sums_grow": lambda: trial(BROKEN, depth=20, layers=_growing_sums, structure={"plain_depth": 1}),
    "trial_sums_grow_and_learn": lambda: trial(depth=20, layers=_growing_sums),
    "trial_squares": lambda: trial(BROKEN, layers=at(1, activation="square", activation_exponent=2.0)),
    "trial_squares_learn": lambda: trial(layers=at(1, activation="square", activation_exponent=2.0)),
    "trial_relu_lstm": lambda: trial(BROKEN, layers=_lstm),
    "trial_saturated": lambda: trial(STANDING, activation="tanh", layers=at(1, saturated_share=0.9)),
    "trial_saturated_learns": lambda: trial(activation="tanh", layers=at(1, saturated_share=0.9)),
    "trial_dead": lambda: trial(STANDING, layers=at(1, dead_share=1.0)),
    "trial_dies": lambda: trial(STANDING, update=0.8, after=at(1, dead_share=1.0), varied={"rate_0.1": LEARNS}),
    "trial_answers_dead": lambda: trial(
        STANDING, layers=lambda one, place: {"activation": "relu", "dead_share": 1.0} if place == DEPTH - 1 else {}
    ),
    "trial_dead_learns": lambda: trial(layers=at(1, dead_share=0.95)),
    "trial_rate_too_low": lambda: trial(STANDING, update=1e-6, varied={"rate_10": STANDS, "rate_100": LEARNS}),
    "trial_falls_in_proportion": lambda: trial(STANDING, update=1e-6, varied=_falls(2e-5, 2e-4, 2.3e-3, 2.1e-2)),
    "trial_falls_out_of_proportion": lambda: trial(STANDING, update=1e-6, varied=_falls(2e-5, 2e-4, 2.3e-3, 3e-3)),
    "trial_nothing_helps": lambda: trial(STANDING, update=1e-6, varied={"rate_10": STANDS, "rate_100": STANDS}),
    "trial_rate_too_high": lambda: trial(CLIMBING, update=0.5, varied={"rate_0.1": LEARNS}),
    "trial_breaks_at_the_peak": lambda: planned(trial(), {"broken": 200}, broken_rate=0.2),
    "trial_diverges_at_the_peak": lambda: planned(trial(), {"end": 9.0, "over_baseline": 3.9}),
    "trial_forgets_at_the_peak": lambda: planned(trial(), FORGETS, raised_over=900, in_full=True),
    "trial_breaks_after_a_steep_rise": lambda: planned(trial(), {"broken": 60}, raised_over=75),
    "trial_forgets_after_a_steep_rise": lambda: planned(trial(), FORGETS),
    "trial_learns_at_the_peak": lambda: planned(trial(), {"end": 0.1, "over_baseline": 0.04}),
    "trial_learns_only_at_the_peak": lambda: planned(
        trial(STANDING, update=1e-6, varied={"rate_100": LEARNS}), {"end": 0.1, "over_baseline": 0.04}
    ),
    "trial_float16": lambda: trial(
        BROKEN, description={"precision": "mixed_float16"}, after=at(1, dtype="float16", nonfinite_share=0.2)
    ),
    "trial_float16_swallows": lambda: trial(
        STANDING,
        description={"precision": "mixed_float16"},
        layers=at(1, dtype="float16", kind="UnitNormalization", activation=None, zero_share=1.0),
    ),
    "trial_float16_learns": lambda: trial(description={"precision": "mixed_float16"}, layers=at(dtype="float16")),
    "trial_bfloat16_breaks": lambda: trial(BROKEN, description={"precision": "mixed_bfloat16"}),
    "trial_momentum_of_one": lambda: trial(CLIMBING, description=_optimizer(name="SGD", momentum=1.2)),
    "trial_accumulator_of_a_million": lambda: trial(
        STANDING, description=_optimizer(name="Adagrad", initial_accumulator_value=1e6)
    ),
    "trial_accumulates_for_epochs": lambda: trial(STANDING, description=_optimizer(gradient_accumulation_steps=5000)),
    "trial_average_overwrites": lambda: trial(
        STANDING, description=_optimizer(use_ema=True, ema_momentum=0.99, ema_overwrite_frequency=1)
    ),
    "trial_average_overwrites_late": lambda: trial(
        STANDING, description=_optimizer(use_ema=True, ema_momentum=0.99, ema_overwrite_frequency=200)
    ),
    "trial_slots_broken": lambda: trial(structure={"optimizer": {"nonfinite_slots": ["adam/kernel_momentum"]}}),
    "trial_no_epsilon": lambda: trial(BROKEN, description=_optimizer(epsilon=0.0)),
    "trial_bad_memory": lambda: trial(STANDING, varied={"fresh_optimizer": LEARNS}),
    "trial_embedding_huge": lambda: trial(STANDING, weights=_embedding, varied={"fitting_weights": LEARNS}),
    "trial_embedding_large_learns": lambda: trial(
        weights=at(0, role="embedding", rms=0.6, std=0.6), varied={"fitting_weights": {**LEARNS, "end": 0.01}}
    ),
    "trial_one_weight_huge": lambda: trial(
        BROKEN, weights=at(1, rms=30.0, std=30.0), varied={"fitting_weights": LEARNS}
    ),
    "trial_arithmetic_amplifies": lambda: trial(BROKEN, layers=at(2, 3, input_rms=1e6, output_rms=1e6)),
    "trial_embedding_huge_learns": lambda: trial(weights=_embedding),
    "trial_vanishes": lambda: trial(STANDING, layers=lambda one, place: {"output_gradient_norm": 10.0 ** (3 * place)}),
    "trial_learns_with_warm_up": lambda: trial(STANDING, varied={"rate_0.1": STANDS, "warm_up": LEARNS}),
    "trial_attention_grows": lambda: attentive(trial(STANDING, varied={"rate_0.1": STANDS}), after=(500.0, 0.98)),
    "trial_attention_one_hot": lambda: attentive(trial(STANDING), before=(40.0, 0.9)),
    "trial_attention_grows_and_learns": lambda: attentive(trial(), after=(500.0, 0.98)),
    "trial_attention_sharpens_and_learns": lambda: attentive(trial(), after=(15.0, 0.85)),
    "trial_attention_one_hot_learns": lambda: attentive(trial(), before=(40.0, 0.9)),
    "trial_attention_mild": lambda: attentive(trial(STANDING), before=(3.0, 0.3), after=(14.0, 0.7)),
    "trial_jumps": lambda: trial(np.r_[2.3 + 0.05 * np.sin(np.arange(60)), 2.9 + 3.5 * np.sin(1.9 * np.arange(40))]),
    "trial_climbs": lambda: trial(CLIMBING),
    "validation_climbs": lambda: epochs(
        [2.0, 1.5, 1.0, 0.7, 0.5, 0.3, 0.2, 0.1], [2.1, 1.8, 1.7, 1.9, 2.2, 2.6, 3.0, 3.4]
    ),
    "validation_breaks": lambda: epochs([2.0, 1.5, 1.0, 0.7], [2.1, float("nan"), 1.7, float("nan")]),
    "validation_of_another_scale": lambda: validated_on(x=array("x", rms=255.0)),
    "validation_of_another_mean": lambda: validated_on(x=array("x", rms=6.1, mean=6.0)),
    "validation_of_other_classes": lambda: validated_on(y=labels(unique=4, values=[8.0, 9.0, 10.0, 11.0])),
    "validation_alike": lambda: validated_on(x=array("x", rms=1.4, mean=0.5), y=labels(unique=2, values=[1.0, 3.0])),
    "validation_falls": lambda: epochs(
        [2.0, 1.5, 1.0, 0.7, 0.5, 0.3, 0.2, 0.1], [2.1, 1.8, 1.7, 1.6, 1.6, 1.5, 1.5, 1.5]
    ),
}


def attentive(
    trace: Trace, *, before: tuple[float, float] = (2.0, 0.2), after: tuple[float, float] | None = None
) -> Trace:
    """Add an attention with this (spread, share of the largest weight) before the trial and after it."""

    def read(numbers: tuple[float, float]) -> tuple[AttentionReading, ...]:
        spread, top = numbers
        return (AttentionReading("net/attention", 24, spread, spread, top),)

    signal, later = trace.probes.signal, trace.probes.signal_after
    trace.probes = replace(
        trace.probes,
        signal=replace(signal, attention=read(before)),
        signal_after=replace(later, attention=read(after or before)),
    )
    return trace


# -- what rests on the data, the outputs and the loss -----------------------------------------------------
def array(name: str, *, rms: float = 1.0, **changes: Any) -> dict[str, Any]:
    """Return what the data probe says of a sound array of 8 columns, but for the changes."""
    columns = {"count": 8, "constant": 0, "empty": [], "std_min": rms, "std_max": rms, "mean_abs_max": 0.0}
    columns |= {"rms_median": rms, "rms_max": rms, "nonfinite": [], "largest": []}
    sound = {"name": name, "shape": [8], "samples": 1000, "dtype": "float32", "numeric": True, "unreadable": None}
    sound |= {
        "integer_valued": False,
        "feeds_embedding": False,
        "finite": 8000,
        "nonfinite": 0,
        "nonfinite_samples": [],
    }
    sound |= {"nonfinite_share": 0.0, "rms": rms, "mean": 0.0, "std": rms, "min": -3.0 * rms, "max": 3.0 * rms}
    sound |= {"median_abs": 0.7 * rms, "columns": columns, "outliers": [], "outlying_samples": 0, "rms_sound": rms}
    return sound | changes


def labels(**changes: Any) -> dict[str, Any]:
    """Return what the data probe says of class numbers from 0 to 9, but for the changes."""
    found = array("y", rms=5.3, shape=[], integer_valued=True, dtype="int64", min=0.0, max=9.0, mean=4.5, std=2.9)
    found |= {"unique": 10, "values": [float(value) for value in range(10)], "integer_share": 1.0, "one_hot": False}
    found |= {"sums_to_one": None, "row_sum_max": None, "share_below_0": 0.0, "share_below_minus_1": 0.0}
    return found | {"share_above_1": 0.8, "share_zero": 0.1} | changes


def with_data(loss: np.ndarray = FALLING, *, x: Any = None, y: Any = None, output: Any = None, **how: Any) -> Trace:
    """Return a trial on known data, with ten units under a softmax unless `output` says otherwise."""
    last = {"name": "out", "units": 10, "shape": [10], "activation": "softmax", "activations": ["softmax"]}
    last |= {"certain": True, "target": 0, "loss": "sparse_categorical_crossentropy", "custom": False}
    last |= {"loss_class": "SparseCategoricalCrossentropy", "from_logits": False, "config": {"from_logits": False}}
    last |= output or {}
    data = {"inputs": [x or array("x")], "targets": [y or labels()], "samples": 1000, "complete": True}
    measured = {"shape": last["shape"], "rms": 0.1, "min": 0.02, "max": 0.4, "mean": 0.1, "std": 0.05}
    measured |= {"nonfinite_share": 0.0, "sums_to_one": 1.0, "target_shape": [], "logits_seen": None}
    points = how.pop("points", [])
    structure = {"outputs": [last], "inputs": [{"name": "x", "normalized": None, "first_kind": "Dense"}]}
    loss_read = {"outputs": [measured | {"pairs_samples": None}], "points": points, "error": None}
    return trial(loss, data=data, structure=structure, loss_read=loss_read, **how)


def validated_on(**changes: Any) -> Trace:
    """Return a trial that learns, whose validation data are the training data but for the changes."""
    trace = with_data()
    trace.probes = replace(trace.probes, validation=with_data(**changes).probes.data)
    return trace


def broken_at(kind: str, name: str, **changes: Any) -> dict[str, Any]:
    """Return the autopsy of a step whose first offender is this."""
    offender = {"kind": kind, "name": name, "found": "nan", "sentence": "It is not a number.", "layer": None}
    offender |= {"samples": [3], "entries": [[3, 1]], "dtype": "float32"} | changes
    return {"offenders": [offender], "layers": [], "batch_size": 32, "loss": "nan", "notes": [], "complete": True}


def _outlier() -> dict[str, Any]:
    far = {"sample": 17, "column": 2, "value": 1e9, "typical": 3.0, "factor": 3e8}
    return array("x", outliers=[far], outlying_samples=1, rms=1e6, max=1e9)


def _recurrent(growth: float) -> list[dict[str, Any]]:
    found = {"layer": "dense_0", "kind": "SimpleRNN", "activation": "relu", "recurrent_activation": None, "units": 64}
    found |= {"steps": 100, "window": 64, "spectral_radius": growth, "growth_per_step": growth, "note": None}
    found |= {"growth_fastest_sample": growth, "log10_growth": 100.0 * float(np.log10(growth)), "growth": None}
    return [found | {"state_growth_per_step": growth, "state_rms": 1.0, "state_max": 4.0, "nonfinite_step": None}]


_NAN = {"nonfinite": 3, "nonfinite_samples": [3, 4, 5], "nonfinite_share": 0.003}
_AT_AN_END = {"output": 0, "at": "0", "activation": "sigmoid", "value": "inf", "gradient": "nan", "samples": [0, 1]}
_BY_HAND = {"loss": "my_loss", "loss_class": None, "custom": True, "activation": "sigmoid", "activations": ["sigmoid"]}
FREED = VariationResult(2.3, 0.4, 0.83, over_baseline=0.17, steps=80)
FROZEN = FrozenLayer("backbone", "Dense", entries=9000, kernel=True, untrained=True)
BOX_HEAVY = (OutputTrial(0, "label", 2.3, 2.3, 2.3), OutputTrial(1, "box", 9e4, 2e3, 4e4))
BOTH_LEARN = (OutputTrial(0, "label", 2.3, 0.4, 2.3), OutputTrial(1, "box", 9e4, 2e3, 4e4))


def frozen(loss: np.ndarray = STANDING, *layers: FrozenLayer, trained: int = 100, freed: Any = FREED) -> Trace:
    """Return a trial of a net with frozen layers; `freed` is what it does with all weights trained."""
    trace = trial(loss)
    trace.description = replace(trace.description, frozen=layers or (FROZEN,), trainable_entries=trained)
    variations = {} if freed is None else {"unfrozen": freed}
    trace.probes = replace(trace.probes, trial=replace(trace.probes.trial, variations=variations))
    return trace


def held_down(loss: np.ndarray = STANDING, **freed: Any) -> Trace:
    """Return a trial of a net with dropout; `freed` is what is otherwise of its steps without."""
    trace = trial(loss)
    dropout = Regularization("drop", "dropout", "dropout of 0.95")
    trace.description = replace(trace.description, regularization=(dropout,))
    variations = {"unregularized": replace(FREED, **freed)}
    trace.probes = replace(trace.probes, trial=replace(trace.probes.trial, variations=variations))
    return trace


def averaged(momentum: float, *, steps: int = 500, planned: bool = True) -> Trace:
    """Return a trial of a net with BatchNormalization, for a training of so many steps."""
    trace = trial(FALLING)
    trace.description = replace(trace.description, slowest_average=momentum)
    rates = PlannedRates(steps, planned, 1e-3, 1e-3, 1e-3, 0)
    trace.probes = replace(trace.probes, trial=replace(trace.probes.trial, rates=rates))
    return trace


def of_terms(outputs: tuple[OutputTrial, ...] = BOX_HEAVY, *, balanced: int | None = 2, **changes: Any) -> Trace:
    """Return a trial of several terms of a loss; so many outputs learn where the terms begin equally large."""
    trace = trial(FALLING * 1e4)
    variations = {} if balanced is None else {"balanced_terms": VariationResult(outputs_learned=balanced, steps=STEPS)}
    reading = replace(trace.probes.trial, constant_baseline_loss=None, outputs=outputs, variations=variations)
    trace.probes = replace(trace.probes, trial=replace(reading, **changes))
    return trace


def of_parts(weight: float, *, falls: float = 0.1) -> Trace:
    """Return a trial of a train step that returns two parts of its loss; the boundary's has this weight."""
    trace, residual = trial(FALLING * 1e4), FALLING * 1e4 * (1.0 + 0.1 * np.sin(np.arange(STEPS)))
    boundary = 1.0 - falls * np.arange(STEPS) / STEPS
    logs = {"loss": residual + weight * boundary, "residual": residual, "boundary": boundary}
    trace.description = replace(trace.description, own_train_step=True)
    reading = replace(trace.probes.trial, logs={name: tuple(part.tolist()) for name, part in logs.items()})
    trace.probes = replace(trace.probes, trial=replace(reading, constant_baseline_loss=None))
    return trace


def of_held_parts(
    weight: float = 1e3, *, small: str = "reconstruction", large: str = "divergence", **reading: Any
) -> Trace:
    """Return a trial of a train step where one part falls to nothing, and the other one stays as it was."""
    trace = trial(FALLING)
    noise = 1.0 + 0.05 * np.sin(np.arange(STEPS))
    parts = {small: 60.0 * noise, large: 10.0 * np.exp(-np.arange(STEPS) / 5.0) + 1e-3}
    logs = {"loss": parts[small] + weight * parts[large], **parts, "accuracy": 0.5 + 0.1 * noise**2}
    trace.description = replace(trace.description, own_train_step=True)
    changes = {"constant_baseline_loss": None, "later": {small: 58.0, large: 1e-3}} | reading
    changed = replace(trace.probes.trial, logs={name: tuple(part.tolist()) for name, part in logs.items()}, **changes)
    trace.probes = replace(trace.probes, trial=changed)
    return trace


def of_solved_equation(by_batch: float = 0.0, **later: float) -> Trace:
    """Return a trial of an equation that is solved without its initial condition, and of terms that batches alone set.

    All terms have the weight 1.
    """
    trace, noise = trial(FALLING), 1.0 + 0.05 * np.sin(np.arange(STEPS))
    parts = {"initial": noise, "residual": 1e3 * np.exp(-np.arange(STEPS) / 5.0) + 0.1}
    parts |= {"forces": by_batch + np.arange(STEPS) % BATCHES} if by_batch else {}
    logs = {"loss": np.sum(list(parts.values()), axis=0), **parts}
    trace.description = replace(trace.description, own_train_step=True)
    read = {name: tuple(part.tolist()) for name, part in logs.items()}
    changed = replace(trace.probes.trial, logs=read, constant_baseline_loss=None, later=later)
    trace.probes = replace(trace.probes, trial=changed)
    return trace


def of_own_blocks(grows: float = 8.0, loss: np.ndarray | None = None) -> Trace:
    """Return a trial of four blocks of a user's own kind, each of which enlarges the signal so many times."""

    def block(layer: dict[str, Any], place: int) -> dict[str, Any]:
        sizes = {"input_rms": grows**place, "output_rms": grows ** (place + 1)}
        return {"kind": "GraphConv", "activation": None} | sizes if place < 4 else {}

    return trial(BROKEN if loss is None else loss, depth=5, layers=block)


def of_several_losses(critic: np.ndarray, norm: Any = 1.0) -> Trace:
    """Return a trial of a train step that returns two losses and no sum."""
    trace = trial(np.full(STEPS, np.nan), norm=1.0)
    trace.steps["gradient_norm"][:] = norm
    logs = {"d_loss": tuple(critic.tolist()), "g_loss": tuple(np.linspace(1.0, 2.0, STEPS).tolist())}
    reading = replace(trace.probes.trial, logs=logs, broken=None, constant_baseline_loss=None)
    trace.probes = replace(trace.probes, trial=reading)
    return trace


def of_own_step(activation: str, acts_like: LossEquivalent | None, low: float = 0.05) -> Trace:
    """Return a trial of a train step of its own, whose loss equals one of Keras'."""
    read = {"outputs": [{"shape": [10], "min": low, "max": 0.3, "sums_to_one": float(activation == "softmax")}]}
    trace = trial(FALLING, loss_read=read)
    output = OutputDescription("classes", 10, (10,), activation, (activation,), certain=True)
    trace.description = replace(trace.description, own_train_step=True, outputs=(output,))
    (seen,) = trace.probes.loss.outputs
    trace.probes = replace(trace.probes, loss=replace(trace.probes.loss, outputs=(replace(seen, acts_like=acts_like),)))
    return trace


def weighted(size: float, loss: np.ndarray = CLIMBING) -> Trace:
    """Return a trial with sample weights of this size."""
    trace = trial(loss, varied={"rate_0.001": LEARNS} if loss is CLIMBING else None)
    given = ArrayReading("sample_weight", samples=1000, dtype="float32", numeric=True, rms=size)
    trace.probes = replace(trace.probes, data=replace(trace.probes.data, sample_weight=(given,)))
    return trace


def without_targets(share: float, rms: float = 500.0) -> Trace:
    """Return a trial of an equation: the inputs drive so many units of the first layer to their ends."""
    trace = trial(FALLING, activation="tanh", layers=at(0, input_rms=rms, saturated_share=share))
    trace.description = replace(trace.description, own_train_step=True)
    x = with_data(x=array("x", rms=rms)).probes.data.inputs
    trace.probes = replace(trace.probes, data=replace(trace.probes.data, inputs=x))
    return trace


def long_run(grows: Callable[[np.ndarray], np.ndarray], *, updates: bool = False) -> Trace:
    """Return a fit of 1,000 steps whose loss falls, and whose weights, or updates, grow by a law of the steps."""
    steps = np.arange(0, 1000, 50)
    trace = Trace(["dense", "out"])
    trace.extend(step=range(1000), loss=2.4 * np.exp(-np.arange(1000) / 300.0), gradient_norm=np.ones(1000))
    law = grows(steps.astype(float))
    size = 0.17 * 64 * (np.ones(len(steps)) if updates else law)  # of 64 x 64 weights
    trace.extend_samples(
        step=steps,
        weight_norm=np.stack([size, np.full(len(steps), 0.17 * 64)], axis=1),
        update_ratio=np.repeat((1e-3 * (law if updates else np.ones(len(steps))))[:, None], 2, axis=1),
    )
    return with_records(trace, _description(["dense", "out"], [_layer("dense", "relu"), _layer("out", "softmax")]), {})


def flat(loss: np.ndarray) -> Trace:
    """Return a trial with a loss of the user's own whose slope is 0 at every prediction."""
    trace = with_data(loss, output=_REGRESSION)
    first = replace(trace.probes.loss.outputs[0], flat=True)
    trace.probes = replace(trace.probes, loss=replace(trace.probes.loss, outputs=(first,)))
    return trace


def far_out(*losses: float) -> Trace:
    """Return a trial whose loss reads so far out along its own slope."""
    trace = with_data(-FALLING[::-1] * 1e4, output=_REGRESSION)
    first = replace(trace.probes.loss.outputs[0], far_losses=losses)
    trace.probes = replace(trace.probes, loss=replace(trace.probes.loss, outputs=(first,)))
    return trace


_REGRESSION = {"activation": "linear", "activations": ["linear"], "loss": "mse", "units": 1, "shape": [1]}
_TARGETS = {"integer_valued": False, "dtype": "float32", "unique": None, "integer_share": 0.0}


def of_equal_answers(held_by: str | None) -> Trace:
    """Return the record of a trial whose answers do not depend on its inputs; of some a term is the reason."""
    trace = trial()
    read = AnswersReading(0.3, 0.3, 0.001, 784, (1,), (0.3, 1e-4), held_by, 0.2 if held_by else None)
    trace.probes = replace(trace.probes, trial=replace(trace.probes.trial, answers=read))
    return trace


TRACES |= {
    "data_sound": with_data,
    "data_sound_stands": lambda: with_data(STANDING),
    "data_sound_breaks": lambda: with_data(BROKEN),
    "data_with_nan": lambda: with_data(BROKEN, x=array("x", **_NAN)),
    "data_with_outlier": lambda: with_data(BROKEN, x=_outlier(), varied={"sound_data": LEARNS}),
    "data_far": lambda: with_data(STANDING, x=array("x", rms=500.0), varied={"scaled_inputs": LEARNS}),
    "data_far_learns": lambda: with_data(x=array("x", rms=500.0)),
    "targets_far": lambda: with_data(
        BROKEN,
        y=labels(rms=2e4, rms_sound=2e4, min=5e3, max=5e4, mean=2e4, std=9e3, **_TARGETS),
        output=_REGRESSION,
        varied={"scaled_targets": LEARNS},
    ),
    "labels_beyond": lambda: with_data(STANDING, y=labels(min=1.0, max=10.0, values=[float(v) for v in range(1, 11)])),
    "loss_by_hand": lambda: with_data(BROKEN, output=_BY_HAND, points=[_AT_AN_END]),
    "frozen_never_trained": frozen,
    "frozen_whole": lambda: frozen(trained=0, freed=None),
    "frozen_and_learns": lambda: frozen(FALLING, replace(FROZEN, untrained=False)),
    "frozen_and_no_better_freed": lambda: frozen(freed=replace(FREED, end=2.3, fall=0.0, over_baseline=1.0)),
    "frozen_scales_only": lambda: frozen(STANDING, replace(FROZEN, kernel=False)),
    "frozen_whole_of_scales": lambda: frozen(STANDING, replace(FROZEN, kernel=False), trained=0, freed=None),
    "held_down_by_dropout": held_down,
    "held_down_by_something_else": lambda: held_down(end=2.2, fall=0.04, over_baseline=0.96),
    "held_down_and_learns": lambda: held_down(FALLING),
    "averages_of_10_000_steps": lambda: averaged(0.9999),
    "averages_that_follow": lambda: averaged(0.9999, steps=10_000),
    "averages_of_usual_momentum": lambda: averaged(0.99, steps=50),
    "averages_of_an_unknown_training": lambda: averaged(0.9999, planned=False),
    "terms_of_a_heavy_box": of_terms,
    "terms_of_a_heavy_box_untried": lambda: of_terms(balanced=None),
    "terms_of_a_heavy_penalty": lambda: of_terms(BOX_HEAVY[:1], balanced=1, penalties=(900.0, 700.0)),
    "terms_that_learn": lambda: of_terms(BOTH_LEARN),
    "terms_that_balance_does_not_help": lambda: of_terms(balanced=1),
    "terms_on_their_way": lambda: of_terms(
        (OutputTrial(0, "label", 2.3, 0.3, 2.0), OutputTrial(1, "mean", 0.05, 0.004, 0.003))
    ),
    "terms_with_a_light_penalty": lambda: of_terms(BOX_HEAVY[:1], balanced=1, penalties=(9.0, 7.0)),
    "parts_of_an_equation": lambda: of_parts(1e-2),
    "own_blocks_multiply": of_own_blocks,
    "own_blocks_double": lambda: of_own_blocks(2.0),
    "own_blocks_multiply_and_learn": lambda: of_own_blocks(loss=FALLING),
    "loss_falls_below_all": lambda: trial(-np.exp(0.15 * np.arange(STEPS)), norm=np.exp(0.1 * np.arange(STEPS))),
    "equation_far_out": lambda: without_targets(0.95),
    "equation_far_out_within_its_ends": lambda: without_targets(0.4),
    "equation_near": lambda: without_targets(0.95, rms=2.0),
    "long_run_doubles_every_200_steps": lambda: long_run(lambda step: 2.0 ** (step / 200)),
    "long_run_of_growing_steps": lambda: long_run(lambda step: 2.0 ** (step / 100), updates=True),
    "long_run_becomes_certain": lambda: long_run(lambda step: 1 + 3 * np.log1p(step)),
    "long_run_under_adam": lambda: long_run(lambda step: 1 + step / 10),
    "long_run_warms_up": lambda: long_run(lambda step: 1 + (step / 50) ** 2),
    "long_run_warms_up_its_steps": lambda: long_run(lambda step: 1e-3 + step, updates=True),
    "long_run_escapes_and_settles": lambda: long_run(lambda step: 1 + 30 / (1 + np.exp(-(step - 600) / 60))),
    "long_run_of_small_weights": lambda: long_run(lambda step: 0.01 * 2.0 ** (step / 200)),
    "weights_of_samples_huge": lambda: weighted(1e8),
    "weights_of_samples_huge_learns": lambda: weighted(1e8, FALLING),
    "weights_of_samples_balanced": lambda: weighted(12.0),
    "critic_without_end": lambda: of_several_losses(
        -np.exp(0.08 * np.arange(STEPS)), norm=np.exp(0.05 * np.arange(STEPS))
    ),
    "critic_with_an_end": lambda: of_several_losses(np.linspace(1.0, -3.0, STEPS)),
    "own_step_logits_of_softmax": lambda: of_own_step("softmax", SPARSE_LOGITS),
    "own_step_logits_of_linear": lambda: of_own_step("linear", SPARSE_LOGITS, -0.2),
    "own_step_of_its_own_loss": lambda: of_own_step("softmax", None),
    "terms_at_a_rate_of_the_large_one": lambda: of_terms(balanced=0),
    "log_likelihood_falls": lambda: trial(3.0 - 0.1 * np.arange(STEPS)),
    "part_held_by_another": of_held_parts,
    "part_that_is_learned_later": lambda: of_held_parts(later={"reconstruction": 20.0, "divergence": 1e-3}),
    "part_of_usual_weight": lambda: of_held_parts(1.0),
    "term_held_by_another": lambda: of_held_parts(small="term 1 of the sum", large="term 2 of the sum"),
    "term_that_is_a_small_share": lambda: of_held_parts(
        small="term 1 of the sum",
        large="term 2 of the sum",
        later={"term 1 of the sum": 58.0, "term 2 of the sum": 1.0},
    ),
    "part_that_depends_on_weights_alone": lambda: of_held_parts(small="size", weight_penalties=("size",)),
    "part_that_regularizes": lambda: of_held_parts(small="kl_loss"),
    "term_that_answers_pay_for": lambda: of_equal_answers("'kl_loss'"),
    "term_that_answers_do_not_pay_for": lambda: of_equal_answers(None),
    "part_that_is_left_of_all": lambda: of_solved_equation(initial=0.99, residual=0.05),
    "part_of_which_the_end_is_not_seen": of_solved_equation,
    "part_beside_one_that_still_falls": lambda: of_solved_equation(initial=0.99, residual=5.0),
    "parts_of_like_size": lambda: of_parts(1e3),
    "parts_that_fall": lambda: of_parts(1e-2, falls=0.9),
    "loss_of_signs": lambda: flat(STANDING),
    "loss_of_signs_that_falls": lambda: flat(FALLING),
    "equation_of_relus": lambda: of_solved_equation(by_batch=7.0),
    "loss_without_end": lambda: far_out(0.1, -1e2, -1e4, -1e6),
    "loss_with_an_end": lambda: far_out(3.0, 1e4, 1e8, 1e12),
    "loss_as_a_logarithm": lambda: far_out(0.1, -4.6, -9.2, -13.8),
    "loss_within_bounds": lambda: far_out(-0.1, -0.99, -1.0, -1.0),
    "noise_drawn_once": lambda: drawing("`np.random`"),
    "noise_drawn_anew": lambda: drawing(None),
    "recurrence_explodes": lambda: trial(BROKEN, recurrent=_recurrent(1.6), layers=at(0, kind="SimpleRNN")),
    "recurrence_vanishes": lambda: trial(STANDING, recurrent=_recurrent(0.4), layers=at(0, kind="SimpleRNN")),
    "recurrence_decays_and_learns": lambda: trial(recurrent=_recurrent(0.4), layers=at(0, kind="SimpleRNN")),
    "recurrence_sound": lambda: trial(recurrent=_recurrent(0.99), layers=at(0, kind="SimpleRNN")),
    "batch_norm_of_two_vectors": lambda: trial(
        np.linspace(2.4, 1.8, 100),
        layers=at(1, kind="BatchNormalization"),
        structure={"normalizations": {"BatchNormalization": 1}, "vector_batch_normalizations": 1},
        description={"batch_size": 2},
    ),
    "batch_norm_of_two": lambda: trial(
        STANDING,
        layers=at(1, kind="BatchNormalization"),
        structure={"normalizations": {"BatchNormalization": 1}},
        description={"batch_size": 2},
        varied={"larger_batch": LEARNS},
    ),
}
SOUND = (
    *("trial_learns", "trial_learns_in_tanh", "trial_learns_deep", "trial_batch_norm_learns", "trial_squares_learn"),
    *("trial_sums_grow_and_learn", "trial_saturated_learns", "trial_dead_learns", "trial_float16_learns"),
    *("trial_embedding_huge_learns", "validation_falls", "validation_alike", "data_sound", "data_far_learns"),
    "recurrence_sound",
    "recurrence_decays_and_learns",
)
FIRES: dict[str, tuple[str, ...]] = {
    "failing_step": ("trial_step_fails",),
    "vanishing_initialization": ("trial_weights_tiny", "trial_weights_alike", "trial_sigmoids_shrink"),
    "exploding_initialization": ("trial_weights_huge", "trial_weights_alike_and_huge", "trial_one_weight_huge"),
    "plain_depth": ("trial_deep_stands", "trial_deep_and_narrow"),
    "exploding_batch_normalization": ("trial_batch_norm_explodes",),
    "missing_normalization": ("trial_sums_grow", "own_blocks_multiply"),
    "unbounded_activation": ("trial_squares", "trial_relu_lstm", "trial_arithmetic_amplifies"),
    "saturated_units": ("trial_saturated",),
    "dead_units": ("trial_dead", "trial_dies", "trial_answers_dead"),
    "learning_rate_too_low": ("trial_rate_too_low", "trial_falls_in_proportion"),
    "learning_rate_too_high": (
        *("trial_rate_too_high", "trial_dies", "trial_breaks_at_the_peak", "trial_diverges_at_the_peak"),
        "trial_forgets_at_the_peak",
    ),
    "float16_overflow": ("trial_float16", "trial_float16_swallows"),
    "optimizer_state": (
        *("trial_momentum_of_one", "trial_no_epsilon", "trial_bad_memory", "trial_slots_broken"),
        *("trial_accumulator_of_a_million", "trial_accumulates_for_epochs", "trial_average_overwrites"),
    ),
    "embedding_spike": ("trial_embedding_huge",),
    "vanishing_gradient": ("trial_vanishes",),
    "runaway_weights": ("long_run_doubles_every_200_steps", "long_run_of_growing_steps"),
    "stalled_loss": ("trial_stands", "trial_deep_stands"),
    "diverging_loss": ("trial_climbs",),
    "oscillating_loss": ("trial_jumps",),
    "missing_warm_up": ("trial_learns_with_warm_up",),
    "frozen_weights": ("frozen_never_trained", "frozen_whole", "frozen_whole_of_scales"),
    "excessive_regularization": ("held_down_by_dropout",),
    "stale_moving_averages": ("averages_of_10_000_steps",),
    "unbalanced_loss_terms": (
        *("terms_of_a_heavy_box", "terms_of_a_heavy_box_untried", "terms_of_a_heavy_penalty", "parts_of_an_equation"),
        *(
            "part_held_by_another",
            "term_held_by_another",
            "terms_at_a_rate_of_the_large_one",
            "part_that_is_left_of_all",
            "term_that_answers_pay_for",
        ),
    ),
    "loss_without_gradient": ("loss_of_signs", "equation_of_relus"),
    "unbounded_loss": ("loss_without_end", "loss_falls_below_all", "critic_without_end"),
    "attention_logit_growth": (
        *("trial_attention_grows", "trial_attention_one_hot", "trial_attention_grows_and_learns"),
    ),
    "validation_degrading": ("validation_climbs",),
    "broken_validation": (
        "validation_breaks",
        "validation_of_another_scale",
        "validation_of_another_mean",
        "validation_of_other_classes",
    ),
    "nonfinite_data": ("data_with_nan",),
    "corrupt_batch": ("data_with_outlier",),
    "unscaled_inputs": ("data_far", "equation_far_out"),
    "unscaled_targets": ("targets_far",),
    "unscaled_loss_weights": ("weights_of_samples_huge",),
    "frozen_random_numbers": ("noise_drawn_once",),
    "loss_output_mismatch": ("labels_beyond", "own_step_logits_of_softmax"),
    "unsafe_loss": ("loss_by_hand",),
    "recurrent_gain": ("recurrence_explodes", "recurrence_vanishes"),
    "batch_too_small": ("batch_norm_of_two", "batch_norm_of_two_vectors"),
}
SILENT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(FIRES, (*SOUND, "data_sound_stands", "data_sound_breaks")),
    "stalled_loss": (*SOUND, "data_sound_breaks"),
    "frozen_random_numbers": (*SOUND, "data_sound_stands", "noise_drawn_anew"),
    "frozen_weights": (
        *(*SOUND, "data_sound_stands", "frozen_and_learns", "frozen_and_no_better_freed", "frozen_scales_only"),
    ),
    "stale_moving_averages": (
        *(*SOUND, "averages_that_follow", "averages_of_usual_momentum", "averages_of_an_unknown_training"),
    ),
    "excessive_regularization": (
        *(*SOUND, "data_sound_stands", "held_down_by_something_else", "held_down_and_learns"),
    ),
    "unscaled_inputs": (*SOUND, "data_sound_stands", "equation_far_out_within_its_ends", "equation_near"),
    "runaway_weights": (
        *(*SOUND, "data_sound_stands", "data_sound_breaks", "long_run_becomes_certain", "long_run_under_adam"),
        *("long_run_warms_up", "long_run_warms_up_its_steps", "long_run_escapes_and_settles"),
        "long_run_of_small_weights",
    ),
    "unscaled_loss_weights": (*SOUND, "weights_of_samples_huge_learns", "weights_of_samples_balanced"),
    "unbalanced_loss_terms": (
        *(*SOUND, "data_sound_stands", "terms_that_learn", "terms_that_balance_does_not_help", "terms_on_their_way"),
        *("terms_with_a_light_penalty", "parts_of_like_size", "parts_that_fall", "part_beside_one_that_still_falls"),
        *("part_of_which_the_end_is_not_seen", "term_that_is_a_small_share"),
        *("part_that_is_learned_later", "part_of_usual_weight", "part_that_depends_on_weights_alone"),
        *("part_that_regularizes", "term_that_answers_do_not_pay_for"),
    ),
    "loss_without_gradient": (
        *(*SOUND, "data_sound_stands", "loss_with_an_end", "part_that_is_left_of_all", "loss_of_signs_that_falls"),
        *("parts_of_an_equation", "part_that_regularizes"),
    ),
    "unbounded_loss": (
        *(*SOUND, "data_sound_stands", "loss_with_an_end", "loss_as_a_logarithm", "loss_within_bounds"),
        *("log_likelihood_falls", "critic_with_an_end"),
    ),
    "missing_normalization": (*SOUND, "data_sound_stands", "own_blocks_double", "own_blocks_multiply_and_learn"),
    "learning_rate_too_high": (
        *(*SOUND, "data_sound_stands", "trial_dead", "trial_deep_stands", "trial_learns_at_the_peak"),
        *("trial_breaks_after_a_steep_rise", "trial_forgets_after_a_steep_rise"),
    ),
    "vanishing_initialization": (
        *(*SOUND, "trial_stands", "trial_deep_stands", "trial_rate_too_high"),
        "trial_weights_alike_and_huge",
    ),
    "plain_depth": (
        *(*SOUND, "trial_stands", "trial_deep_mended_by_rate", "trial_batch_norm_explodes"),
        *("trial_deep_and_wide", "trial_deep_and_narrow_learns"),
    ),
    "learning_rate_too_low": (
        *SOUND,
        "trial_falls_out_of_proportion",
        "trial_nothing_helps",
        "trial_stands",
        "trial_rate_too_high",
        "trial_learns_only_at_the_peak",
    ),
    "float16_overflow": (*SOUND, "trial_bfloat16_breaks", "trial_weights_huge"),
    "optimizer_state": (
        *(*SOUND, "trial_stands", "trial_deep_stands", "trial_rate_too_high"),
        "trial_average_overwrites_late",
    ),
    "dead_units": (*SOUND, "trial_stands", "trial_weights_huge"),
    "saturated_units": (*SOUND, "trial_stands", "trial_dead"),
    "unbounded_activation": (*SOUND, "trial_weights_huge", "trial_rate_too_high"),
    "embedding_spike": (*SOUND, "trial_stands", "trial_weights_huge", "trial_embedding_large_learns"),
    "loss_output_mismatch": (*SOUND, "data_sound_stands", "own_step_logits_of_linear", "own_step_of_its_own_loss"),
    "attention_logit_growth": (
        *(*SOUND, "trial_stands", "trial_attention_mild", "trial_attention_sharpens_and_learns"),
        "trial_attention_one_hot_learns",
    ),
}
