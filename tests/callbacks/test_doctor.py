from __future__ import annotations

import copy
import logging

import keras
import numpy as np
import pytest

import gradrecipes as gr

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def data(samples=640):
    random = np.random.default_rng(0)
    y = random.integers(0, 4, samples)
    return (random.normal(size=(samples, 8)) + 2 * np.eye(4, 8)[y]).astype("float32"), y


def net(*, variance=2.0, depth=2, optimizer="adam", **options):
    keras.utils.set_random_seed(0)
    start = keras.initializers.VarianceScaling(variance, "fan_in", "untruncated_normal", seed=1)
    model = keras.Sequential([keras.Input((8,))])
    for _ in range(depth):
        model.add(keras.layers.Dense(16, activation="relu", kernel_initializer=start.clone()))
    model.add(keras.layers.Dropout(0.1, seed=2))
    model.add(keras.layers.Dense(4))
    model.compile(optimizer, LOGITS, **options)
    return model


def exploding():
    return net(variance=200.0, depth=8, optimizer=keras.optimizers.SGD(0.01))


def test_it_speaks_once_when_it_is_sure_and_says_after_how_many_steps(caplog):
    told, doctor = [], None
    x, y = data()
    doctor = gr.Doctor(data=(x, y), check_every=5, on_finding=told.append)
    with caplog.at_level(logging.WARNING, logger="gradrecipes"):
        exploding().fit(x, y, epochs=2, batch_size=32, verbose=0, callbacks=[doctor])
    codes = [finding.code for finding in doctor.findings]
    assert "exploding_initialization" in codes
    assert len(codes) == len(set(codes)) and told == doctor.findings
    assert doctor.steps["exploding_initialization"] <= 15
    said = [record.getMessage() for record in caplog.records if "exploding_initialization" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith(f"After {doctor.steps['exploding_initialization']} steps it is very likely")
    assert "weights too large → " in said[0] and "Remedy: " in said[0]
    assert not doctor.diagnosis.healthy and None not in (doctor.trace.probes.data, doctor.trace.probes.signal)
    events = [event.reason for event in doctor.trace.events if event.kind == "finding"]
    assert events == codes


def test_a_critical_finding_ends_the_training_if_that_is_wanted():
    x, y = data()
    doctor = gr.Doctor(check_every=2, stop=True)
    history = exploding().fit(x, y, epochs=5, batch_size=32, verbose=0, callbacks=[doctor])
    assert len(history.epoch) == 1
    assert doctor.stop_reason == doctor.findings[0].title or doctor.stop_reason in [f.title for f in doctor.findings]
    assert len(doctor.trace) <= 10


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"steps_per_execution": 4, "jit_compile": True}, marks=pytest.mark.slow)]
)
def test_it_is_silent_over_a_healthy_training_and_changes_no_bit_of_it(options):
    def weights(callbacks):
        model = net(**options)
        model.fit(*data(), epochs=6, batch_size=32, verbose=0, callbacks=callbacks)
        return [np.array(one) for one in model.variables]

    doctor = gr.Doctor(data=data(), check_every=10)
    assert all(map(np.array_equal, weights([]), weights([doctor])))
    assert doctor.findings == [] and doctor.diagnosis.healthy
    assert len(doctor.trace) == 120


def test_it_shares_the_record_with_a_monitor_and_can_be_copied():
    x, y = data(320)
    monitor, doctor = gr.GradientMonitor(), copy.deepcopy(gr.Doctor(data=(x, y), check_every=3))
    net().fit(x, y, verbose=0, callbacks=[monitor, doctor])
    assert monitor.trace is doctor.trace
    assert monitor.trace.probes.data is not None
    again = copy.deepcopy(doctor)
    net().fit(x, y, verbose=0, callbacks=[again])
    assert len(again.trace) == 10 and again._request.check.__self__ is again


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"check_every": 0}, ValueError, "`check_every` must be a whole number, at least 1"),
        ({"stop": "no"}, TypeError, "`stop` must be True or False"),
        ({"data": np.ones(3)}, TypeError, r"`data` must be \(x, y\).*Received: a ndarray"),
        ({"data": (1,)}, TypeError, r"`data` must be \(x, y\)"),
        ({"on_finding": 3}, TypeError, "on_finding=3"),
    ],
)
def test_wrong_arguments_are_refused_in_words(arguments, kind, words):
    with pytest.raises(kind, match=words):
        gr.Doctor(**arguments)


def test_beside_a_guard_its_keys_join_the_logs_and_an_epoch_of_skipped_steps_has_no_loss_of_0():
    x, y = data(64)
    x[[0, 33]] = np.nan
    guard = gr.GradientGuard(max_consecutive_skips=50)
    history = net().fit(x, y, verbose=0, callbacks=[guard, gr.Doctor()]).history
    assert history["skipped_steps"] == [2]
    assert history["loss"][0] > 1e30


@pytest.mark.slow
def test_logits_of_an_attention_that_grow_are_reported_while_the_loss_is_a_number():
    tokens = np.random.default_rng(0).integers(0, 16, size=(640, 12))
    targets = np.where(np.arange(12) < 2, 0, np.roll(tokens, 2, axis=1))

    def run(rate):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((12,))
        x = keras.layers.Embedding(16, 32)(inputs) + keras.layers.Embedding(12, 32)(keras.ops.arange(12))
        for _ in range(2):
            normal = keras.layers.LayerNormalization()(x)
            x = x + keras.layers.MultiHeadAttention(2, 16)(normal, normal, use_causal_mask=True)
            x = x + keras.layers.Dense(32)(keras.layers.Dense(64, "gelu")(keras.layers.LayerNormalization()(x)))
        model = keras.Model(inputs, keras.layers.Dense(16)(x))
        model.compile(keras.optimizers.Adam(rate), LOGITS)
        doctor = gr.Doctor(data=(tokens, targets))
        model.fit(tokens, targets, batch_size=32, epochs=12, verbose=0, callbacks=[doctor])
        assert copy.deepcopy(doctor).steps == doctor.steps
        return doctor

    def readings(doctor):
        return doctor.trace.probes.signal, doctor.trace.probes.signal_after

    doctor = run(0.1)
    assert {"attention_logit_growth", "learning_rate_too_high"} & set(doctor.steps)
    assert np.isfinite(doctor.trace.loss).all()
    before, after = (max(one.spread for one in read.attention) for read in readings(doctor))
    assert after > 3 * before
    healthy = run(0.003)
    assert not healthy.steps and healthy.trace.probes.signal_after.attention


@pytest.mark.slow
def test_steps_that_grow_without_end_are_reported_long_before_the_loss_breaks():
    rate = keras.optimizers.schedules.ExponentialDecay(1e-2, decay_steps=40, decay_rate=1.15)
    doctor = gr.Doctor()
    model = net(optimizer=keras.optimizers.SGD(rate), jit_compile=False)
    model.fit(*data(), batch_size=32, epochs=110, verbose=0, callbacks=[doctor])
    loss = doctor.trace.loss
    of_guess = np.log(4.0)
    breaks = next(step for step in range(200, len(loss)) if np.median(loss[step : step + 20]) > of_guess)
    assert doctor.steps["runaway_weights"] < breaks - 50
