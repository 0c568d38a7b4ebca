"""The changes of a rescue as Keras lines, each under a comment that says where it goes."""

from __future__ import annotations

from gradrecipes.rescue.setup import Setup

HEADS = {
    "sparse_categorical_crossentropy": "keras.losses.SparseCategoricalCrossentropy(from_logits={logits})",
    "categorical_crossentropy": "keras.losses.CategoricalCrossentropy(from_logits={logits})",
    "binary_crossentropy": "keras.losses.BinaryCrossentropy(from_logits={logits})",
}


def code_of(before: Setup, after: Setup) -> str:
    """Return what to change in the user's script; empty where nothing differs.

    Example:
        >>> import dataclasses
        >>> setup = Setup(batch_size=32, epochs=5, optimizer="SGD", learning_rate=0.5)
        >>> print(code_of(setup, dataclasses.replace(setup, rate_factor=0.1)))
        # In compile: the optimizer
        - optimizer=keras.optimizers.SGD(learning_rate=0.5)
        + optimizer=keras.optimizers.SGD(learning_rate=0.05)
    """
    lines: list[str] = []
    changed = {difference.setting for difference in before.diff(after)}
    if changed & {"optimizer", "learning_rate", "schedule", "rate_factor", "settings", "clipping", "warm_up"}:
        lines += ["# In compile: the optimizer", f"- optimizer={optimizer_line(before)}"]
        lines += [f"+ optimizer={optimizer_line(after)}"]
    if changed & {"loss", "from_logits"}:
        lines += ["# In compile: the loss", f"- loss={_loss(before)}", f"+ loss={_loss(after)}"]
    if changed & {"head", "units"}:
        units = after.units or "..."
        lines += ["# The output layer"]
        lines += [f"- keras.layers.Dense({before.units or '...'}, activation={before.head!r})"]
        lines += [f"+ keras.layers.Dense({units}, activation={after.head!r})"]
    if "inputs" in changed:
        lines += ["# In front of the first layer"]
        lines += ["+ scaling = keras.layers.Normalization()", "+ scaling.adapt(x)", "+ hidden = scaling(inputs)"]
    if "targets" in changed:
        lines += ["# Behind the last layer; with loss_weights=[1 / y.std() ** 2] in compile for a squared loss"]
        lines += ["+ outputs = keras.layers.Rescaling(float(y.std()), float(y.mean()))(outputs)"]
        lines += ["+ model.compile(..., loss_weights=[float(1 / y.std() ** 2)])"]
    if "activation" in changed:
        lines += ["# In every hidden layer", f"+ activation={after.activation!r}"]
    if "initializers" in changed:
        lines += ["# In every layer: kernels by their activation, the rest as Keras has it by default"]
        lines += ['+ kernel_initializer="he_normal"  # relu and its kin; "glorot_uniform" for others']
        lines += ['+ recurrent_initializer="orthogonal", embeddings_initializer="uniform", bias_initializer="zeros"']
    if "skips" in changed:
        lines += ["# Around every hidden layer that keeps the shape"]
        lines += ["+ hidden = keras.layers.Add()([hidden, layer(hidden)])"]
    if "normalization" in changed:
        lines += ["# After every hidden layer, in place of any BatchNormalization"]
        lines += ["+ hidden = keras.layers.LayerNormalization()(hidden)"]
    if "precision" in changed:
        lines += ["# Before the model is built", f'+ keras.config.set_dtype_policy("{after.precision}")']
    if "batch_size" in changed:
        lines += ["# In fit", f"- batch_size={before.batch_size}", f"+ batch_size={after.batch_size}"]
    if "guard" in changed:
        lines += ["# In fit", "+ callbacks=[gradrecipes.GradientGuard()]"]
    return "\n".join(lines)


def optimizer_line(setup: Setup) -> str:
    """Return the call that makes the optimizer of a setup."""
    rate = setup.learning_rate
    if setup.schedule is not None:
        told = (
            f"{setup.schedule}(...)" if setup.rate_factor == 1.0 else f"{setup.schedule}(... * {setup.rate_factor:g})"
        )
    else:
        told = "..." if rate is None else f"{rate * setup.rate_factor:.6g}"
    if setup.warm_up:
        told = f"gradrecipes.schedules.WarmUp({told}, steps={setup.warm_up})"
    parts = [f"learning_rate={told}"]
    shown = ("momentum", "nesterov", "beta_1", "beta_2", "epsilon", "rho", "weight_decay", "amsgrad", "centered")
    defaults = {"nesterov": False, "amsgrad": False, "centered": False, "momentum": 0.0, "weight_decay": None}
    defaults |= {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7, "rho": 0.9}
    for name in shown:
        if name in setup.settings and setup.settings[name] != defaults.get(name):
            parts.append(f"{name}={setup.settings[name]!r}")
    if setup.clipping:
        parts.append(f"{setup.clipping[0]}={float(setup.clipping[1]):g}")
    return f"keras.optimizers.{setup.optimizer}({', '.join(parts)})"


def _loss(setup: Setup) -> str:
    line = HEADS.get(setup.loss)
    return line.format(logits=bool(setup.from_logits)) if line else repr(setup.loss)
