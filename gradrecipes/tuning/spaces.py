"""What to search over: one function of an `hp` object for each setting, narrowed by what was measured.

Each declares its setting under a name, returns the value of this trial, and says in its docstring why its range is what
it is. They are put together as the build needs them; `optimizer` and `dense_layers` are such combinations.

| settings of the training | settings of the net |
|---|---|
| `learning_rate`, `warm_up`, `batch_size` | `depth`, `width`, `skips` |
| `clipping` | `activation`, `initializer` |
| `weight_decay`, `kernel_penalty`, `dropout` | `normalization` |
| `optimizer` | `dense_layers` |

For two settings of one kind, declare each within `with hp.name_scope("head"):`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras

from gradrecipes.core.analysis.clipping_report import clipping_report
from gradrecipes.core.analysis.noise_scale import MAX_NOISE_RATIO
from gradrecipes.core.arguments import require_choices, require_range, require_whole_range
from gradrecipes.core.trace import Trace
from gradrecipes.gradients import clipping as methods
from gradrecipes.schedules import WarmUp
from gradrecipes.tuning.layer_spaces import (
    activation,
    dense_layers,
    depth,
    initializer,
    normalization,
    skips,
    width,
)

__all__ = [
    "activation",
    "batch_size",
    "clipping",
    "dense_layers",
    "depth",
    "dropout",
    "initializer",
    "kernel_penalty",
    "learning_rate",
    "normalization",
    "optimizer",
    "skips",
    "warm_up",
    "weight_decay",
    "width",
]

ABOUT = 10.0  # times the valley of a range test, either way: a decade on each side, where its three suggestions lie
BELOW_EDGE = 100.0  # of the largest stable rate: two decades, beyond which training only gets slower
BEYOND_EDGE = 2.0  # times it: the curvature gives way a little, Lewkowycz et al. 2020, arXiv 2003.02218
AROUND_BOUND = 4.0  # times the observed bound, either way
NO_BOUND_KNOWN = (0.1, 10.0)  # norms; 1 suits most nets
CLIPPINGS = ("none", "global_norm", "adaptive", "percentile")
WARM_UPS = (0.0, 0.02, 0.1)  # of the training steps
OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop")


def weight_decay(hp: Any, *, lowest: float = 1e-6, highest: float = 1e-1) -> float:
    """Choose the decoupled weight decay, for the `weight_decay` of a Keras optimizer.

    Logarithmic, since its effect goes with its order of magnitude: Keras multiplies it by the learning rate, and what
    papers use runs from 1e-5 (small nets) to 0.1 (transformers).

    Args:
        hp: The `hp` of the build.
        lowest: Least decay, positive.
        highest: Largest one.

    References:
        Loshchilov, Hutter 2019, arXiv 1711.05101.
    """
    require_range(lowest, highest)
    return hp.Float("weight_decay", lowest, highest, sampling="log", default=_middle(lowest, highest))


def kernel_penalty(hp: Any, *, lowest: float = 1e-6, highest: float = 1e-2) -> keras.regularizers.Regularizer:
    """Choose an L2 penalty on kernels, for the `kernel_regularizer` of layers.

    Logarithmic. With an adaptive optimizer its gradient is divided by the size of the others, so that it hardly acts
    on weights with large gradients: `weight_decay` is the cleaner way there. It does not bound gradients.

    Args:
        hp: The `hp` of the build.
        lowest: Least strength, positive.
        highest: Largest one.
    """
    require_range(lowest, highest)
    return keras.regularizers.L2(hp.Float("l2", lowest, highest, sampling="log", default=_middle(lowest, highest)))


def dropout(hp: Any, *, highest: float = 0.5) -> float:
    """Choose the rate of dropout layers, from none in steps of a tenth.

    Half is the largest that its authors advise for hidden layers; beyond it the noise of the gradient grows faster
    than what is gained.

    Args:
        hp: The `hp` of the build.
        highest: Largest rate, above 0 and below 1.

    References:
        Srivastava et al. 2014, JMLR 15, section 7.3.
    """
    if not 0 < highest < 1:
        raise ValueError(f"`highest` is a share of units: above 0 and below 1. Received: highest={highest!r}.")
    return hp.Float("dropout", 0.0, highest, step=0.1, default=0.0)


def _middle(lowest: float, highest: float) -> float:
    return (lowest * highest) ** 0.5


def learning_rate(
    hp: Any,
    *,
    measured: Any = None,
    sharpness: Any = None,
    lowest: float = 1e-5,
    highest: float = 1.0,
) -> float:
    """Choose the learning rate, on a logarithmic scale, within what measurements leave of the range.

    Without a measurement five decades: what Adam and SGD need for most nets. Measurements make them two, so that a
    search of twenty trials is not spent on finding the order of magnitude.

    Args:
        hp: The `hp` of the build.
        measured: What `gr.probes.learning_rate_range` returned. Leaves a decade below its valley, and above it a
            decade or as far as the rate at which the test diverged.
        sharpness: What `gr.probes.sharpness` returned, or the largest stable rate as a number. Leaves two decades
            below that rate, and twice it above: the first steps may flatten the loss. Of an adaptive optimizer that
            has made no step yet it is a guess, and narrows nothing.
        lowest: Least rate.
        highest: Largest one.

    Raises:
        ValueError: Bounds out of order, or measurements that leave nothing of the range.

    Example:
        >>> from keras_tuner import HyperParameters
        >>> learning_rate(HyperParameters(), lowest=1e-4, highest=1e-2)
        0.001

    References:
        Smith 2015, arXiv 1506.01186; Cohen et al. 2021, arXiv 2103.00065.
    """
    require_range(lowest, highest)
    low, high = lowest, highest
    valley = getattr(measured, "valley", None)
    if valley is not None:
        low = max(low, valley / ABOUT)
        high = min(high, valley * ABOUT, measured.diverged_at or math.inf)
    edge = getattr(sharpness, "highest_learning_rate", sharpness)
    if getattr(sharpness, "preconditioner", None) == "gradients":
        edge = None
    if edge is not None:
        low, high = max(low, edge / BELOW_EDGE), min(high, edge * BEYOND_EDGE)
    if not low < high:
        raise ValueError(
            f"The measurements leave nothing of the range {lowest:g} to {highest:g}: they speak for {low:g} to "
            f"{high:g}. Widen `lowest` and `highest`, or leave one of the measurements out."
        )
    return hp.Float("learning_rate", low, high, sampling="log", default=float(f"{math.sqrt(low * high):.2g}"))


def warm_up(hp: Any, rate: Any, *, steps: int) -> Any:
    """Choose for which share of the training the rate rises, and return the rate or a schedule that does so.

    None, a fiftieth, a tenth: the first steps are the ones that explode, since curvature is highest and Adam's moments
    rest on few gradients; after a tenth of the training a warm-up only costs time.

    Args:
        hp: The `hp` of the build.
        rate: The learning rate or schedule that follows.
        steps: Training steps in all.

    References:
        Goyal et al. 2017, arXiv 1706.02677; Ma, Yarats 2019, arXiv 1910.04209.
    """
    require_whole_range(1, steps)
    rising = round(hp.Choice("warm_up", list(WARM_UPS), default=WARM_UPS[1]) * steps)
    return WarmUp(rate, steps=rising) if rising else rate


def batch_size(hp: Any, *, noise_scale: Any = None, lowest: int = 16, highest: int = 256) -> int:
    """Choose the batch size, a power of two times the least, within what the noise scale leaves.

    Far below the noise scale a batch is nearly all noise, far above it most samples repeat what others say: an eighth
    of it to it is where steps and samples are both well spent.

    Args:
        hp: The `hp` of the build, or of `fit`.
        noise_scale: What `gr.probes.noise_scale` returned, or the scale in samples.
        lowest: Least batch.
        highest: Largest one: what the device holds.

    Example:
        >>> from keras_tuner import HyperParameters
        >>> batch_size(HyperParameters(), noise_scale=100.0)
        32

    References:
        McCandlish et al. 2018, arXiv 1812.06162.
    """
    require_whole_range(lowest, highest)
    powers = [lowest << shift for shift in range(64) if lowest << shift <= highest]
    scale = getattr(noise_scale, "noise_scale", noise_scale)
    if scale is not None and math.isfinite(scale):
        fitting = [size for size in powers if scale / MAX_NOISE_RATIO <= size <= scale]
        powers = fitting or [min(powers, key=lambda size: abs(math.log(size / max(scale, 1.0))))]
    default = powers[len(powers) // 2]
    return hp.Choice("batch_size", powers, default=default, ordered=True)


def clipping(hp: Any, *, observed: Any = None, among: Sequence[str] = CLIPPINGS) -> methods.Clipping | None:
    """Choose how gradients are clipped and how tightly, and return the method for a guard or a `gr.RecipeModel`.

    A bound that never acts changes nothing and one that always acts is a smaller learning rate, so that the range is
    about the bound that the norms of a run speak for: a factor of four either way. Adaptive clipping is searched about
    the 0.01 of its paper, the percentile from 10 (AutoClip) to 90 (clip only what stands out).

    Args:
        hp: The `hp` of the build.
        observed: A `gr.Trace` of a run, a `gr.clipping_report`, or a bound. Without one, 0.1 to 10.
        among: Some of `"none"`, `"global_norm"`, `"adaptive"`, `"percentile"`.

    References:
        Pascanu et al. 2013, arXiv 1211.5063; Brock et al. 2021, arXiv 2102.06171; Seetharaman et al. 2020,
        arXiv 2007.14469.
    """
    require_choices("among", among, CLIPPINGS)
    report = clipping_report(observed) if isinstance(observed, Trace) else observed
    bound = getattr(report, "recommended_bound", report)
    low, high = NO_BOUND_KNOWN if bound is None else (bound / AROUND_BOUND, bound * AROUND_BOUND)
    kind = hp.Choice("clipping", list(among))
    parts = {
        "global_norm": (methods.by_global_norm, lambda: hp.Float("clipping_norm", low, high, sampling="log")),
        "adaptive": (methods.adaptive, lambda: hp.Float("clipping_share", 1e-3, 1e-1, sampling="log")),
        "percentile": (methods.by_percentile, lambda: hp.Int("clipping_percentile", 10, 90, step=20)),
    }
    chosen = None
    for one in (part for part in parts if part in among):
        method, bound_of_trial = parts[one]
        # Each bound is declared under its own condition, so that a search does not vary what has no effect.
        with hp.conditional_scope("clipping", [one]):
            value = bound_of_trial()
        if one == kind:
            chosen = method(value)
    return chosen


def optimizer(
    hp: Any,
    *,
    rate: Any = None,
    among: Sequence[str] = ("adam", "sgd"),
    decay: bool = False,
) -> keras.optimizers.Optimizer:
    """Choose the optimizer and return it, with its rate and, if wanted, a weight decay.

    Adam forgives a poor scale of the gradients; SGD with momentum 0.9 shows what the net can do without that, and its
    usable rates end sooner: both are worth a look, more kinds only thin out a small search.

    Args:
        hp: The `hp` of the build.
        rate: Learning rate or schedule; chosen by `learning_rate` if it is left out.
        among: Some of `"adam"`, `"adamw"`, `"sgd"`, `"rmsprop"`.
        decay: Whether the weight decay is searched too.
    """
    require_choices("among", among, OPTIMIZERS)
    rate = learning_rate(hp) if rate is None else rate
    arguments = {"weight_decay": weight_decay(hp)} if decay else {}
    kind = among[0] if len(among) == 1 else hp.Choice("optimizer", list(among))
    if kind == "sgd":
        return keras.optimizers.SGD(rate, momentum=0.9, **arguments)
    kinds = {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW, "rmsprop": keras.optimizers.RMSprop}
    return kinds[kind](rate, **arguments)
