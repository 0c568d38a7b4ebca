"""The prescriptions that mend the data: leave out, fill in, scale inputs, scale targets."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gradrecipes.core.findings import Prescription


def leave_out_nonfinite(names: Sequence[str], everything: Sequence[str]) -> Prescription:
    """Return the advice to drop the samples that are not finite, from all the arrays."""
    checks = " & ".join(f"np.isfinite({name}).reshape(len({name}), -1).all(axis=1)" for name in names)
    return Prescription(
        title="Leave out the samples that hold NaN or Inf",
        code=(
            "import numpy as np\n\n"
            f"sound = {checks}\n"
            "print(f'{(~sound).sum()} of {len(sound)} samples are left out')\n"
            f"{_kept(everything)}"
        ),
        reason="What is not a number cannot be learnt from, and one such sample breaks the whole net.",
        risk="If values are missing for a reason, the samples left are no fair picture of all; fill in instead.",
        reference="Little and Rubin, Statistical Analysis with Missing Data",
    )


def fill_in(name: str) -> Prescription:
    """Return the advice to put the column's median where a value is missing, and to tell the net so."""
    return Prescription(
        title="Fill the missing values in, and tell the net where they were missing",
        code=(
            "import numpy as np\n\n"
            f"missing = ~np.isfinite({name})\n"
            f"medians = np.nanmedian(np.where(missing, np.nan, {name}), axis=0)\n"
            f"filled = np.where(missing, np.nan_to_num(medians), {name})\n"
            "new_x = np.concatenate([filled, missing], axis=-1).astype('float32')  # twice as many columns\n"
        ),
        reason="The net gets a number everywhere, and may still learn from the fact that one was missing.",
        risk="The input layer doubles. Take the medians from the training data only.",
        reference="Little and Rubin, Statistical Analysis with Missing Data",
    )


def drop_columns(name: str, columns: Sequence[int]) -> Prescription:
    """Return the advice to leave out columns that hold no number at all."""
    return Prescription(
        title="Leave out the columns without a single finite value",
        code=f"import numpy as np\n\nnew_x = np.delete({name}, {list(columns)}, axis=-1)\n",
        reason="There is nothing in them, and they make every sample NaN.",
        risk="None for the training; ask why they came out empty, perhaps the file was read wrongly.",
        reference="",
    )


def leave_out_samples(samples: Sequence[int], name: str, everything: Sequence[str]) -> Prescription:
    """Return the advice to look at single samples of an array and to leave them out of all."""
    shown = [int(sample) for sample in samples]
    return Prescription(
        title="Look at these samples, then correct them or leave them out",
        code=(
            "import numpy as np\n\n"
            f"odd = {shown}\n"
            f"print({name}[odd])\n"
            f"sound = np.setdiff1d(np.arange(len({name})), odd)\n"
            f"{_kept(everything)}"
        ),
        reason="A value far beyond all others is far more often an error than a discovery, and it rules the gradient.",
        risk="If it is true and rare, the net will not know such cases: use a robust loss then, or take logarithms.",
        reference="Huber, Robust Statistics",
    )


def clip_values(name: str) -> Prescription:
    """Return the advice to clip data to the range that nearly all of them keep."""
    return Prescription(
        title="Clip the values to the range that all but a few keep",
        code=(
            "import numpy as np\n\n"
            f"low, high = np.nanpercentile({name}, [0.1, 99.9], axis=0)\n"
            f"clipped = np.clip({name}, low, high)\n"
        ),
        reason="It bounds what a single sample can do to a step, without losing it.",
        risk="True extremes are cut off.",
        reference="Huber, Robust Statistics",
    )


def robust_loss() -> Prescription:
    """Return the advice to use a loss whose gradient does not grow with the error."""
    return Prescription(
        title="Use the Huber loss",
        code="import keras\n\nmodel.compile(optimizer=model.optimizer, loss=keras.losses.Huber(delta=1.0))\n",
        reason="Beyond delta its gradient is constant, so that one absurd target pulls no harder than any other.",
        risk="delta is in the units of the targets: scale them first.",
        reference="Huber 1964, Robust estimation of a location parameter",
    )


def normalize_inputs(name: str, columns: int | None, *, pixels: bool) -> tuple[Prescription, ...]:
    """Return the advice to bring inputs to unit size, inside the model and outside of it."""
    if pixels:
        inside = Prescription(
            title="Rescale the pixels as the first layer of the model",
            code=(
                "import keras\n\n"
                "scaling = keras.layers.Rescaling(1 / 127.5, offset=-1)  # 0..255 to -1..1\n"
                "# model = keras.Sequential([keras.Input(shape), scaling, *your_layers])\n"
            ),
            reason="Initializers and learning rates are made for inputs of unit size; 0..255 makes steps too long.",
            risk="None; whoever uses the model later must not scale a second time.",
            reference="LeCun et al., Efficient BackProp, section 4.3",
        )
    else:
        inside = Prescription(
            title="Put a Normalization layer first, adapted to the training data",
            code=(
                "import keras\n\n"
                "normalization = keras.layers.Normalization()\n"
                f"normalization.adapt({name})\n"
                "# model = keras.Sequential([keras.Input(shape), normalization, *your_layers])\n"
            ),
            reason="Every column then has mean 0 and deviation 1, the size that initializers and rates are made for.",
            risk="Adapt it to the training data only. Columns with long tails: take the logarithm first.",
            reference="LeCun et al., Efficient BackProp, section 4.3",
        )
    outside = Prescription(
        title="Or standardize the arrays once",
        code=(
            f"mean, std = {name}.mean(axis=0), {name}.std(axis=0)\n"
            f"scaled = ({name} - mean) / (std + 1e-7)  # the same mean and std for validation and later use\n"
        ),
        reason="The same, outside of the model.",
        risk="Mean and deviation have to travel with the model.",
        reference="LeCun et al., Efficient BackProp, section 4.3",
    )
    return inside, outside


def scale_targets(name: str, *, positive: bool, units: int = 1) -> tuple[Prescription, ...]:
    """Return the advice to train on targets of unit size, and to give back the user's units.

    Args:
        name: Of the array, such as `"y"`, `"y['box']"` or `"y[1]"`; the structure of the targets is kept.
        positive: Whether all targets are positive and span orders of magnitude.
        units: Entries of the output.
    """
    replaced, part = _replaced(name, f"({name} - mean) / std"), name.replace("y", "predictions", 1)
    standardize = Prescription(
        title="Train on standardized targets, and scale the predictions back",
        code=(
            f"mean, std = {name}.mean(axis=0), {name}.std(axis=0)\n"
            f"model.fit(x, {replaced})\n"
            f"predictions = model.predict(x)\n"
            f"{part} = {part} * std + mean\n"
        ),
        reason="A net answers near 0 at first. Targets of unit size make its first errors, and so its steps, sane.",
        risk="Losses and metrics are then in standard deviations: multiply by std (or its square) to compare.",
        reference="LeCun et al., Efficient BackProp, section 4.3",
    )
    start = Prescription(
        title="Or let the last layer begin at the mean",
        code=(
            "import keras\n\n"
            f"last = keras.layers.Dense({units}, bias_initializer=keras.initializers.Constant(float({name}.mean())))\n"
        ),
        reason="The mean, the larger part of the error, is then right from the first step on.",
        risk="It leaves the spread: where that is far from 1 too, standardize.",
        reference="Karpathy, A recipe for training neural networks",
    )
    logarithm = Prescription(
        title="Or learn the logarithm",
        code=(
            f"import numpy as np\n\nmodel.fit(x, {_replaced(name, f'np.log1p({name})')})\n"
            f"predictions = model.predict(x)\n{part} = np.expm1({part})\n"
        ),
        reason="Prices, counts and incomes spread over orders of magnitude; their logarithms do not.",
        risk="The net then predicts medians rather than means.",
        reference="Box and Cox 1964",
    )
    return (standardize, start, logarithm) if positive else (standardize, start)


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


def _kept(names: Sequence[str]) -> str:
    """Return the lines that keep the sound samples of arrays, parts of structures (`x.pixels`) among them."""
    return "".join(f"{name} = {name}[sound]\n" for name in names)
