"""The changes that a rescue may try, each one edit of a setup, and which of them a diagnosis suggests."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from gradrecipes.compat.keras_private import compile_arguments, sublayers
from gradrecipes.core.findings import Kind
from gradrecipes.rescue.edits import OWN, Scaling
from gradrecipes.rescue.flaws import LEFT_OUT, MEDIAN, Flaws
from gradrecipes.rescue.inner import HALF_PRECISION, TO_TANH
from gradrecipes.rescue.original import Original, Setup, optimizer_config
from gradrecipes.rescue.rebuild import has_optimizer_state
from gradrecipes.rescue.task import BINARY, NUMBERS, ONE_HOT, OWN_LOSS, SEVERAL, Task, fitted
from gradrecipes.training.description.model_graph import activation_of

ADAM_RATE = 1e-3  # Keras' default
FAST_ADAM_RATE = 1e-2  # for nets of a few layers and trainings of a few hundred steps
CLIP_NORM = "1.0"  # Pascanu et al. 2013, arXiv 1211.5063: of the order of the average norm
RATE_FACTORS = (0.1, 0.01, 0.001, 10.0, 100.0, 1000.0)
WARM_UP_SHARE = 0.1  # of all steps
LARGER_BATCH = 8  # times
DEFAULT_RATES = {"SGD": 0.01, "Adam": 1e-3, "AdamW": 1e-3, "RMSprop": 1e-3, "Adagrad": 1e-2, "Nadam": 1e-3}
CONSTANT: dict[str, Any] = {"schedule": None, "schedule_settings": {}}
PLAIN: dict[str, Any] = {**CONSTANT, "settings": {}, "clipping": ()}
OVERLAPS = ("dice", "tversky", "binary_focal_crossentropy")  # Keras' losses that want shares
SHALLOW = 4  # hidden layers up to which normalization and skip connections are no remedy for depth


@dataclass(frozen=True)
class Change:
    """Name one edit of a setup.

    Args:
        name: Short and unique, such as `"rate_0.1"`.
        title: Imperative, for people.
        risk: -1 for a line that is run again, 0 for what leaves the net as it is (rate, clipping, guard, scaling), 1
            for new weights or another loss, 2 for another net.
        apply: Returns the changed setup.
    """

    name: str
    title: str
    risk: int
    apply: Callable[[Setup], Setup]


Changes = tuple[Change, ...]


def setup_after(base: Setup, changes: Changes) -> Setup:
    """Return the setup after all the changes, one after the other."""
    for change in changes:
        base = change.apply(base)
    return base


def cost_of(changes: Changes) -> tuple[int, int]:
    """Return what makes one set of changes costlier than another: how many they are, then how risky."""
    return len(changes), sum(change.risk for change in changes)


def catalogue(
    base: Setup,
    original: Original,
    scaling: Scaling,
    task: Task,
    *,
    steps: int,
    positive: tuple[int, ...] = (),
    in_order: bool = False,
    padded: bool = False,
    class_weights: Mapping[str, float] | None = None,
    flaws: Flaws | None = None,
) -> dict[str, Change]:
    """Return every change that this model, its data and its setup allow, by name, the safest first.

    Args:
        base: The user's setup.
        original: The user's model.
        scaling: Of the data.
        task: What is to be learned.
        steps: Training steps of the user's own training.
        positive: Columns of the output below 0 of which the loss is not finite.
        padded: Whether the sequences that go in are padded with zeros behind.
        in_order: Whether the samples come in an order of their own.
        flaws: What in the data no training can use; None for nothing.
        class_weights: With which each class counts as much as the others, where one is rare.
    """
    allowed = [_with("shuffle", "shuffle the samples of the dataset", 0, order="shuffled")] if in_order else []
    if flaws is not None and flaws.samples:
        allowed.append(_with("left_out", f"leave out samples with {flaws.samples}", 0, samples=LEFT_OUT))
    if flaws is not None and flaws.gaps:
        words = f"replace in the inputs what is {flaws.gaps} by the median of its column"
        allowed.append(_with("filled", words, 0, gaps=MEDIAN))
    if original.flat:
        words = "pass the targets as one column, which the predictions have"
        allowed.append(_with("column_targets", words, 0, target_shape="column"))
    if task.kind == BINARY and base.loss.startswith("binary") and not task.shares:
        words = "code the targets as 0 and 1, which the loss is for"
        allowed.append(_with("zero_one", words, 0, target_values="zero_one"))
    if padded and original.unmasked and (original.recurrent or not original.surgical):
        allowed.append(_with("mask", "mask the zeros that sequences are padded with", 1, masking="zeros"))
    if class_weights:
        words = "weigh the samples so that each class counts as much as the others"
        allowed.append(_with("class_weights", words, 1, class_weights=class_weights))
    allowed += _of_optimizer(base, original, steps)
    allowed += _of_data_and_loss(base, original, scaling, task)
    allowed += _of_layers(base, original, task)
    if positive and original.surgical:
        words = f"column {', '.join(map(str, positive))} of the output through softplus, so that the loss is finite"
        edit = {"head": "softplus"} if base.head == "relu" else {"positive": positive}
        allowed.append(_with("positive_outputs", f"pass {words}", 1, **edit))
    return {change.name: change for change in allowed if not _is_as_it_is(base, change.apply(base))}


def _is_as_it_is(base: Setup, changed: Setup) -> bool:
    """Return whether a change leaves all as it is, such as Adam(0.001) for what is compiled with "adam"."""
    if changed.settings == {} and changed.optimizer == base.optimizer and not unusual_settings(base):
        changed = replace(changed, settings=base.settings)
    return changed == base


def _of_optimizer(base: Setup, original: Original, steps: int) -> Iterator[Change]:
    if has_optimizer_state(original.model):
        words = "compile the model again, so that its optimizer starts without what it remembers"
        yield _with("fresh_optimizer", words, -1, optimizer_state="fresh")
    if base.optimizer != OWN:
        own = base.schedule is not None and not hasattr(keras.optimizers.schedules, base.schedule)
        for factor in () if own else RATE_FACTORS:  # which of its numbers are rates is not known
            words = f"divide the learning rate by {1 / factor:g}" if factor < 1 else f"multiply it by {factor:g}"
            words = words.replace("multiply it", "multiply the learning rate")
            yield _with(f"rate_{factor:g}", words, 0, rate_factor=factor)
        if base.schedule is not None and (rate := schedule_rate(original.model)) is not None:
            words = f"use a constant learning rate of {rate:g} instead of {base.schedule}"
            yield _with("constant_rate", words, 0, learning_rate=rate, **CONSTANT)
        if base.schedule is not None or base.settings.get("weight_decay") or base.clipping or unusual_settings(base):
            rate = base.learning_rate or DEFAULT_RATES.get(base.optimizer, ADAM_RATE)
            yield _with(
                "plain_optimizer",
                f"use {base.optimizer}({rate:g}) with its default settings and a constant rate",
                0,
                **{"learning_rate": rate, **PLAIN},
            )
        for name, adam in (("adam", ADAM_RATE), ("adam_fast", FAST_ADAM_RATE)):
            yield _with(name, f"use Adam({adam:g})", 0, **{"optimizer": "Adam", "learning_rate": adam, **PLAIN})
        yield _with("clip", "clip gradients at a global norm of 1", 0, clipping=("global_clipnorm", CLIP_NORM))
        yield _with("warm_up", "warm the learning rate up", 0, warm_up=max(1, round(WARM_UP_SHARE * steps)))
    yield _with("guard", "skip steps that are not finite or outliers", 0, guard=True)
    if base.batch_size <= 8:
        size = base.batch_size * LARGER_BATCH
        yield _with("larger_batch", f"use batches of {size} samples", 0, batch_size=size)


def _of_data_and_loss(base: Setup, original: Original, scaling: Scaling, task: Task) -> Iterator[Change]:
    scalable = original.wrappable or original.in_call
    known = original.wrappable or task.kind != OWN_LOSS  # a likelihood of scaled inputs is another one
    if scalable and known and any(one is not None for one in scaling.inputs):
        yield _with("inputs", "standardize the inputs within the model", 0, inputs="standardized")
    if scalable and task.kind in (NUMBERS, SEVERAL) and scaling.targets:
        yield _with("targets", "standardize the targets within the model", 0, targets="standardized")
    if original.untrained:
        yield _with("unfreeze", "train the frozen layers that were never trained", 0, trainable="untrained")
    if original.frozen:
        yield _with("unfreeze_all", "train all layers", 1, trainable="all")
    whole = original.surgical or not any(one.dtype in HALF_PRECISION for one in original.model.weights)
    if base.precision not in (OWN, "float32", "float64") and whole:
        yield _with("float32", "compute in float32", 0, precision="float32")
    fit = fitted(task, base) if original.surgical else None
    if fit is not None and not (fit.units != base.units and original.kept):
        words = f"use the loss {fit.loss} on a {fit.head} output"
        fields = {name: getattr(fit, name) for name in ("loss", "from_logits", "head", "units")}
        yield _with("head_and_loss", words, 1, **fields)
    if (bound := bounded_head(task, base)) is not None and original.surgical:
        yield _with("bounded_head", f"use a {bound} output, as the targets lie between 0 and 1", 1, head=bound)
    if (compile_arguments(original.model) or {}).get("loss_weights"):
        yield _with("loss_weights", "leave out the weights of the losses", 1, loss_weights="none")


def _of_layers(base: Setup, original: Original, task: Task) -> Iterator[Change]:
    yield _with("initializers", "draw the weights anew by fitting initializers", 1, initializers="fitting")
    if original.penalized:
        yield _with("no_penalty", "leave out penalties and constraints", 1, regularizers="none")
    if original.adds and task.y is not None:  # a sum beside an error that is a mean
        entries = math.prod(np.shape(keras.tree.flatten(task.y)[0])[1:])
        many, of = (entries, "entries of an answer") if entries > 1 else (base.batch_size, "samples of a batch")
        words = f"multiply what layers add to the loss by {1.0 / many:.2g}, one over the {of}"
        yield _with("added_losses", words, 1, added_losses=1.0 / many)
    if original.drops:
        yield _with("no_dropout", "leave out dropout", 1, dropout="none")
    if original.averaged:
        words = "let the moving averages of BatchNormalization follow faster, with its usual epsilon"
        yield _with("moving_averages", words, 1, moving_averages="fast")
    layers = list(enumerate(sublayers(original.model)))
    bends = {activation_of(one) for place, one in layers if one.name in original.activations or place in original.inner}
    cells = [one for _, one in layers if one.name in original.recurrent or type(one).__name__.endswith("Cell")]
    unbounded = any(activation_of(one) in TO_TANH for one in cells)
    for name in ("relu", "elu"):
        if unbounded or bends - {name}:
            words = f"use {name} in the hidden layers, with initializers that fit"
            yield _with(f"activation_{name}", words, 2, activation=name, initializers="fitting")
    if not original.surgical:
        return
    if original.hidden or original.normalizations:
        in_front = original.residual and not original.normalizations
        where = "in front of each residual branch and behind the last sum" if in_front else "after the hidden layers"
        yield _with("normalization", f"use LayerNormalization {where}", 2, normalization="layer")
    if len(original.hidden) > SHALLOW:
        yield _with(
            "residual",
            "add skip connections and LayerNormalization, with initializers that fit",
            2,
            **{"skips": True, "normalization": "layer", "initializers": "fitting"},
        )


def bounded_head(task: Task, base: Setup) -> str | None:
    """Return the activation that a linear output needs for targets between 0 and 1, where the loss is kept."""
    overlap = base.loss in OVERLAPS or not hasattr(keras.losses, base.loss)
    if base.loss == OWN or not overlap or base.head != "linear" or not getattr(task, "shares", False):
        return None
    return {ONE_HOT: "softmax", BINARY: "sigmoid", NUMBERS: "sigmoid"}.get(task.kind)


def _with(name: str, title: str, risk: int, **fields: Any) -> Change:
    return Change(name, title, risk, lambda setup: replace(setup, **fields))


def schedule_rate(model: Any) -> float | None:
    """Return the rate that a schedule is named for: the target of its warm-up, or what it begins with."""
    optimizer = keras.optimizers.get((compile_arguments(model) or {}).get("optimizer", "sgd"))
    rate = optimizer_config(optimizer).get("learning_rate")
    config = rate.get("config", {}) if isinstance(rate, dict) else {}
    values = config.get("values")
    first = values[0] if isinstance(values, list | tuple) and values else None
    for value in (config.get("warmup_target"), config.get("initial_learning_rate"), first):
        if isinstance(value, int | float) and value > 0:
            return float(value)
    return None


def unusual_settings(setup: Setup) -> dict[str, Any]:
    """Return the settings of an optimizer of Keras' that differ from its defaults, its rate and clipping apart."""
    if not setup.settings:  # an optimizer of the user's own
        return {}
    defaults = getattr(keras.optimizers, setup.optimizer)().get_config()
    return {name: value for name, value in setup.settings.items() if name in defaults and defaults[name] != value}


# Which changes act on which cause, the first ones first.
BY_CAUSE: dict[str, tuple[str, ...]] = {
    "exploding_initialization": ("initializers", "normalization"),
    "vanishing_initialization": ("mask", "initializers", "activation_relu", "residual"),
    "plain_depth": ("residual", "normalization", "initializers"),
    "recurrent_gain": ("mask", "initializers", "activation_elu", "clip"),
    "unbounded_activation": ("activation_elu", "activation_relu", "initializers"),
    "saturated_units": ("activation_relu", "initializers", "inputs"),
    "dead_units": ("initializers", "activation_elu", "rate_0.1", "inputs"),
    "exploding_batch_normalization": ("normalization", "residual"),
    "missing_normalization": ("normalization", "initializers", "residual"),
    "learning_rate_too_high": ("rate_0.1", "rate_0.01", "rate_0.001", "constant_rate", "plain_optimizer"),
    "learning_rate_too_low": ("constant_rate", "rate_10", "rate_100", "rate_1000", "plain_optimizer"),
    "unscaled_inputs": ("filled", "inputs"),
    "unscaled_targets": ("left_out", "targets"),
    "nonfinite_data": ("left_out", "filled", "guard", "inputs"),
    "corrupt_batch": ("left_out", "filled", "shuffle", "guard", "inputs", "clip"),
    "loss_output_mismatch": ("left_out", "column_targets", "zero_one", "bounded_head", "head_and_loss"),
    "unsafe_loss": ("left_out", "bounded_head", "positive_outputs", "head_and_loss", "guard"),
    "unbounded_loss": ("zero_one", "bounded_head", "head_and_loss", "clip"),
    "loss_without_gradient": ("mask", "head_and_loss", "unfreeze", "activation_relu", "activation_elu", "initializers"),
    "failing_step": ("left_out", "head_and_loss"),
    "frozen_weights": ("unfreeze", "unfreeze_all"),
    "stale_moving_averages": ("moving_averages",),
    "excessive_regularization": ("no_penalty", "no_dropout"),
    "missing_warm_up": ("warm_up", "rate_0.1", "normalization"),
    "attention_logit_growth": ("clip", "rate_0.1", "warm_up", "initializers"),
    "unscaled_loss_weights": ("loss_weights", "targets"),
    "unbalanced_loss_terms": ("loss_weights", "added_losses", "no_penalty", "targets"),
    "float16_overflow": ("float32", "guard"),
    "optimizer_state": ("fresh_optimizer", "plain_optimizer", "adam"),
    "embedding_spike": ("initializers", "clip", "rate_0.1"),
    "batch_too_small": ("larger_batch", "rate_0.1"),
}
# What a good engineer tries without a diagnosis: all of it at once, then one after the other.
STANDARD = ("adam", "left_out", "filled", "inputs", "targets", "float32", "shuffle", "column_targets", "zero_one")
STANDARD += ("bounded_head", "positive_outputs", "head_and_loss", "mask", "loss_weights", "initializers", "unfreeze")
STANDARD += ("added_losses", "no_penalty")
GENERAL = ("adam", "adam_fast", "mask", "constant_rate", "plain_optimizer", "inputs", "head_and_loss", "rate_0.1")
GENERAL += ("rate_10", "initializers", "targets", "guard", "activation_relu", "normalization", "clip")


def candidates(findings: Sequence[Any], known: dict[str, Change], *, rate: float | None = None) -> list[Changes]:
    """Return what to try, the most promising first: changes that the causes suggest, alone and together.

    Args:
        findings: Of the diagnosis, the surest first.
        known: What `catalogue` returned.
        rate: The factor of the learning rate with which the trial of the diagnosis learned, or None.
    """
    causes = [finding.code for finding in findings if finding.kind is Kind.CAUSE]
    suggested = suggested_changes(findings, known)
    if rate is not None and (measured := f"rate_{rate:g}") in suggested:
        suggested.remove(measured)
        suggested.insert([name[:5] for name in [*suggested, measured]].index("rate_"), measured)
    first = [next((name for name in BY_CAUSE.get(code, ()) if name in known), "") for code in causes]
    rest = STANDARD[1:]
    found = [tuple(suggested[:1]), STANDARD]  # what can be had: a single change that does as well ends the search
    found += [tuple(first), *((name,) for name in suggested[1:3])]
    found += [("adam_fast", *rest), (*first, "adam")]
    found.append(tuple(name for name in STANDARD if name in known and known[name].risk <= 0))
    found += [(name,) for name in suggested[3:]]
    found.append((*STANDARD, "activation_relu"))
    found.append((*STANDARD, "residual" if "residual" in known else "normalization"))
    found.append(("rate_0.1", "clip", *rest))
    found += [(name,) for name in (*GENERAL, *sorted(known, key=lambda name: known[name].risk))]
    return _distinct(found, known)


def suggested_changes(findings: Sequence[Any], known: Collection[str]) -> list[str]:
    """Return the names of the changes that act on the causes found, those for the surest cause first."""
    causes = [finding.code for finding in findings if finding.kind is Kind.CAUSE]
    return list(dict.fromkeys(name for code in causes for name in BY_CAUSE.get(code, ()) if name in known))


def _distinct(found: list[tuple[str, ...]], known: dict[str, Change]) -> list[Changes]:
    kept: dict[frozenset[str], Changes] = {}
    order = list(known)
    for names in found:
        chosen: list[str] = []
        for name in names:
            clash = [one for one in chosen if kind_of(one) == kind_of(name)]
            if name in known and name not in chosen and not clash:
                chosen.append(name)
        if chosen:
            changes = tuple(known[name] for name in sorted(chosen, key=order.index))
            kept.setdefault(frozenset(chosen), changes)
    return list(kept.values())


def kind_of(name: str) -> str:
    """Return what is the same for changes that exclude each other."""
    if name in ("constant_rate", "plain_optimizer", "adam", "adam_fast") or name.startswith("rate_"):
        return "optimizer"  # a rate in the place of Adam's is one of Adam's rates
    if name in ("normalization", "residual"):
        return "normalization"
    if name in ("head_and_loss", "bounded_head", "positive_outputs"):
        return "head"
    return next((kind for kind in ("activation_", "unfreeze") if name.startswith(kind)), name)
