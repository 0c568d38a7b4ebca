"""How small a residual branch must start so that many of them together leave a net trainable."""

from __future__ import annotations

import math


def fixup_gain(blocks: int, layers_per_block: int) -> float:
    r"""Return σ_w = √(fan_in·Var(W)) of all but the last weight layer of a branch: √2·L^(-1/(2m-2)).

    Args:
        blocks: L, residual blocks in the whole net.
        layers_per_block: m, weight layers in a branch, at least 2.

    Raises:
        ValueError: A number out of range.

    Example:
        >>> round(fixup_gain(100, 2), 4)
        0.1414

    References:
        Zhang, Dauphin, Ma 2019, arXiv 1901.09321, section 3.
    """
    for name, value, least in (("blocks", blocks, 1), ("layers_per_block", layers_per_block, 2)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"`{name}` must be a whole number, at least {least}. Received: {name}={value!r}.")
    return math.sqrt(2.0) * blocks ** (-1.0 / (2 * layers_per_block - 2))
