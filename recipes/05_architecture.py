# %% [markdown]
"""# Practice 5: depth that does not cost the gradient
Plain ReLU nets on handwritten digits, initialized as He says, against residual blocks that start as the identity
(ReZero): 10, 30 and 100 layers of 64 units, neither with any normalization. All settings were chosen with other seeds.
"""

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import gradrecipes as gr

DEPTHS, UNITS = (10, 30, 100), 64  # layers; a block has two
RATES, SEEDS, BATCH, EPOCHS = (0.01, 0.03), range(100, 105), 64, 8
ARMS = {"plain, He": "#d55e00", "residual (ReZero)": "#0072b2"}
PLAIN, RESIDUAL = ARMS

# %% [markdown]
# ## Data and nets
# 1797 images of 8 × 8 pixels, standardized; 60% for training, 15% to choose the rate by, 25% for the test.

# %%
digits, labels = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split(digits, labels, test_size=0.25, stratify=labels, random_state=0)
x, x_valid, y, y_valid = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
mean, std = x.mean(), x.std()
x, x_valid, x_test = (((part - mean) / std).astype("float32") for part in (x, x_valid, x_test))
x_later, y_later = np.concatenate([x_valid, x_test]), np.concatenate([y_valid, y_test])
recipe = gr.recipes.architecture(activation="relu", residual="rezero", units=UNITS)
print(recipe)


def net(arm, layers, seed):
    keras.utils.set_random_seed(seed)
    hidden = inputs = keras.Input((64,))
    for _ in range(layers // 2):
        if arm == RESIDUAL:
            hidden = recipe.block("residual")(hidden)
        else:
            for _ in range(2):
                hidden = keras.layers.Dense(UNITS, "relu", kernel_initializer="he_normal")(hidden)
    model = keras.Model(inputs, keras.layers.Dense(10)(hidden))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, steps_per_execution=-(-len(x) // BATCH))  # an epoch
    return model


def accuracies(nets):
    """Yield the test accuracy of each seed, at whichever rate validates better."""
    *_, model = nets
    for seed, start in zip(SEEDS, [one.get_weights() for one in nets], strict=True):
        runs = []
        for rate in RATES:  # one model is traced once; every run starts from new weights, and SGD has no memory
            keras.utils.set_random_seed(seed)  # the order of the batches
            model.set_weights(start)
            model.optimizer.learning_rate = rate
            model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0)
            right = model(x_later).numpy().argmax(1) == y_later
            runs.append((right[: len(y_valid)].mean(), right[len(y_valid) :].mean()))
        yield max(runs)[1]


# %% [markdown]
# ## Before training: what is left of the input
# He keeps the size of the signal, but in a plain ReLU net each layer turns all signals a little more to one direction.
# Where two images look the same to the last layer, no gradient can tell it how to part them.


# %%
def likeness_by_layer(model):
    """Return the mean cosine of the signals of two different images, layer by layer."""
    signals = keras.Model(model.input, [layer.output for layer in model.layers[1:-1]])(x[:BATCH])
    signals = [signal.numpy() / np.linalg.norm(signal, axis=1, keepdims=True) for signal in signals]
    return [float((signal @ signal.T)[np.triu_indices(BATCH, 1)].mean()) for signal in signals]


nets = {(arm, layers): [net(arm, layers, seed) for seed in SEEDS] for arm in ARMS for layers in DEPTHS}
likeness = {arm: np.array([likeness_by_layer(model) for model in nets[arm, DEPTHS[-1]]]) for arm in ARMS}
print("mean cosine in the last layer:", {arm: round(float(rows[:, -1].mean()), 4) for arm, rows in likeness.items()})

# %% [markdown]
# ## Training

# %%
accuracy = {arm: np.array([list(accuracies(nets[arm, one])) for one in DEPTHS]) for arm in ARMS}  # [depths, seeds]
for arm, values in accuracy.items():
    print(f"{arm:18}", {layers: round(float(row.mean()), 3) for layers, row in zip(DEPTHS, values, strict=True)})
gain = accuracy[RESIDUAL][-1] - accuracy[PLAIN][-1]  # paired by seed
half = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
for (arm, colour), marker in zip(ARMS.items(), "xo", strict=True):
    layers = np.linspace(1, DEPTHS[-1], likeness[arm].shape[1])
    left.plot(layers, likeness[arm].T, color=colour, alpha=0.5, linewidth=1)
    left.plot([], [], color=colour, label=f"{arm}, each seed")
    right.plot(DEPTHS, accuracy[arm].mean(1), color=colour, label=f"{arm} (mean)")
    right.plot(DEPTHS, accuracy[arm], marker, color=colour, alpha=0.5, markersize=5)
left.set(xlabel="layer", ylabel="mean cosine of two images' signals", ylim=(-0.1, 1.05))
left.set_title(f"Before training: how alike all images look, {DEPTHS[-1]} layers")
left.legend()
right.axhline(0.1, color="0.6", linestyle=":", label="guessing")
right.set(xscale="log", xticks=DEPTHS, xticklabels=DEPTHS, xlabel="layers", ylabel="test accuracy", ylim=(0, 1.02))
right.minorticks_off()
right.set_title(f"After {EPOCHS} epochs ({len(SEEDS)} seeds)")
right.legend(loc="upper right", bbox_to_anchor=(1, 0.85))
plt.show()
# %%
assert accuracy[PLAIN][-1].max() < 0.3 and accuracy[RESIDUAL][-1].min() > 0.85, accuracy
assert gain.mean() - half > 0.6, "residual blocks no longer train where the plain net does not"
print(f"It holds: {DEPTHS[-1]} layers train with residual blocks and do not start without, both without normalization.")
print(
    f"measured: at {DEPTHS[-1]} layers on digits, a plain net with He initialization reaches a test accuracy of "
    f"{accuracy[PLAIN][-1].mean():.2f}, residual blocks reach {accuracy[RESIDUAL][-1].mean():.2f}: {gain.mean():+.2f} "
    f"(95% interval {gain.mean() - half:+.2f} to {gain.mean() + half:+.2f}, {len(SEEDS)} seeds, no normalization)"
)
