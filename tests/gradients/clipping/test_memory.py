"""The methods that remember, each against its rule in numpy float64 over a run that has NaN and Inf steps in it."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradrecipes.gradients.clipping import StepGradients, adaptive_by_tensor, by_percentile, by_z_score
from gradrecipes.gradients.norms import measure_norms
from gradrecipes.gradients.packing import PackedTensors

SHAPES = [(4, 3), (3,), (4, 3)]
STATEFUL = [
    by_percentile(30.0, window=7, max_norm=50.0),
    by_percentile(),
    by_z_score(1.2, decay=0.9, warm_up=5, max_norm=40.0),
    by_z_score(warm_up=3, max_norm=None),
    adaptive_by_tensor(1.05, decay=0.8, warm_up=4, max_norm=5.0),
]
each_method = pytest.mark.parametrize("method", STATEFUL, ids=lambda method: str(method)[:40])


def run_of_gradients(steps: int, seed: int = 0) -> list[list[np.ndarray]]:
    """Return gradients whose norms wander, with spikes, a zero, NaN and Inf, and some above 1.8e19."""
    random = np.random.default_rng(seed)
    level = np.exp(np.cumsum(random.normal(0, 0.15, steps)))
    run = []
    for step in range(steps):
        spike = 10.0 ** random.integers(1, 25) if random.random() < 0.1 else 1.0
        arrays = [(random.normal(size=s) * level[step] * min(spike, 1e25)).astype(np.float32) for s in SHAPES]
        if step % 11 == 7:
            arrays[step % 3].flat[0] = (np.nan, np.inf, -np.inf)[step % 3]
        if step % 13 == 5:
            arrays = [np.zeros_like(a) for a in arrays]
        run.append(arrays)
    return run


def norm64(*arrays) -> float:
    return math.sqrt(sum(float(np.sum(np.square(a.astype(np.float64)))) for a in arrays))


class Percentile64:
    """AutoClip over past norms, in plain Python."""

    def __init__(self, method, tensors):
        self.method, self.past = method, []

    def bounds(self, norms):
        past = sorted(self.past[-self.method.window :])
        bound = past[math.floor(self.method.percentile * (len(past) - 1) / 100)] if past else math.inf
        return [min(bound, self.method.max_norm or math.inf)], "whole"

    def learn(self, norms):
        if norm := math.hypot(*norms):
            self.past.append(norm)


class ZScore64:
    def __init__(self, method, tensors):
        self.method, self.first, self.mean, self.variance = method, [], None, None

    def _limit(self, norm):
        deviation = math.sqrt(self.variance)
        z = (norm - self.mean) / (deviation + 1e-6)
        wild = z > self.method.threshold
        return self.mean + self.method.threshold * deviation * self.method.threshold / z if wild else norm

    def bounds(self, norms):
        norm, cap = math.hypot(*norms), self.method.max_norm or math.inf
        return [cap if self.mean is None else min(self._limit(norm), cap)], "whole"

    def learn(self, norms):
        norm, decay = math.hypot(*norms), self.method.decay
        if not norm:
            return
        if self.mean is None:
            self.first.append(norm)
            if len(self.first) == self.method.warm_up:
                self.mean, self.variance = np.mean(self.first), np.var(self.first)
            return
        value = self._limit(norm)
        self.mean = decay * self.mean + (1 - decay) * value
        self.variance = decay * self.variance + (1 - decay) * (value - self.mean) ** 2


class TensorAverage64:
    def __init__(self, method, tensors):
        self.method, self.steps, self.averages, self.runs = method, 0, [0.0] * tensors, [0] * tensors

    def bounds(self, norms):
        method = self.method
        if self.steps < method.warm_up:
            return [method.max_norm], "whole"
        return [method.max_ratio * average if average else method.max_norm for average in self.averages], "each"

    def learn(self, norms):
        method, (bounds, kind) = self.method, self.bounds(norms)
        factor = min(1.0, method.max_norm / max(math.hypot(*norms), 1e-300))
        for i, norm in enumerate(norms):
            if norm == 0:
                continue
            if kind == "whole":
                self.runs[i], heard = 0, norm * factor
            else:
                self.runs[i] = self.runs[i] + 1 if norm > bounds[i] else 0
                heard = min(norm, bounds[i] * (10.0 if self.runs[i] > 1 / (1 - method.decay) else 1.0))
            old = self.averages[i]
            self.averages[i] = method.decay * old + (1 - method.decay) * heard if old else heard
        self.steps += 1


RULES = {by_percentile: Percentile64, by_z_score: ZScore64, adaptive_by_tensor: TensorAverage64}


def make_step(method, tensors: int, *, jit_compile=None, eager=False):
    """Return the method as a function of gradients, and its state."""
    state = method.make_state(tensors)

    def step(gradients, loss_scale, learn):
        packed = PackedTensors(gradients, xla=bool(jit_compile))
        clipped = method.clip(StepGradients(packed, measure_norms(packed), loss_scale, state=state, learn=learn))
        return clipped.scaled().unpacked(), clipped.factor

    function = step if eager else tf.function(step, jit_compile=jit_compile)
    return lambda arrays, loss_scale=1.0, learn=True: function(
        [tf.constant(a) for a in arrays], tf.constant(loss_scale, tf.float32), tf.constant(learn)
    ), state


def expected64(rule, arrays):
    norms = [norm64(a) for a in arrays]
    bounds, kind = rule.bounds(norms)
    factors = [min(1.0, bounds[0] / max(math.hypot(*norms), 1e-300))] * len(arrays)
    if kind == "each":
        factors = [min(1.0, b / max(n, 1e-300)) for b, n in zip(bounds, norms, strict=True)]
    return [a.astype(np.float64) * f for a, f in zip(arrays, factors, strict=True)], norms


@pytest.mark.parametrize("loss_scale", [1.0, 1024.0])
@each_method
def test_it_follows_its_rule_step_by_step_and_bad_steps_never_enter(method, loss_scale):
    step, state = make_step(method, len(SHAPES))
    rule = RULES[type(method)](method, len(SHAPES))
    clipped_steps = 0
    for arrays in run_of_gradients(150):
        after, factor = step([a * np.float32(loss_scale) for a in arrays], loss_scale)
        if not all(np.isfinite(a).all() for a in arrays):
            continue
        expected, norms = expected64(rule, arrays)
        for mine, theirs in zip(after, expected, strict=True):
            np.testing.assert_allclose(mine.numpy() / loss_scale, theirs, rtol=3e-4, atol=1e-30)
        before = math.hypot(*norms)
        np.testing.assert_allclose(factor, norm64(*expected) / before if before else 1.0, rtol=3e-4, atol=1e-37)
        clipped_steps += float(factor) < 1
        rule.learn(norms)
    assert 5 < clipped_steps < 140
    finite = [variable for variable in state if variable.dtype.is_floating]
    assert all(not np.isnan(variable.numpy()).any() for variable in finite)


@each_method
def test_a_step_that_is_not_to_be_learned_leaves_the_memory_as_it_was(method):
    step, state = make_step(method, len(SHAPES), eager=True)
    run = run_of_gradients(40)
    for arrays in run[:20]:
        step(arrays)
    before = [variable.numpy().tobytes() for variable in state]
    for arrays in run[20:30]:
        step(arrays, learn=False)
    step([np.full(s, np.nan, np.float32) for s in SHAPES])
    step([np.full(s, np.inf, np.float32) for s in SHAPES])
    assert [variable.numpy().tobytes() for variable in state] == before
    step(run[32])
    assert [variable.numpy().tobytes() for variable in state] != before


@pytest.mark.slow
@each_method
def test_xla_gives_the_same(method):
    plain, state = make_step(method, len(SHAPES))
    compiled, compiled_state = make_step(method, len(SHAPES), jit_compile=True)
    for arrays in run_of_gradients(60, seed=3):
        mine, factor = compiled(arrays)
        theirs, their_factor = plain(arrays)
        if all(np.isfinite(a).all() for a in arrays):
            np.testing.assert_allclose(factor, their_factor, rtol=1e-4, atol=1e-37)
            for one, other in zip(mine, theirs, strict=True):
                np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-4, atol=1e-30)
    for one, other in zip(compiled_state, state, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-4)


@each_method
def test_half_precision_and_slices_are_remembered_as_what_they_stand_for(method):
    half, half_state = make_step(method, len(SHAPES), eager=True)
    full, state = make_step(method, len(SHAPES), eager=True)
    random = np.random.default_rng(0)
    for _ in range(12):
        arrays = [random.normal(size=s).astype(np.float16) for s in SHAPES]
        half(arrays)
        full([a.astype(np.float32) for a in arrays])
    for one, other in zip(half_state, state, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-3)

    values, indices = random.normal(size=(3, 2)).astype(np.float32), [1, 1, 0]
    dense = np.zeros((4, 2), np.float32)
    np.add.at(dense, indices, values)
    slices = tf.IndexedSlices(tf.constant(values), tf.constant(indices), tf.constant([4, 2]))
    remembered = []
    for gradient in (slices, tf.constant(dense)):
        memory = method.make_state(1)
        packed = PackedTensors([gradient])
        method.clip(StepGradients(packed, measure_norms(packed), tf.constant(1.0), state=memory))
        remembered.append([variable.numpy() for variable in memory])
    for one, other in zip(*remembered, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@each_method
def test_the_memory_is_made_once_inside_a_traced_function_and_a_strategy(method):
    made = []

    @tf.function
    def traced():
        made.append(method.make_state(2))
        return tf.constant(0)

    with tf.distribute.OneDeviceStrategy("cpu:0").scope():
        traced()
    assert all(type(variable).__name__ == "ResourceVariable" for variable in made[0])
    assert [variable.numpy().size for variable in made[0]]


@each_method
def test_arguments_come_back_from_a_config(method):
    config = keras.saving.serialize_keras_object(method)
    assert config["registered_name"] == f"gradrecipes>{type(method).__name__}"
    assert keras.saving.deserialize_keras_object(config) == method


def norms_only(method, norms):
    """Feed a run of gradients of one entry and return the norms that come out."""
    step, _ = make_step(method, 1)
    return np.array([abs(float(step([np.array([norm], np.float32)])[0][0][0])) for norm in norms])


def test_a_layer_whose_first_norms_were_tiny_is_not_frozen():
    method = adaptive_by_tensor(warm_up=20, max_norm=1.0)
    after = norms_only(method, [1e-9] * 25 + [0.5] * 1200)
    np.testing.assert_allclose(after[-200:], 0.5, rtol=1e-5)
    paper = 1.05e-9 * (0.98 + 0.02 * 1.05) ** 1200  # what the average would allow if it heard clipped norms only
    assert paper < 1e-8


def test_a_spike_does_not_raise_the_bound_of_its_tensor():
    after = norms_only(adaptive_by_tensor(warm_up=20), [0.5] * 60 + [1e6] * 3 + [0.5, 0.6])
    np.testing.assert_allclose(after[60:63], 0.525, rtol=5e-3)
    assert after[-1] < 0.54


def test_z_score_keeps_ordinary_norms_and_cuts_a_spike_below_its_threshold():
    random = np.random.default_rng(0)
    usual = np.exp(random.normal(0, 0.1, 300))
    after = norms_only(by_z_score(max_norm=None), [*usual, 1e25, *usual[:5]])
    assert after[300] < 1.3
    np.testing.assert_allclose(after[301:], usual[:5], rtol=1e-6)
    assert np.mean(after[25:300] < usual[25:] * 0.9999) < 0.05


def test_a_percentile_is_not_drawn_up_by_a_spike_among_few():
    after = norms_only(by_percentile(), [1.0, 1e30, 1e30, 2.0])
    np.testing.assert_allclose(after, [1.0, 1.0, 1.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: by_percentile(0), r"`percentile` must be a number above 0 and at most 100. Received: percentile=0\."),
        (lambda: by_percentile(101.0), "percentile=101.0"),
        (lambda: by_percentile(window=0), "`window` must be a whole number of steps, at least 1. Received: window=0"),
        (lambda: by_percentile(window=10**7), "at most 100000. Received: window=10000000"),
        (lambda: by_percentile(window=2.5), "window=2.5"),
        (lambda: by_percentile(max_norm=-1), "`max_norm` must be a positive number"),
        (lambda: by_z_score(0), "`threshold` must be a positive number"),
        (lambda: by_z_score(decay=1.0), "`decay` must be a number between 0 and 1, both left out. Received: decay=1.0"),
        (lambda: by_z_score(warm_up=0), "`warm_up` must be a whole number"),
        (lambda: adaptive_by_tensor(0.9), "`max_ratio` must be at least 1. Received: max_ratio=0.9"),
        (lambda: adaptive_by_tensor(decay=0), "`decay` must be"),
        (lambda: adaptive_by_tensor(warm_up=True), "`warm_up` must be a whole number"),
    ],
    ids=range(12),
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@each_method
def test_what_is_remembered_is_finite_from_the_beginning(method):
    for variable in method.make_state(3):  # a guard takes what is not for a state that broke
        assert np.isfinite(variable.numpy()).all()
