# %% [markdown]
"""# Practice 1: see the explosion before the loss is lost
A small tanh net learns the consumption of cars (auto-mpg) with a learning rate that rises from step to step, in one arm
to a rate that suits it and in the other too far. When does the gradient norm tell, and when does Keras?
"""

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
from mlxtend.data import autompg_data
from scipy import stats

import gradrecipes as gr

UNITS, LAYERS, BATCH, EPOCHS, WARM_UP = 64, 2, 16, 14, 300  # the warm-up in steps; 25 steps an epoch
ARMS, SEEDS = {"rises to 0.01": 0.01, "rises to 0.1": 0.1}, range(6)
TIMES, WINDOW, FIRST = 10, 100, 20  # alarm: a norm above 10 times the largest of the last 100, from step 20 on
HEALTHY, SICK = ARMS

# %% [markdown]
# ## Data, net and alarm
# 392 cars, seven columns, standardized; the target, miles per gallon, stays in its unit. The alarm compares each norm
# with those of the same training only, so that it needs no threshold of its own. A norm that is not finite counts too.

# %%
columns, y = autompg_data()
x = columns[:, :7]
x = ((x - x.mean(0)) / x.std(0)).astype("float32")


def first_alarm(values):
    for step in range(FIRST, len(values)):
        if not values[step] <= TIMES * np.max(values[max(0, step - WINDOW) : step]):
            return step
    return None


def train(rate, seed):
    """Return the trace, and the step at which Keras' TerminateOnNaN ended the training, or None."""
    keras.utils.set_random_seed(seed)
    hidden = [keras.layers.Dense(UNITS, "tanh") for _ in range(LAYERS)]
    model = keras.Sequential([keras.Input((x.shape[1],)), *hidden, keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(gr.schedules.WarmUp(rate, steps=WARM_UP)), "mse")
    recipe = gr.recipes.monitoring(sample_every=10)
    (monitor,) = recipe.callbacks()
    callbacks = [monitor, keras.callbacks.TerminateOnNaN()]
    model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0, callbacks=callbacks)
    return monitor.trace, len(monitor.trace) - 1 if model.stop_training else None


# %% [markdown]
# ## Both arms, the same seeds

# %%
runs = {arm: [train(rate, seed) for seed in SEEDS] for arm, rate in ARMS.items()}
alarms = {arm: [first_alarm(trace.gradient_norm) for trace, _ in both] for arm, both in runs.items()}
by_loss = [first_alarm(trace.loss) for trace, _ in runs[SICK]]
ends = [end for _, end in runs[SICK]]
print("rate too high: Keras stops at step     ", ends)
print("               alarm of the norm at    ", alarms[SICK])
print("               alarm of the batch loss ", by_loss)
print("suitable rate: alarms of the norm      ", alarms[HEALTHY])
assert None not in ends + alarms[SICK], "without the practice the training no longer explodes, or the alarm is silent"
lead = np.subtract(ends, alarms[SICK])  # steps
half = stats.t.ppf(0.975, len(lead) - 1) * lead.std(ddof=1) / np.sqrt(len(lead))

# %% [markdown]
# ## What it looks like
# One training of each arm; and layer by layer, at the steps that were sampled, how much an update moves the weights.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
for (arm, both), colour in zip(runs.items(), ("#0072b2", "#d55e00"), strict=True):
    norms = both[0][0].gradient_norm
    left.plot(np.where(np.isfinite(norms), norms, np.nan), color=colour, label=arm)
left.axvline(alarms[SICK][0], color="black", linestyle="--", label=f"alarm, step {alarms[SICK][0]}")
left.axvline(ends[0], color="black", linestyle=":", label=f"Keras stops, step {ends[0]}")
left.set(yscale="log", xlabel="training step", ylabel="global gradient norm (L2)", title=f"Both arms, seed {SEEDS[0]}")
left.legend(loc="upper right")
trace = runs[SICK][0][0]
for place, (style, colour) in enumerate((("-", "#0072b2"), ("--", "#e69f00"), (":", "#009e73"))):
    ratio = trace.samples["update_ratio"][:, place]
    usable = np.isfinite(ratio) & (ratio > 0)
    look = {"color": colour, "marker": "o", "markersize": 3, "label": f"layer {place + 1}"}
    right.plot(trace.samples["step"][usable], ratio[usable], style, **look)
right.axvline(alarms[SICK][0], color="black", linestyle="--")
right.axvline(ends[0], color="black", linestyle=":")
right.set(yscale="log", xlabel="training step", ylabel="‖update‖ / ‖weights‖", title=f"{SICK}: layer by layer")
right.legend(loc="upper left")
plt.show()

# %%
assert alarms[HEALTHY] == [None] * len(SEEDS), "the alarm is raised over a healthy training"
assert lead.mean() - half > 3 and lead.min() > 3, lead
print(
    f"It holds: the gradient norm tells {lead.min()} to {lead.max()} steps ahead of the loss, and is silent otherwise."
)
print(
    f"measured: on auto-mpg with a rate that rises too far, Keras' TerminateOnNaN stops at step {np.mean(ends):.0f} "
    f"(mean), the gradient norm gives the alarm {lead.mean():.0f} steps before (95% interval "
    f"{lead.mean() - half:.0f} to {lead.mean() + half:.0f}, {len(SEEDS)} seeds); at a suitable rate it gives "
    f"{sum(step is not None for step in alarms[HEALTHY])} alarms in {len(SEEDS)} runs"
)
