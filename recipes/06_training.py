# %% [markdown]
"""# Practice 6: a training that survives its own bad steps
A recurrent net reads handwritten digits row by row. How high may the learning rate be, and what does one broken image
do? The recipe clips, skips and rolls back (`GradientGuard`), warms up, and stops early without being fooled by NaN.
Net, rates and warm-up were chosen with other seeds than those that are reported.
"""

# %%
import logging

import keras
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import gradrecipes as gr

RATES, SEEDS, SAFE_RATE = (0.03, 0.1, 0.3, 1.0), range(100, 105), 0.03
UNITS, BATCH, EPOCHS, STEPS, PATIENCE = 64, 32, 6, 34, 3  # steps of an epoch, and of the warm-up
USABLE = 0.5  # test accuracy above which a rate counts as usable; guessing gives 0.1
logging.getLogger("gradrecipes").setLevel(logging.ERROR)  # each rollback would be told: here they are meant

# %% [markdown]
# ## Data and net
# 1797 images of 8 × 8 pixels: 60% for training, 15% for validation, 25% for the test, on one split.


# %%
digits, labels = load_digits(return_X_y=True)
digits = (digits / 16).reshape(-1, 8, 8).astype("float32")
x, x_test, y, y_test = train_test_split(digits, labels, test_size=0.25, stratify=labels, random_state=0)
x, x_valid, y, y_valid = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
x_broken = x.copy()
x_broken[100, 3, 4] = np.nan  # one pixel of one image


def net(rate):
    """Return a model, and all that a training changes of it."""
    model = keras.Sequential([keras.Input((8, 8)), keras.layers.SimpleRNN(UNITS, unroll=True), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), loss, metrics=["accuracy"], steps_per_execution=STEPS)
    model.optimizer.build(model.trainable_variables)
    return model, model.weights + model.optimizer.variables


def train(x, rate, with_recipe):
    """Yield by seed test accuracy, and whether all weights are finite. Without the recipe, Keras stops early itself."""
    recipe = gr.recipes.training(max_norm=1.0, learning_rate=rate, warm_up=STEPS, patience=PATIENCE)
    rate = recipe.optimizer["learning_rate"] if with_recipe else rate
    model, state = net(rate)  # traced once, for all seeds, with callbacks that begin anew in each fit
    early = keras.callbacks.EarlyStopping(patience=PATIENCE, restore_best_weights=True)
    callbacks = recipe.callbacks() if with_recipe else [early]
    for seed in SEEDS:
        keras.utils.set_random_seed(seed)
        for variable, value in zip(state, net(rate)[1], strict=True):
            variable.assign(value)
        model.fit(x, y, BATCH, EPOCHS, callbacks=callbacks, validation_data=(x_valid, y_valid), verbose=0)
        yield model.evaluate(x_test, y_test, verbose=0)[1], all(np.isfinite(one).all() for one in model.get_weights())


def interval(differences):
    """Return the 95% interval of a mean over seeds, by Student's t."""
    half = stats.t.ppf(0.975, len(differences) - 1) * np.std(differences, ddof=1) / np.sqrt(len(differences))
    return np.mean(differences) - half, np.mean(differences) + half


# %% [markdown]
# ## A wider range of learning rates
# Every rate with five seeds, without and with the recipe; the seeds are paired.

# %%
arms = {"without": False, "with the recipe": True}
scores = {name: [[value for value, _ in train(x, rate, how)] for rate in RATES] for name, how in arms.items()}
accuracy = {name: np.transpose(values) for name, values in scores.items()}  # [seeds, rates]
for name, values in accuracy.items():
    print(f"{name:16}", {rate: round(float(mean), 3) for rate, mean in zip(RATES, values.mean(0), strict=True)})
without, with_ = (values.mean(1) for values in accuracy.values())  # one number for each seed: the mean over the rates
low, high = interval(with_ - without)
usable = [max(rate for rate, row in zip(RATES, v.T, strict=True) if row.min() > USABLE) for v in accuracy.values()]

# %% [markdown]
# ## One broken image
# At a rate that is safe. Its loss is NaN, and so is its batch's gradient: applied, every weight is lost at once.

# %%
broken = {name: list(train(x_broken, SAFE_RATE, recipe)) for name, recipe in arms.items()}
lost, kept = ([not finite for _, finite in runs] for runs in broken.values())
after = np.array([[value for value, _ in runs] for runs in broken.values()])
print(f"one broken image: weights lost in {sum(lost)} of {len(lost)} without, {sum(kept)} of {len(kept)} with it")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True, width_ratios=(3, 2))
for (name, values), colour, marker in zip(accuracy.items(), ("#d55e00", "#0072b2"), "xo", strict=True):
    left.plot(RATES, values.mean(0), color=colour, label=f"{name} (mean)")
    left.plot(RATES, values.T, marker, color=colour, alpha=0.45, markersize=5)
left.axhline(0.1, color="0.6", linestyle=":", label="guessing")
left.set(xscale="log", xlabel="learning rate (SGD, momentum 0.9)", ylabel="test accuracy", ylim=(0, 1.02))
left.set(xticks=RATES, xticklabels=RATES, title=f"A wider range of learning rates ({len(SEEDS)} seeds)")
left.minorticks_off()
left.legend(loc="center left")
for place, (values, colour, marker) in enumerate(zip(after, ("#d55e00", "#0072b2"), "xo", strict=True)):
    right.plot(place + np.linspace(-0.1, 0.1, len(values)), values, marker, color=colour)
right.axhline(0.1, color="0.6", linestyle=":")
right.set(xticks=(0, 1), xticklabels=list(arms), xlim=(-0.5, 1.5), title=f"One broken image, rate {SAFE_RATE}")
plt.show()

# %%
assert low > 0.2, "the recipe no longer widens the range of learning rates"
assert usable[1] >= 3 * usable[0], usable
assert all(lost) and not any(kept) and after[1].min() > 0.8, "the recipe no longer saves a training from a broken image"
print("It holds: the recipe widens the range of learning rates, and a broken image costs one step, not the training.")
gain = f"{with_.mean() - without.mean():+.2f} (95% interval {low:+.2f} to {high:+.2f}, {len(SEEDS)} seeds)"
print(
    f"measured: an RNN on digits trains at rates up to {usable[0]:g} without and up to {usable[1]:g} with clipping, "
    f"guard and warm-up; test accuracy over the rates {without.mean():.2f} and {with_.mean():.2f}, {gain}; "
    f"one broken image loses {sum(lost)} of {len(lost)} runs without, {sum(kept)} of {len(kept)} with it"
)
