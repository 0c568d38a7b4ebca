# %% [markdown]
"""# Practice 2: compare remedies on data that were not trained on
A small net on medical records whose columns are raw: blood pressure near 95, cholesterol near 190. The training
explodes. Several remedies are tried on one frozen split. Which is best, and does the training loss know it?
"""

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

import gradrecipes as gr

RATE, SEEDS, UNITS, BATCH, EPOCHS, SHARE = 0.05, range(5), 64, 32, 40, 0.3
LOST, CEILING = 10.0, 1e6  # a validation loss above the first counts as lost; the second stands for all beyond it
ARMS = {  # columns standardized, factor of the learning rate, Keras' global_clipnorm
    "as it is": (False, 1, None),
    "Keras' global_clipnorm": (False, 1, 1.0),
    "rate / 10 000": (False, 1e-4, None),
    "standardized columns": (True, 1, None),
    "standardized, rate / 10": (True, 0.1, None),
}

# %% [markdown]
# ## One split, for every arm and every seed
# 442 patients: 30% for the test, 30% of the others for validation. `validation_split` takes the *last* rows; here they
# have been shuffled. Mean and spread come from the training rows alone. A loss of 1 is what guessing the mean gives.

# %%
x, x_test, y, y_test = train_test_split(*load_diabetes(return_X_y=True, scaled=False), test_size=0.3, random_state=0)
training = slice(0, int(len(x) * (1 - SHARE)))
spread, centre = y[training].std(), y[training].mean()
y, y_test = (y - centre) / spread, (y_test - centre) / spread
recipe = gr.recipes.validation(share=SHARE, patience=EPOCHS)  # so patient that every curve is seen to its end


def train(arm, seed):
    """Return training and validation loss by epoch, and test errors after the last epoch and of the best."""
    standardized, factor, clipnorm = ARMS[arm]
    keras.utils.set_random_seed(seed)
    hidden = inputs = keras.Input((x.shape[1],))
    if standardized:
        columns = keras.layers.Normalization()
        columns.adapt(x[training])
        hidden = columns(hidden)
    for _ in range(2):
        hidden = keras.layers.Dense(UNITS, "relu", kernel_initializer="he_normal")(hidden)
    model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    model.compile(keras.optimizers.SGD(RATE * factor, momentum=0.9, global_clipnorm=clipnorm), "mse")

    errors = []
    look = keras.callbacks.LambdaCallback(on_train_end=lambda logs: errors.append(model(x_test)[:, 0] - y_test))
    arguments = recipe.fit_arguments()  # the split, and the callback that brings back the best epoch's weights
    arguments["callbacks"] = [look, *arguments["callbacks"]]
    history = model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0, **arguments).history
    errors.append(model(x_test)[:, 0] - y_test)
    return np.array([history["loss"], history["val_loss"]]), np.array(errors) * spread


# %%
runs = {arm: [train(arm, seed) for seed in SEEDS] for arm in ARMS}
curves = {arm: np.array([run[0] for run in results]) for arm, results in runs.items()}  # [seeds, 2, epochs]
errors = {arm: np.array([run[1] for run in results]) for arm, results in runs.items()}  # [seeds, last or best, rows]
sound = {arm: np.nan_to_num(v, nan=CEILING, posinf=CEILING).clip(max=CEILING) for arm, v in curves.items()}
final, best = {arm: v[:, :, -1] for arm, v in sound.items()}, {arm: v[:, 1].min(1) for arm, v in sound.items()}
lost = {arm: int((values[:, 1] > LOST).sum()) for arm, values in final.items()}
for arm, values in final.items():
    print(f"{arm:24} lost {lost[arm]} of {len(SEEDS)}; last epoch: training loss {values[:, 0].mean():.3g}, ", end="")
    print(f"validation loss {values[:, 1].mean():.3g}; best epoch {best[arm].mean():.3g}")

# %% [markdown]
# ## Two judges
# One knows the training loss only: it takes the arm where that is lowest, and trains it to the end. The other takes
# the arm and the epoch of the lowest validation loss. Patients whom neither has seen decide, by a paired bootstrap.

# %%
by_training = min(final, key=lambda arm: final[arm][:, 0].mean())
by_validation = min(best, key=lambda arm: best[arm].mean())
without, with_ = errors[by_training][:, 0], errors[by_validation][:, 1]  # [seeds, rows]
rng = np.random.default_rng(0)
rmse = lambda values: float(np.sqrt(np.mean(values**2)))  # noqa: E731
draws = [
    np.ix_(rng.integers(len(SEEDS), size=len(SEEDS)), rng.integers(len(y_test), size=len(y_test))) for _ in range(2000)
]
low, high = np.percentile([rmse(with_[draw]) - rmse(without[draw]) for draw in draws], [2.5, 97.5])

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
for index, (name, colour) in enumerate((("training", "#d55e00"), ("validation", "#0072b2"))):
    left.plot(range(1, EPOCHS + 1), curves[by_training][:, index].T, color=colour, alpha=0.5)
    left.plot([], [], color=colour, label=f"{name} loss")
    for place, values in enumerate(final.values()):
        right.plot(values[:, index], np.full(len(SEEDS), place + 0.2 * index), "xo"[index], color=colour, alpha=0.6)
left.set(yscale="log", xlabel="epoch", ylabel="mean squared error", title=f"Chosen by the training loss: {by_training}")
left.legend()
right.set(xscale="log", xlabel=f"loss after the last epoch (x training, o validation; {CEILING:.0e}: or beyond)")
right.set(yticks=range(len(ARMS)), yticklabels=list(ARMS), title="Every arm (1: guessing the mean)")
right.invert_yaxis()
plt.show()

# %%
survivors = [final[arm][:, 1].min() for arm in ("Keras' global_clipnorm", "rate / 10 000")]
assert lost["as it is"] == len(SEEDS) and lost[by_validation] == 0, lost
assert min(survivors) > 0.8, "clipping or a low rate now learns from raw columns"
assert (final[by_training][:, 1] > 1.05 * best[by_training]).all(), "the training no longer overfits"
assert high < 0, "validation no longer chooses better than the training loss"
print("It holds: what only survives learns nothing, and the epoch that validation chooses serves new patients better.")
runs, change = len(SEEDS), rmse(with_) - rmse(without)
print(
    f"measured: raw diabetes columns lose {lost['as it is']} of {runs} runs, clipping or a low rate then only guesses "
    f"the mean; of the arms that learn, the last epoch has a test RMSE of {rmse(without):.1f}, the epoch chosen by "
    f"validation {rmse(with_):.1f}: {change:+.1f} (95% interval {low:+.1f} to {high:+.1f}, {runs} seeds)"
)
