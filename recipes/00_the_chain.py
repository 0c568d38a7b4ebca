# %% [markdown]
"""# The chain of 20 neurons
One neuron a layer, 20 layers, ReLU, every weight 2.34, input 1: the output is 2.34^20, and its gradient with respect to
the first weight is 2.34^19, ten million. It is predicted, measured in Keras, and then the usual remedies act on it.
"""

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np

import gradrecipes as gr

WEIGHT, LAYERS, UNITS = 2.34, 20, 64
DEPTHS = (5, 20, 50, 51, 100)
SUMMABLE = float(np.sqrt(np.finfo(np.float32).max))  # 1.84e19: the square of a larger norm overflows float32
# %% [markdown]
# ## Theory
# A layer is h ← s·h + a·φ(w·h); a plain net has s = 0 and a = 1, a skip connection is s = 1. By the chain rule every
# layer after the first multiplies the gradient by s + a·w·φ'(w·h). h stays positive here, so ReLU has φ' = 1.


# %%
def predict(layers=LAYERS, weight=WEIGHT, activation="relu", skip=0.0, branch=1.0):
    h, gradient = 1.0, branch * (1 - np.tanh(weight) ** 2 if activation == "tanh" else 1)
    for layer in range(layers):
        value = np.tanh(weight * h) if activation == "tanh" else weight * h
        slope = 1 - value**2 if activation == "tanh" else 1.0
        gradient *= 1.0 if layer == 0 else skip + branch * weight * slope
        h = skip * h + branch * value
    return gradient


# %% [markdown]
# ## Measurement
# One step of `fit` with the output itself as the loss. `GradientMonitor` reads the gradients of that very step.


# %%
def chain(layers=LAYERS, weight=WEIGHT, activation="relu", skip=0.0, branch=1.0, kind=keras.Model):
    h = inputs = keras.Input((1,))
    for _ in range(layers):
        out = keras.layers.Dense(1, activation, False, kernel_initializer=keras.initializers.Constant(weight))(h)
        out = out if branch == 1 else keras.layers.Rescaling(branch)(out)
        h = keras.layers.Add()([h, out]) if skip else out
    return kind(inputs, h)


def take_one_step(model, x=np.ones((1, 1), np.float32), **clip):  # noqa: B008
    monitor, before = gr.GradientMonitor(), np.concatenate([w.ravel() for w in model.get_weights()])
    model.compile(keras.optimizers.SGD(1.0, **clip), loss=lambda _, y: y, run_eagerly=True)  # one step needs no graph
    model.fit(x, x, batch_size=len(x), verbose=0, callbacks=[monitor])
    update = np.concatenate([w.ravel() for w in model.get_weights()]) - before
    return monitor.trace, float(np.linalg.norm(update.astype(np.float64)))


# %% [markdown]
# ## Clipping bounds the step, not the gradient
# Keras' `global_clipnorm` sums plain squares. From 51 layers on they overflow and every weight becomes NaN, though all
# gradients are finite. `RecipeModel` clips by the global norm too, and takes the norm so that it cannot overflow.

# %%
measured = {}
for layers in DEPTHS:
    trace, ours = take_one_step(chain(layers, kind=gr.RecipeModel))
    measured[layers] = float(trace.layer_gradient_norm[0, 0])
    _, by_keras = take_one_step(chain(layers), global_clipnorm=1.0)
    print(f"{layers:3} layers: theory {predict(layers):9.4g}, measured {measured[layers]:9.4g}, ", end="")
    print(f"step clipped by Keras {by_keras:.4f}, by gradrecipes {ours:.4f}")
    assert np.isclose(measured[layers], predict(layers), rtol=1e-5) and np.isclose(ours, 1, rtol=1e-5)
    assert np.isnan(by_keras) == (np.sqrt(layers) * predict(layers) > SUMMABLE)

# %% [markdown]
# ## Remedies on the cause
# Skip connections alone make it worse: every layer multiplies by 3.34. Leaky ReLU changes nothing where h > 0.
# %%
remedies = {
    "as it is": {},
    "skip connections": {"skip": 1.0},
    "skip connections,\nbranches × 1/20": {"skip": 1.0, "branch": 1 / LAYERS},
    "leaky ReLU": {"activation": "leaky_relu"},
    "tanh": {"activation": "tanh"},
    "all weights 1\n(Identity initializer)": {"weight": 1.0},
}
after = {name: float(take_one_step(chain(**one))[0].layer_gradient_norm[0, 0]) for name, one in remedies.items()}
assert np.allclose(list(after.values()), [predict(**one) for one in remedies.values()], rtol=1e-3, atol=0)
# %% [markdown]
# `LayerNormalization` of one neuron is 0, since its mean is itself; and half of He's weights are negative, where one
# kills the chain. So both act on 64 units a layer, whose weights also multiply the signal by 2.34.


# %%
def growth(normalized=False, scale=2 * WEIGHT**2):
    h = inputs = keras.Input((UNITS,))
    for seed in range(LAYERS):
        he = keras.initializers.VarianceScaling(scale, "fan_in", "untruncated_normal", seed=seed)  # He's has scale 2
        h = keras.layers.Dense(UNITS, use_bias=False, kernel_initializer=he)(h)
        h = keras.layers.ReLU()(keras.layers.LayerNormalization()(h) if normalized else h)
    trace, _ = take_one_step(keras.Model(inputs, h), np.random.default_rng(0).normal(size=(32, UNITS)))
    by_layer = trace.samples["output_gradient_norm"][0][[name.startswith("dense") for name in trace.layers]]
    return float((by_layer[0] / by_layer[-1]) ** (1 / (LAYERS - 1)))


wide = {"as it is": growth(), "HeNormal": growth(scale=2.0), "LayerNormalization": growth(normalized=True)}
print("64 units, the gradient grows per layer by:", {name: round(factor, 2) for name, factor in wide.items()})
assert wide["as it is"] > 2 and abs(wide["HeNormal"] - 1) < 0.15 and abs(wide["LayerNormalization"] - 1) < 0.15
# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
left.plot(DEPTHS, [predict(layers) for layers in DEPTHS], color="0.6", label="theory: 2.34^(layers - 1)")
left.plot(DEPTHS, list(measured.values()), "o", label="measured in fit")
left.plot(DEPTHS, SUMMABLE / np.sqrt(DEPTHS), "C3--", label="norm 1.84e19: above, Keras' global_clipnorm gives NaN")
left.set(yscale="log", xlabel="layers", ylabel="dy/dw1", title="Every weight 2.34")
left.legend(loc="lower right", fontsize="small")
right.hlines(list(after), 1, list(after.values()), linewidth=9)
for name, value in after.items():
    right.annotate(f"{value:.2g}", (value, name), (0, 8), textcoords="offset points", ha="center")
right.set(xscale="log", xlim=(1e-25, 1e14), ylim=(5.5, -0.7), xlabel="dy/dw1, measured", title="20 layers, remedied")
plt.show()
print(f"It holds: dy/dw1 is {predict():.5g} by theory, {measured[20]:.5g} in Keras; with 50 layers {measured[50]:.5g}")
