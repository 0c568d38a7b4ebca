# %% [markdown]
"""# Practice 3: the rate from a range test, the weights from the activation
Ten GELU layers on handwritten digits. Keras' defaults are Glorot's weights, which are made for linear layers, and a
learning rate of 0.01. The recipe measures the rate in a hundred batches and computes the gain that GELU needs.
"""

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import gradrecipes as gr

ACTIVATION, LAYERS, UNITS = "gelu", 10, 64
DEFAULT_RATE, SEEDS, BATCH, EPOCHS = 0.01, range(6), 32, 10
ARMS = {"Keras' defaults": "#d55e00", "rate only": "#e69f00", "initializer only": "#56b4e9", "both (recipe)": "#0072b2"}

# %% [markdown]
# ## Data and net
# 1797 images of 8 × 8 pixels: three quarters for training, one for the test.

# %%
digits, labels = load_digits(return_X_y=True)
digits = (digits / 16).astype("float32")
x, x_test, y, y_test = train_test_split(digits, labels, test_size=0.25, stratify=labels, random_state=0)


def net(seed, recipe=None, rate=DEFAULT_RATE):
    keras.utils.set_random_seed(seed)
    settings = [recipe.layer_arguments() if recipe else {} for _ in range(LAYERS)]
    hidden = [keras.layers.Dense(UNITS, ACTIVATION, **one) for one in settings]
    model = keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate), loss, metrics=["accuracy"])
    return model


# %% [markdown]
# ## The range test
# The rate rises from batch to batch until the loss explodes. Afterwards the model is as it was before, to the bit.

# %%
initializer = gr.recipes.tuning(activation=ACTIVATION)
tests = [gr.probes.learning_rate_range(net(seed, initializer), x, y, batch_size=BATCH) for seed in SEEDS]
recipes = [gr.recipes.tuning(learning_rate=test.valley, batch_size=BATCH, activation=ACTIVATION) for test in tests]
print(
    f"gain for {ACTIVATION}: {gr.initializers.gain(ACTIVATION):.4f}; rates found: {[f'{t.valley:.2g}' for t in tests]}"
)

# %% [markdown]
# ## Four arms, the same seeds
# Which of the two does it? So each is tried alone as well.


# %%
def accuracy(seed, recipe, rate):
    model = net(seed, recipe, rate)
    model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    return model.evaluate(x_test, y_test, verbose=0)[1]


measured = {name: [] for name in ARMS}
for seed, recipe in zip(SEEDS, recipes, strict=True):
    found = recipe.optimizer["learning_rate"]
    settings = ((None, DEFAULT_RATE), (None, found), (recipe, DEFAULT_RATE), (recipe, found))
    for name, (weights, rate) in zip(ARMS, settings, strict=True):
        measured[name].append(accuracy(seed, weights, rate))
measured = {name: np.array(values) for name, values in measured.items()}
default, *_, both = measured.values()
gain = both - default  # paired by seed
half = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
print("mean test accuracy:", {name: round(float(values.mean()), 3) for name, values in measured.items()})

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
tests[0].plot(left)
for place, ((name, colour), marker) in enumerate(zip(ARMS.items(), "xvso", strict=True)):
    right.plot(place + np.linspace(-0.15, 0.15, len(gain)), measured[name], marker, color=colour)
    right.annotate(
        f"{measured[name].mean():.2f}",
        (place, measured[name].mean()),
        (0, 10),
        **{"textcoords": "offset points", "ha": "center", "fontweight": "bold"},
    )
right.axhline(0.1, color="0.6", linestyle=":", label="guessing")
right.set(
    xticks=range(4), xticklabels=[name.replace(" ", "\n") for name in ARMS], ylabel="test accuracy", ylim=(0, 1.05)
)
right.set_title(f"{LAYERS} {ACTIVATION.upper()} layers, {EPOCHS} epochs ({len(SEEDS)} seeds)")
right.legend(loc="center right")
plt.show()

# %%
assert default.max() < 0.3 and both.min() > 0.8, measured
assert gain.mean() - half > 0.6, "the measured rate and the computed gain no longer train where the defaults do not"
print("It holds: with measured rate and computed gain the net trains, with Keras' defaults it does not.")
bounds = f"(95% interval {gain.mean() - half:+.2f} to {gain.mean() + half:+.2f}, {len(SEEDS)} seeds)"
print(
    f"measured: {LAYERS} {ACTIVATION.upper()} layers on digits reach a test accuracy of {default.mean():.2f} with "
    f"Keras' defaults and {both.mean():.2f} with the activation's initializer and the rate of the range test: "
    f"{gain.mean():+.2f} {bounds}; the initializer alone reaches {measured['initializer only'].mean():.2f}, "
    f"the rate alone {measured['rate only'].mean():.2f}"
)
