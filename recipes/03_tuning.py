# %% [markdown]
"""# Practice 3: the rate from a range test, the weights from the activation, the rest from a search
Ten GELU layers on handwritten digits. Keras' defaults are Glorot's weights, which are made for linear layers, and a
learning rate of 0.01. The recipe measures the rate in a hundred batches and computes the gain that GELU needs. The
search knows neither, tries five decades of rates, and survives those that diverge.
"""

# %%
import tempfile

import keras
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import gradrecipes as gr

ACTIVATION, LAYERS, UNITS = "gelu", 10, 64
DEFAULT_RATE, SEEDS, BATCH, EPOCHS, TRIALS, TRIAL_EPOCHS = 0.01, range(6), 32, 10, 20, 4
ARMS = {"Keras' defaults": "#d55e00", "measured (recipe)": "#0072b2", "found by search": "#009e73"}

# %% [markdown]
# ## Data and net
# 1797 images of 8 × 8 pixels: three quarters for training, of which the search validates on a fifth, one for the test.

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
scaled = gr.recipes.tuning(activation=ACTIVATION)
tests = [gr.probes.learning_rate_range(net(seed, scaled), x, y, batch_size=BATCH) for seed in SEEDS]
rates = [test.valley for test in tests]
print(f"gain for {ACTIVATION}: {gr.initializers.gain(ACTIVATION):.4f}; rates found: {[f'{r:.2g}' for r in rates]}")

# %% [markdown]
# ## The search
# Rate, batch size and initializer, from one seed. A trial that diverges ends early and tells where not to look.


# %%
def build(hp):
    initializer = hp.Choice("initializer", ["default", "scaled"])
    rate = gr.tuning.spaces.learning_rate(hp, lowest=1e-3, highest=100.0)
    return net(0, scaled if initializer == "scaled" else None, rate)


hypermodel = gr.tuning.RecipeHyperModel(build, batch_size=gr.tuning.spaces.batch_size)
tuner = gr.tuning.BayesianOptimization(hypermodel, max_trials=TRIALS, seed=1, directory=tempfile.mkdtemp())
results = tuner.search(x, y, validation_split=0.2, epochs=TRIAL_EPOCHS)
print(results)
found = results.best.values

# %% [markdown]
# ## Three arms, the same seeds


# %%
def accuracy(start, rate, batch_size=BATCH):
    model.set_weights(start.get_weights())
    model.optimizer.learning_rate = rate
    model.fit(x, y, batch_size=batch_size, epochs=EPOCHS, verbose=0)
    return model.evaluate(x_test, y_test, verbose=0)[1]


model = net(0)  # traced once, for all runs: each starts from new weights, and SGD has no memory
model.steps_per_execution = -(-len(x) // BATCH)  # an epoch
initializer = scaled if found["initializer"] == "scaled" else None
measured = {name: [] for name in ARMS}
for seed, rate in zip(SEEDS, rates, strict=True):
    runs = (net(seed), DEFAULT_RATE), (net(seed, scaled), rate)
    runs += ((net(seed, initializer), found["learning_rate"], found["batch_size"]),)
    for name, run in zip(ARMS, runs, strict=True):
        measured[name].append(accuracy(*run))
default, recipe, search = measured = [np.array(values) for values in measured.values()]
gains = recipe - default, search - default  # paired by seed
halves = [stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain)) for gain in gains]
print("test accuracy by seed:", *(values.round(3) for values in measured), sep="\n")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
results.stability_map("learning_rate", "batch_size").plot(left)
for place, (colour, values, marker) in enumerate(zip(ARMS.values(), measured, "xso", strict=True)):
    right.plot(place + np.linspace(-0.15, 0.15, len(values)), values, marker, color=colour)
right.axhline(0.1, color="0.6", linestyle=":", label="guessing")
right.set(xticks=range(3), xticklabels=ARMS, ylabel="test accuracy", ylim=(0, 1.05))
right.set_title(f"{LAYERS} {ACTIVATION.upper()} layers, {EPOCHS} epochs ({len(SEEDS)} seeds)")
right.legend(loc="center right")
plt.show()

# %%
assert default.max() < 0.3 and recipe.min() > 0.8, measured
assert all(gain.mean() - half > 0.5 for gain, half in zip(gains, halves, strict=True)), (gains, halves)
print("It holds: what was measured, and what the search found, trains where the defaults do not.")
bounds = [(g.mean(), g.mean() - half, g.mean() + half) for g, half in zip(gains, halves, strict=True)]
words = ["{:+.2f} ({:+.2f} to {:+.2f})".format(*three) for three in bounds]
print(
    f"measured: {LAYERS} {ACTIVATION.upper()} layers on digits reach a test accuracy of {default.mean():.2f} with "
    f"Keras' defaults; computed gain and range test add {words[0]}, a search of {TRIALS} trials, "
    f"{len(results.failures)} of them lost, adds {words[1]} (95% interval, {len(SEEDS)} seeds)"
)
