# %% [markdown]
"""# Practice 2: compare remedies on data that were not trained on
A small net on medical records whose columns are raw: blood pressure near 95, cholesterol near 190. The training
explodes. Several remedies are tried on one frozen split with several seeds. Which is best, how sure is that, and does
the training loss know it?
"""

# %%
import tempfile

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

import gradrecipes as gr

RATE, SEEDS, UNITS, BATCH, EPOCHS = 0.05, 8, 64, 32, 40

# %% [markdown]
# ## One split, for every arm and every seed
# 442 patients: 30% for the test, 30% of the others for validation. Mean and spread come from the training rows alone.
# A loss of 1 is what guessing the mean gives.

# %%
x, x_test, y, y_test = train_test_split(*load_diabetes(return_X_y=True, scaled=False), test_size=0.3, random_state=0)
split = gr.studies.frozen_split(x, y, share=0.3)
centre, spread = split.y.mean(), split.y.std()
targets = [(values - centre) / spread for values in (split.y, split.y_val, y_test)]
data = (split.x, targets[0], split.x_val, targets[1], x_test, targets[2])


def build(standardized=False, factor=1.0, clipnorm=None):
    """Return a compiled net, which may standardize its columns."""
    hidden = inputs = keras.Input((x.shape[1],))
    if standardized:
        columns = keras.layers.Normalization()
        columns.adapt(split.x)
        hidden = columns(hidden)
    for _ in range(2):
        hidden = keras.layers.Dense(UNITS, "relu", kernel_initializer="he_normal")(hidden)
    model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    model.compile(keras.optimizers.SGD(RATE * factor, momentum=0.9, global_clipnorm=clipnorm), "mse")
    return model


# %% [markdown]
# ## The study
# The last arm is the fourth one again, but it keeps the weights of the epoch with the lowest validation loss: that
# recipe is so patient here that every run is seen to its end. Each trained net is evaluated on the test patients,
# whom neither training nor validation has seen. Arms without hope get fewer seeds, as the table says.

# %%
standardized = {"standardized": True}
chosen = gr.studies.Arm(build=standardized, recipe=gr.recipes.validation(patience=EPOCHS))
arms = {
    "as it is": {},
    "Keras' global_clipnorm": {"clipnorm": 1.0},
    "rate / 10 000": {"factor": 1e-4},
    "standardized columns": standardized,
    "standardized, best epoch": chosen,
}
kept = tempfile.mkdtemp()  # every result is kept here: a killed study goes on where it was
how = {"arms": arms, "data": data, "seeds": SEEDS, "fit": {"epochs": EPOCHS, "batch_size": BATCH}, "directory": kept}
study = gr.Study(build, objective="test_loss", **how).run()
print(study)

# %% [markdown]
# ## What the training loss would have chosen
# The same results, judged by another number: with the same directory no run is made again.

# %%
by_training = gr.Study(build, objective="loss", **how).run()
print("By the training loss the best is:", by_training.best)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.2), layout="constrained")
for name, colour in (("loss", "#d55e00"), ("val_loss", "#0072b2")):
    curves = np.array([run.history[name] for run in study.runs["standardized columns"]])
    left.plot(range(1, EPOCHS + 1), curves.T, color=colour, alpha=0.5)
    left.plot([], [], color=colour, label={"loss": "training", "val_loss": "validation"}[name])
left.set(yscale="log", xlabel="epoch", ylabel="mean squared error", title="Standardized columns, every seed")
left.legend()
study.plot(right)
plt.show()

# %%
of = {one.arm: one for one in study.summaries}
survivors = [of["Keras' global_clipnorm"].mean, of["rate / 10 000"].mean]
last, best = by_training.best, study.best
pair = study.compare(best, last)  # the difference of the first to the second, with the same seeds
assert of["as it is"].diverged == of["as it is"].runs == 3, "three seeds without a survivor are enough to give up"
assert min(survivors) > 0.8, "clipping or a low rate now learns from raw columns"
assert (last, best) == ("standardized columns", "standardized, best epoch"), (last, best)
assert pair.verdict == "better" and pair.interval.high < 0, pair
print("It holds: what only survives learns nothing, and the epoch that validation chooses serves new patients better.")
clipped, slowed = survivors
print(
    f"measured: raw diabetes columns diverge in {of['as it is'].diverged} of {of['as it is'].runs} runs, clipping or a "
    f"low rate then does little better than guessing the mean (test loss {clipped:.2f} and {slowed:.2f}); of the arms "
    f"that learn, the last epoch has a test loss of {of[last].mean:.2f}, the epoch chosen by validation "
    f"{of[best].mean:.2f}: {pair.difference:+.2f} (95% interval {pair.interval.low:+.2f} to {pair.interval.high:+.2f}, "
    f"{SEEDS} seeds, exact paired p = {pair.adjusted_p:.2f} after Holm's correction)"
)
