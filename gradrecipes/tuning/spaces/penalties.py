"""How strongly to regularize: decoupled weight decay, an L2 penalty, dropout."""

from __future__ import annotations

from typing import Any

import keras

from gradrecipes.tuning.spaces.checks import require_range


def weight_decay(hp: Any, *, lowest: float = 1e-6, highest: float = 1e-1, name: str = "weight_decay") -> float:
    """Choose the decoupled weight decay, for the `weight_decay` of a Keras optimizer.

    Logarithmic, since its effect goes with its order of magnitude: Keras multiplies it by the learning rate, and what
    papers use runs from 1e-5 (small nets) to 0.1 (transformers).

    Args:
        hp: The `hp` of the build.
        lowest: Least decay, positive.
        highest: Largest one.
        name: Of the setting.

    References:
        Loshchilov, Hutter 2019, arXiv 1711.05101.
    """
    require_range(lowest, highest)
    return hp.Float(name, lowest, highest, sampling="log", default=_middle(lowest, highest))


def kernel_penalty(
    hp: Any, *, lowest: float = 1e-6, highest: float = 1e-2, name: str = "l2"
) -> keras.regularizers.Regularizer:
    """Choose an L2 penalty on kernels, for the `kernel_regularizer` of layers.

    Logarithmic. With an adaptive optimizer its gradient is divided by the size of the others, so that it hardly acts
    on weights with large gradients: `weight_decay` is the cleaner way there. It does not bound gradients.

    Args:
        hp: The `hp` of the build.
        lowest: Least strength, positive.
        highest: Largest one.
        name: Of the setting.
    """
    require_range(lowest, highest)
    return keras.regularizers.L2(hp.Float(name, lowest, highest, sampling="log", default=_middle(lowest, highest)))


def dropout(hp: Any, *, highest: float = 0.5, name: str = "dropout") -> float:
    """Choose the rate of dropout layers, from none in steps of a tenth.

    Half is the largest that its authors advise for hidden layers; beyond it the noise of the gradient grows faster
    than what is gained.

    Args:
        hp: The `hp` of the build.
        highest: Largest rate, above 0 and below 1.
        name: Of the setting.

    References:
        Srivastava et al. 2014, JMLR 15, section 7.3.
    """
    if not 0 < highest < 1:
        raise ValueError(f"`highest` is a share of units: above 0 and below 1. Received: highest={highest!r}.")
    return hp.Float(name, 0.0, highest, step=0.1, default=0.0)


def _middle(lowest: float, highest: float) -> float:
    return (lowest * highest) ** 0.5
