"""A diagnosis leaves everything as it found it, to the bit: model, optimizer, seeds, metrics, random numbers."""

from __future__ import annotations

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from gradrecipes.compat.keras_private import sublayers, unfrozen
from gradrecipes.probes import trial
from gradrecipes.probes.output_losses import OutputLosses
from gradrecipes.probes.varied import runs
from gradrecipes.training.description.describe import describe_model
from gradrecipes.training.trial import Trial

BATCH, SAMPLES, COLUMNS = 16, 64, 6
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def data():
    x = np.random.default_rng(0).normal(size=(SAMPLES, COLUMNS)).astype("float32")
    return x, (x[:, 0] > 0).astype("int32")


def layers():
    """Return layers with everything that a step may change: seeds, moving statistics, weights."""
    return [
        keras.layers.GaussianNoise(0.1, seed=1),
        keras.layers.Dense(8, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.3, seed=2),
        keras.layers.Dense(2),
    ]


def compiled(model, optimizer=None, **options):
    model.compile(optimizer or keras.optimizers.Adam(0.01), LOGITS, metrics=["accuracy"], **options)
    return model


def sequential(**options):
    return compiled(keras.Sequential([keras.Input((COLUMNS,)), *layers()]), **options)


def functional(**options):
    inputs = keras.Input((COLUMNS,))
    first, *others = layers()
    middle = first(inputs)
    for layer in others[:-1]:
        middle = layer(middle)
    return compiled(keras.Model(inputs, others[-1](middle)), **options)


def exploding():
    """Return a net whose trial breaks, so that it is varied: other weights, another rate, other data."""
    start = keras.initializers.VarianceScaling(400.0, "fan_in")
    wide = [keras.layers.Dense(8, activation="relu", kernel_initializer=start) for _ in range(12)]
    return compiled(keras.Sequential([keras.Input((COLUMNS,)), *wide, *layers()]), keras.optimizers.SGD(0.1, 0.9))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.parts = layers()

    def call(self, x, training=False):
        for part in self.parts:
            x = part(x, training=training)
        return x


class Gan(keras.Model):
    """Two nets, two optimizers, a train step and a counter of its own."""

    def __init__(self):
        super().__init__()
        self.generator = keras.Sequential([keras.Input((3,)), keras.layers.Dense(COLUMNS)])
        self.critic = keras.Sequential(
            [keras.Input((COLUMNS,)), keras.layers.Dropout(0.2, seed=3), keras.layers.Dense(1)]
        )
        self.noise = keras.random.SeedGenerator(7)
        self.turns = self.add_weight(shape=(), initializer="zeros", trainable=False, name="turns")

    def compile(self, for_generator, for_critic):
        super().compile(optimizer=for_generator)
        self.for_critic = for_critic

    @property
    def metrics(self):
        return []

    def train_step(self, batch):
        real, _ = batch
        made = self.generator(keras.random.normal((tf.shape(real)[0], 3), seed=self.noise))
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self.critic(made, training=True)) - tf.reduce_mean(self.critic(real, training=True))
        weights = self.critic.trainable_variables
        self.for_critic.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        with tf.GradientTape() as tape:
            made = self.generator(keras.random.normal((tf.shape(real)[0], 3), seed=self.noise))
            fooled = -tf.reduce_mean(self.critic(made, training=True))
        weights = self.generator.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(fooled, weights), weights, strict=True))
        self.turns.assign_add(1.0)
        return {"critic": loss, "generator": fooled}


def gan():
    model = Gan()
    model.compile(keras.optimizers.Adam(1e-3), keras.optimizers.RMSprop(1e-3))
    return model


def half():
    policy = keras.dtype_policies.DTypePolicy("mixed_float16")
    inner = [
        keras.layers.Dense(8, activation="relu", dtype=policy),
        keras.layers.Dropout(0.3, seed=2, dtype=policy),
        keras.layers.Dense(2, dtype="float32"),
    ]
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))
    return compiled(keras.Sequential([keras.Input((COLUMNS,)), *inner]), optimizer)


def scheduled():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 50, warmup_target=0.2, warmup_steps=5)
    return sequential(optimizer=keras.optimizers.SGD(schedule, momentum=0.9, use_ema=True))


def stateful():
    inputs = keras.Input(batch_shape=(BATCH, COLUMNS, 1))
    hidden = keras.layers.LSTM(4, stateful=True, recurrent_dropout=0.1, seed=4)(inputs)
    return compiled(keras.Model(inputs, keras.layers.Dense(2)(hidden)))


def with_dict():
    inputs = {"left": keras.Input((3,), name="left"), "right": keras.Input((3,), name="right")}
    hidden = keras.layers.Concatenate()([keras.layers.Dense(4)(inputs["left"]), inputs["right"]])
    return compiled(keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dropout(0.2)(hidden))))


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return SAMPLES // BATCH

    def __getitem__(self, index):
        x, y = data()
        return x[index * BATCH : (index + 1) * BATCH], y[index * BATCH : (index + 1) * BATCH]


def as_dict():
    x, y = data()
    return {"left": x[:, :3], "right": x[:, 3:]}, y


def as_sequences():
    x, y = data()
    return x[..., None], y


def as_dataset():
    return (tf.data.Dataset.from_tensor_slices(data()).batch(BATCH).repeat(),)


def as_generator():
    x, y = data()
    return (((x[:BATCH] + place, y[:BATCH]) for place in range(40)),)


def as_tensors():
    x, y = data()
    return tf.constant(x), tf.constant(y)


NETS = {
    "Sequential": (sequential, data),
    "functional": (functional, data),
    "subclassed": (lambda: compiled(Subclassed()), data),
    "a GAN": (gan, data),
    "mixed_float16": (half, data),
    "compiled by XLA": (lambda: functional(jit_compile=True), data),
    "a schedule": (scheduled, data),
    "a stateful LSTM": (stateful, as_sequences),
    "run eagerly": (lambda: sequential(run_eagerly=True), data),
    "several steps at once": (lambda: sequential(steps_per_execution=3), data),
    "an exploding net": (exploding, data),
    "a dict": (with_dict, as_dict),
    "a dataset": (sequential, as_dataset),
    "a PyDataset": (sequential, lambda: (Batches(),)),
    "a generator": (sequential, as_generator),
    "tensors": (sequential, as_tensors),
}
FIRST_TIER = {"Sequential", "subclassed"}


def variables(model):
    """Return, by identity, (variable, value) of everything that a model, its optimizers and its layers hold."""
    held = [*model.variables, *model.metrics_variables]
    for owner in (model, *vars(model).values()):
        optimizer = getattr(owner, "optimizer", owner)
        if isinstance(optimizer, keras.optimizers.Optimizer):
            held += optimizer.variables
    for layer in sublayers(model):
        held += [one for one in keras.tree.flatten(getattr(layer, "states", None)) if hasattr(one, "assign")]
        if isinstance(generator := getattr(layer, "seed_generator", None), keras.random.SeedGenerator):
            held.append(generator.state)
    return {id(one): (one, np.array(one)) for one in held}


def settings(model):
    """Return what the model and its optimizer are set to, and whether something stands in the way of a method."""
    optimizer = model.optimizer
    return {
        "fit": (model.train_function, model.stop_training, model.steps_per_execution, model.jit_compile),
        "mode": (model.run_eagerly, getattr(model, "history", None), model.compiled, model.trainable),
        "own": sorted(name for name in vars(model) if not name.startswith("_")),
        "optimizer": (
            id(optimizer),
            optimizer.get_config(),
            sorted(set(vars(optimizer)) & {"learning_rate", "update_step"}),
        ),
        "methods": ("train_step" in vars(model), "call" in vars(model), "compute_loss" in vars(model)),
        "layers": [("call" in vars(layer), "__call__" in vars(layer)) for layer in sublayers(model)],
    }


def everybodys_random_numbers():
    return random.random(), np.random.random(3).tolist(), tf.random.uniform((3,)).numpy().tolist()


def drawn(act):
    """Return the global random numbers that come after an act, from one and the same start."""
    keras.utils.set_random_seed(3)
    act()
    return everybodys_random_numbers()


CASES = [pytest.param(name, False, marks=() if name in FIRST_TIER else pytest.mark.slow) for name in NETS]
CASES += [pytest.param(name, True, marks=pytest.mark.slow) for name in ("functional", "a GAN", "a schedule")]


@pytest.fixture
def few_steps(monkeypatch):
    """Let a trial be short: what is put back does not depend on its length."""
    monkeypatch.setattr(trial, "STEPS", 6)
    monkeypatch.setattr(runs, "VARIED_STEPS", 3)


@pytest.mark.parametrize(("name", "trained"), CASES)
def test_the_model_is_afterwards_what_it_was_to_the_bit(name, trained, few_steps):
    make, given = NETS[name]
    model = make()
    if trained:
        model.fit(*given(), batch_size=BATCH, verbose=0)
    elif not model.built and name != "a GAN":
        model(given()[0][:1])
    if not trained and name != "a GAN":
        model.optimizer.build(model.trainable_variables)
    before, set_before = variables(model), settings(model)
    arguments = given()
    without = drawn(lambda: None)
    with_diagnosis = drawn(lambda: gr.diagnose(model, *arguments, batch_size=BATCH))
    after = variables(model)
    changed = [one for key, (one, value) in before.items() if not np.array_equal(value, after[key][1], equal_nan=True)]
    fresh = [value for key, (_, value) in after.items() if key not in before]  # metrics, built by the first step
    assert changed == []
    assert not any(np.any(value) for value in fresh)
    assert settings(model) == set_before
    assert with_diagnosis == without


def test_a_fit_after_a_diagnosis_is_the_fit_without_one(few_steps):
    def fitted(diagnosed):
        keras.utils.set_random_seed(5)
        model = functional()
        if diagnosed:
            gr.diagnose(model, *data(), batch_size=BATCH)
        history = model.fit(*data(), batch_size=BATCH, epochs=2, verbose=0).history
        return [np.array(one) for one in model.variables], history

    (plain, its_history), (diagnosed, history) = fitted(False), fitted(True)
    assert history == its_history
    assert all(np.array_equal(one, other) for one, other in zip(plain, diagnosed, strict=True))


def test_what_is_measured_depends_on_the_seed_alone(few_steps):
    def recorded():
        keras.utils.set_random_seed(5)
        return gr.diagnose(functional(), *data(), batch_size=BATCH).trace

    first, second = recorded(), recorded()
    assert np.array_equal(first.loss, second.loss)


def test_every_part_is_told_and_recorded():
    told = []
    trace = gr.diagnose(functional(), *data(), batch_size=BATCH, validation_data=data(), tell=told.append).trace
    assert told[0] == "reading the data" and len(told) >= 4
    probes = trace.probes
    assert None not in (probes.data, probes.validation, probes.signal, probes.signal_after, probes.trial)
    assert len(trace) == 100
    assert trace.description.batch_size == BATCH


def of_frozen_layers(*frozen):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((COLUMNS,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    for place in frozen:
        model.layers[place].trainable = False
    return compiled(model)


def test_a_net_without_a_trained_weight_is_told_so():
    found = gr.diagnose(of_frozen_layers(0, 1), *data())
    assert found.verdict == "unhealthy" and [one.code for one in found.findings] == ["frozen_weights"]


def test_frozen_weights_are_as_they_were_once_they_were_trained_for_a_while():
    model = of_frozen_layers(1)
    before, optimizer = [weight.copy() for weight in model.get_weights()], model.optimizer
    with unfrozen(model):
        assert len(model.trainable_variables) == 4 and model.optimizer is not optimizer
    assert len(model.trainable_variables) == 2 and not model.layers[1].kernel.trainable
    assert model.optimizer is optimizer
    assert all(np.array_equal(one, other) for one, other in zip(before, model.get_weights(), strict=True))


def of_two_heads():
    inputs = keras.Input((COLUMNS,))
    model = keras.Model(inputs, {name: keras.layers.Dense(1, name=name)(inputs) for name in ("a", "b")})
    model.compile("sgd", {"a": "mse", "b": "mse"}, loss_weights={"a": 1e-6, "b": 1.0})
    return model


def test_balanced_terms_begin_equally_large():
    model, (x, y) = of_two_heads(), data()
    target = y[:, None].astype("float32")
    batches = [(tf.constant(x[:BATCH]), {"a": tf.constant(target[:BATCH]), "b": tf.constant(100 * target[:BATCH])})]
    losses = OutputLosses(model, describe_model(model), batches)
    before = losses.measured()
    _, _, factors = losses.balanced(before, 0.0)[0]
    terms = [
        weight * float(part[0]) * float(factors[name][0])
        for name, weight, part in zip("ab", (1e-6, 1.0), before, strict=True)
    ]
    assert terms[0] == pytest.approx(terms[1], rel=1e-4)


def test_variations_are_decided_at_the_start_and_not_where_the_last_one_ended(monkeypatch):
    changed, varied = [], Trial.varied

    def noted(self, steps, **change):
        changed.append(change)
        return varied(self, steps, **change)

    monkeypatch.setattr(runs, "VARIED_STEPS", 4)
    monkeypatch.setattr(Trial, "varied", noted)
    found = gr.diagnose(exploding(), *data(), batch_size=BATCH, steps=10).trace.probes.trial.variations
    assert {"as_it_is", "fitting_weights"} <= set(found)
    assert "fresh_optimizer" not in found  # the optimizer has never run
    weights = [change["weights"] for change in changed if change.get("weights")]
    assert weights and all(np.isfinite(value).all() for one in weights for value in one.values())


def test_a_trial_that_is_too_short_to_tell_goes_on():
    x = np.random.default_rng(0).normal(size=(SAMPLES, COLUMNS)).astype("float32")
    y = x[:, :1] + 3.0
    start = keras.Sequential([keras.Input((COLUMNS,)), keras.layers.Dense(1)])
    start.compile(keras.optimizers.SGD(0.01), "mse")
    weights = start.get_weights()
    diagnosis = gr.diagnose(start, x, y, batch_size=BATCH, steps=12)
    read = diagnosis.trace.probes.trial
    assert read.further_steps == 4 * read.steps and read.further[0].end < read.further[0].start
    assert all(np.array_equal(*pair) for pair in zip(weights, start.get_weights(), strict=True))
