"""What to search over: one function of an `hp` object for each setting, narrowed by what was measured.

Each declares its setting under a name, returns the value of this trial, and says in its docstring why its range is what
it is. They are put together as the build needs them; `optimizer` and `dense_layers` are such combinations.

| settings of the training | settings of the net |
|---|---|
| `learning_rate`, `warm_up`, `batch_size` | `depth`, `width`, `skips` |
| `clipping` | `activation`, `initializer` |
| `weight_decay`, `kernel_penalty`, `dropout` | `normalization` |
| `optimizer` | `dense_layers` |
"""

from gradrecipes.tuning.spaces.layers import (
    activation,
    dense_layers,
    depth,
    initializer,
    normalization,
    skips,
    width,
)
from gradrecipes.tuning.spaces.training import (
    batch_size,
    clipping,
    dropout,
    kernel_penalty,
    learning_rate,
    optimizer,
    warm_up,
    weight_decay,
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
