"""Nets simulated in numpy, forwards, backwards and step by step, recorded as a callback would record them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from gradrecipes.core.signal_theory import ACTIVATIONS
from gradrecipes.core.trace import SKIPPED_GRADIENT, SKIPPED_LOSS, Trace
from gradrecipes.core.trace.description import Description
from tests.diagnosis import hand_made
from tests.records import described

FLOAT = np.float32


# -- initializers: (random, fan_in, fan_out) -> matrix ---------------------------------------------------
def normal(std: float):
    return lambda random, fan_in, fan_out: random.normal(0.0, std, (fan_in, fan_out))


def scaled(variance: float):
    """Return weights with sigma_w^2 = fan_in * Var(W) = variance: 2 for He, 1 for LeCun."""
    return lambda random, fan_in, fan_out: random.normal(0.0, math.sqrt(variance / fan_in), (fan_in, fan_out))


def glorot(random, fan_in, fan_out):
    limit = math.sqrt(6.0 / (fan_in + fan_out))
    return random.uniform(-limit, limit, (fan_in, fan_out))


def orthogonal(gain: float = 1.0):
    def draw(random, fan_in, fan_out):
        tall, _ = np.linalg.qr(random.standard_normal((max(fan_in, fan_out), min(fan_in, fan_out))))
        return gain * (tall if fan_in >= fan_out else tall.T)

    return draw


def constant(value: float):
    return lambda random, fan_in, fan_out: np.full((fan_in, fan_out), value)


he, lecun = scaled(2.0), scaled(1.0)


@dataclass
class Net:
    """Say what to simulate. `bad_batches` are steps whose inputs hold a NaN; `guard` leaves broken steps out."""

    widths: tuple[int, ...] = (64,) * 5
    weights: Callable = he
    activation: str = "relu"
    separate: bool = False
    normalization: str | None = None
    residual: bool = False
    loss: str = "sparse_categorical_crossentropy"
    inputs: int = 64
    outputs: int = 10
    input_scale: float = 1.0
    target_scale: float = 1.0
    optimizer: str = "SGD"
    rate: float = 0.01
    steps: int = 1
    batch: int = 64
    sample_every: int = 10
    bad_batches: tuple[int, ...] = ()
    guard: bool = False
    seed: int = 0
    spikes: dict[int, float] = field(default_factory=dict)  # step -> factor on the learning rate of that step alone

    def but(self, **changes: Any) -> Net:
        return replace(self, **changes)


class Simulation:
    """Run a Net and fill a Trace."""

    def __init__(self, net: Net):
        self.net, self.random = net, np.random.default_rng(net.seed)
        self.plan: list[tuple[str, str, str]] = []  # name, kind, activation
        self.params: dict[str, list[np.ndarray]] = {}
        self._build()
        self.slots: dict[tuple[str, int], list[np.ndarray]] = {}
        self.centers = self.random.standard_normal((net.outputs, net.inputs))

    def _build(self) -> None:
        net, before = self.net, self.net.inputs
        for index, width in enumerate((*net.widths, net.outputs)):
            head = index == len(net.widths)
            fused = not (head or net.separate or net.normalization)
            name = "head" if head else f"dense_{index}"
            squared = net.loss == "mean_squared_error"
            activation = ("linear" if squared else "softmax") if head else net.activation if fused else "linear"
            self.plan.append((name, "Dense", activation))
            draw = glorot if head and net.normalization is None and len(net.widths) > 1 else net.weights
            kernel = draw(self.random, before, width).astype(FLOAT)
            self.params[name] = [kernel, np.zeros(width, FLOAT)]
            if not head and net.normalization:
                self.plan.append((f"{net.normalization}_{index}", f"{net.normalization}Normalization", ""))
            if not head and not fused:
                self.plan.append((f"activation_{index}", "Activation", net.activation))
            if not head and net.residual and index % 2 == 1:
                self.plan.append((f"add_{index}", "Add", ""))
            before = width

    def description(self) -> dict[str, Any]:
        net, layers = self.net, []
        for name, kind, activation in self.plan:
            kernel = self.params[name][0] if name in self.params else None
            layers.append(
                {
                    "name": name,
                    "kind": kind,
                    "activation": activation or None,
                    "initializer": None if kernel is None else "RandomNormal",
                    "fan_in": None if kernel is None else kernel.shape[0],
                    "units": None if kernel is None else kernel.shape[1],
                    "weight_std": None if kernel is None else float(np.std(kernel, dtype=float)),
                    "parameters": sum(p.size for p in self.params.get(name, [])),
                    "trainable": True,
                }
            )
        return {
            "model": "sequential",
            "optimizer": {"name": net.optimizer, "learning_rate": net.rate},
            "learning_rate": net.rate,
            "loss": net.loss,
            "batch_size": net.batch,
            "precision": "float32",
            "layers": layers,
        }

    def run(self) -> Trace:
        trace = Trace([name for name, _, _ in self.plan], description=described(self.description()))
        with np.errstate(all="ignore"):
            for step in range(self.net.steps):
                self._step(trace, step)
        return trace

    def _data(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        net = self.net
        labels = self.random.integers(0, net.outputs, net.batch)
        x = (self.centers[labels] + self.random.standard_normal((net.batch, net.inputs))) / math.sqrt(2)
        if net.inputs == 1:
            x = np.ones_like(x)
        x = x * net.input_scale
        if step in net.bad_batches:
            x[0, 0] = np.nan
        if net.loss == "mean_squared_error":
            return x.astype(FLOAT), (net.target_scale * (x[:, :1] / net.input_scale)).astype(FLOAT)
        return x.astype(FLOAT), labels

    def _step(self, trace: Trace, step: int) -> None:
        net = self.net
        x, y = self._data(step)
        outputs, backs = self._forward(x)
        loss, gradient = self._loss(outputs[-1], y)
        gradients, output_gradients = self._backward(backs, gradient)
        norms = {name: math.sqrt(sum(_square(g) for g in parts)) for name, parts in gradients.items()}
        total = math.sqrt(sum(norm**2 for norm in norms.values()))
        outcome = 0
        if net.guard and not math.isfinite(total):
            outcome = SKIPPED_GRADIENT if math.isfinite(loss) else SKIPPED_LOSS
        weight_norms = {name: math.sqrt(sum(_square(p) for p in parts)) for name, parts in self.params.items()}
        updates = self._update(gradients, step) if outcome == 0 else dict.fromkeys(self.params, 0.0)
        columns = [name for name, _, _ in self.plan]

        def by_layer(values: dict[str, float]) -> list[float]:
            return [values.get(name, math.nan) for name in columns]

        trace.append(
            step=step,
            epoch=step // 20,
            batch=step % 20,
            loss=loss,
            gradient_norm=total,
            clip_factor=1.0,
            outcome=outcome,
            layer_gradient_norm=by_layer(norms),
        )
        if step % net.sample_every == 0 or not math.isfinite(loss) or not math.isfinite(total):
            bad = {name: float(np.mean([not np.isfinite(g).all() for g in parts])) for name, parts in gradients.items()}
            ratios = {name: updates[name] / weight_norms[name] for name in updates}
            trace.extend_samples(
                step=[step],
                output_rms=[[math.sqrt(_square(h) / h.size) for h in outputs]],
                output_gradient_norm=[[math.sqrt(_square(g)) for g in output_gradients]],
                weight_norm=[by_layer(weight_norms)],
                update_norm=[by_layer(updates)],
                update_ratio=[by_layer(ratios)],
                nonfinite_share=[by_layer(bad)],
            )

    def _forward(self, x: np.ndarray) -> tuple[list[np.ndarray], list]:
        outputs, backs, h, skip = [], [], x, None
        for index, (name, kind, activation) in enumerate(self.plan):
            if kind == "Dense":
                kernel, bias = self.params[name]
                z = h @ kernel + bias
                derivative = None
                if activation in ACTIVATIONS and activation != "linear":
                    derivative = ACTIVATIONS[activation].derivative(z).astype(FLOAT)
                    z = ACTIVATIONS[activation].function(z).astype(FLOAT)
                backs.append(("dense", name, h, derivative))
                h = z
            elif kind == "Activation":
                backs.append(("activation", ACTIVATIONS[activation].derivative(h).astype(FLOAT)))
                h = ACTIVATIONS[activation].function(h).astype(FLOAT)
            elif kind.endswith("Normalization"):
                axis = 0 if kind.startswith("Batch") else 1
                std = np.sqrt(h.var(axis=axis, keepdims=True) + FLOAT(1e-3))
                h = (h - h.mean(axis=axis, keepdims=True)) / std
                backs.append(("normalization", h, std, axis))
            else:
                h = h + skip if skip is not None and skip.shape == h.shape else h
                backs.append(("add", index))
            if kind == "Add" or index == 0:
                skip = h
            outputs.append(h)
        return outputs, backs

    def _loss(self, logits: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
        if self.net.loss == "mean_squared_error":
            error = (logits[:, :1] - y).astype(FLOAT)
            gradient = np.zeros_like(logits)
            gradient[:, :1] = 2 * error / len(y)
            return float(np.mean(error**2)), gradient
        shifted = logits - logits.max(axis=1, keepdims=True)
        shares = np.exp(shifted)
        shares /= shares.sum(axis=1, keepdims=True)
        rows = np.arange(len(y))
        loss = float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[rows, y]))
        shares[rows, y] -= 1
        return loss, (shares / len(y)).astype(FLOAT)

    def _backward(self, backs: list, gradient: np.ndarray) -> tuple[dict[str, list[np.ndarray]], list[np.ndarray]]:
        gradients, output_gradients, skip = {}, [], None
        first_of_skip = {i for i, b in enumerate(backs) if b[0] == "add"} | {0}
        for index in range(len(backs) - 1, -1, -1):
            if index in first_of_skip and skip is not None:
                gradient = gradient + skip if skip.shape == gradient.shape else gradient
                skip = None
            output_gradients.append(gradient)
            back = backs[index]
            if back[0] == "dense":
                _, name, h, derivative = back
                gradient = gradient if derivative is None else gradient * derivative
                gradients[name] = [h.T @ gradient, gradient.sum(axis=0)]
                gradient = gradient @ self.params[name][0].T
            elif back[0] == "activation":
                gradient = gradient * back[1]
            elif back[0] == "normalization":
                _, h, std, axis = back
                mean = gradient.mean(axis=axis, keepdims=True)
                along = (gradient * h).mean(axis=axis, keepdims=True)
                gradient = (gradient - mean - h * along) / std
            else:
                skip = gradient
        return gradients, output_gradients[::-1]

    def _update(self, gradients: dict[str, list[np.ndarray]], step: int) -> dict[str, float]:
        rate, norms = self.net.rate * self.net.spikes.get(step, 1.0), {}
        for name, parts in gradients.items():
            moved = []
            for index, gradient in enumerate(parts):
                change = rate * gradient
                if self.net.optimizer == "Adam":
                    first, second = self.slots.setdefault((name, index), [np.zeros_like(gradient) for _ in range(2)])
                    first += 0.1 * (gradient - first)
                    second += 0.001 * (gradient**2 - second)
                    corrected = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
                    change = rate * corrected[0] / (np.sqrt(corrected[1]) + 1e-7)
                self.params[name][index] = (self.params[name][index] - change).astype(FLOAT)
                moved.append(change)
            norms[name] = math.sqrt(sum(_square(change) for change in moved))
        return norms


def _square(values: np.ndarray) -> float:
    return float(np.sum(np.square(values, dtype=np.float64)))


def record(net: Net) -> Trace:
    return Simulation(net).run()


def losses(values: list[float] | np.ndarray, *, norms: Any = 1.0, outcome: Any = 0, update: float = 1e-3) -> Trace:
    """Return a trace with the given losses and nothing else but gradients and updates of a sound size."""
    values = np.asarray(values, FLOAT)
    trace = Trace(["dense"], description=described({"optimizer": {"name": "SGD", "learning_rate": 0.1}}))
    steps = np.arange(len(values))
    norms = np.broadcast_to(np.asarray(norms, FLOAT), values.shape)
    trace.extend(
        step=steps,
        epoch=steps // 20,
        batch=steps % 20,
        loss=values,
        gradient_norm=norms,
        clip_factor=np.ones(len(values)),
        outcome=np.broadcast_to(np.asarray(outcome), values.shape),
        layer_gradient_norm=norms[:, None],
    )
    trace.extend_samples(step=[0], weight_norm=[[10.0]], update_ratio=[[update]], nonfinite_share=[[0.0]])
    return trace


def noisy(values: np.ndarray, spread: float = 0.2, seed: int = 0) -> np.ndarray:
    return values * np.exp(spread * np.random.default_rng(seed).standard_normal(len(values)))


def falling(steps: int = 300) -> np.ndarray:
    return 0.2 + 2.1 * np.exp(-np.arange(steps) / 60.0)


def without(trace: Trace, *keys: str) -> Trace:
    known = Description()
    trace.description = replace(trace.description, **{key: getattr(known, key) for key in keys})
    return trace


def spliced(values: np.ndarray, at: int, insert: list[float]) -> np.ndarray:
    values = np.array(values, dtype=float)
    values[at : at + len(insert)] = insert
    return values


def _steps(length: int, at: dict[int, int]) -> np.ndarray:
    outcome = np.zeros(length, int)
    for row, value in at.items():
        outcome[row] = value
    return outcome


HE, DEEP = Net(), Net(widths=(64,) * 30)
# Every trace by name. Each is built when it is asked for.
TRACES: dict[str, Callable[[], Trace]] = {
    "empty": lambda: Trace(["dense"]),
    "no_layers": lambda: Trace(),
    # initialization, sound
    "he": lambda: record(HE),
    "he_2_layers": lambda: record(Net(widths=(64, 64))),
    "he_100_layers_width_16": lambda: record(Net(widths=(16,) * 100)),
    "he_100_layers_width_64": lambda: record(Net(widths=(64,) * 100, seed=3)),
    "he_6_layers_width_1024": lambda: record(Net(widths=(1024,) * 6)),
    "he_narrowing": lambda: record(Net(widths=(1024, 512, 256, 128, 64, 32, 16))),
    "glorot_tanh": lambda: record(DEEP.but(weights=glorot, activation="tanh")),
    "lecun_selu_100_layers": lambda: record(Net(widths=(64,) * 100, weights=lecun, activation="selu")),
    "orthogonal": lambda: record(DEEP.but(weights=orthogonal(math.sqrt(2)))),
    "batch_normalized_std_1": lambda: record(DEEP.but(weights=normal(1.0), normalization="Batch")),
    "layer_normalized_std_1": lambda: record(DEEP.but(weights=normal(1.0), normalization="Layer")),
    "residual_10_blocks": lambda: record(Net(widths=(64,) * 20, residual=True)),
    "unscaled_inputs": lambda: record(HE.but(input_scale=1e4, steps=30)),
    "unscaled_targets": lambda: record(HE.but(loss="mean_squared_error", target_scale=1e4, steps=30)),
    "2_layers_slightly_large": lambda: record(Net(widths=(64, 64), weights=scaled(8.0))),
    "3_layers_slightly_large": lambda: record(Net(widths=(64, 64, 64), weights=scaled(5.0))),
    "large_without_description": lambda: without(record(DEEP.but(weights=scaled(4.0))), "layers"),
    # initialization, exploding
    "variance_4_at_30_layers": lambda: record(DEEP.but(weights=scaled(4.0))),
    "variance_4_activations_apart": lambda: record(DEEP.but(weights=scaled(4.0), separate=True)),
    "std_1_at_5_layers": lambda: record(HE.but(weights=normal(1.0))),
    "std_1_at_5_layers_trained": lambda: record(HE.but(weights=normal(1.0), steps=40)),
    "tanh_std_1_at_12_layers": lambda: record(Net(widths=(64,) * 12, weights=normal(1.0), activation="tanh")),
    "chain_of_20_neurons": lambda: record(
        Net(widths=(1,) * 19, weights=constant(2.34), inputs=1, outputs=1, loss="mean_squared_error")
    ),
    # whole runs, sound
    "sound_run": lambda: record(HE.but(steps=300, rate=0.05)),
    "sound_run_adam": lambda: record(HE.but(steps=300, rate=1e-3, optimizer="Adam")),
    "noisy_falling": lambda: losses(noisy(falling(), 0.5), norms=noisy(np.full(300, 2.0), 0.8)),
    "early_bump_that_heals": lambda: losses(spliced(falling(), 3, [9.0, 22.0, 30.0, 12.0, 6.0]), update=0.05),
    "edge_of_stability": lambda: losses(falling(600) * (1 + 0.4 * (-1.0) ** np.arange(600)), update=0.01),
    "isolated_bad_batch_skipped": lambda: record(HE.but(steps=60, rate=0.05, bad_batches=(33,), guard=True)),
    "large_early_gradient": lambda: losses(falling(), norms=50 * np.exp(-np.arange(300) / 20.0) + 1),
    "spike_that_heals": lambda: losses(
        spliced(falling(), 200, [4.0, 3.0, 1.0]), norms=spliced(np.ones(300), 200, [40.0, 20.0, 5.0])
    ),
    "loss_not_measured": lambda: losses(np.full(30, np.nan)),
    # whole runs, sick
    "rate_10": lambda: record(HE.but(steps=60, rate=10.0)),
    "rate_3_adam": lambda: record(HE.but(steps=200, rate=3.0, optimizer="Adam")),
    "rate_too_high_squared_loss": lambda: record(HE.but(steps=60, rate=2.0, loss="mean_squared_error")),
    "climbing_loss": lambda: losses(2.3 * 1.05 ** np.arange(120), update=0.4),
    "spike_for_good": lambda: losses(np.r_[falling(200), np.full(100, 5.0)], norms=spliced(np.ones(300), 200, [60.0])),
    "gradient_overflow": lambda: losses(
        np.r_[falling(40), np.full(10, np.nan)],
        norms=np.r_[np.ones(39), np.inf, np.full(10, np.nan)],
    ),
    "gradient_overflow_skipped": lambda: losses(
        falling(50), norms=spliced(np.ones(50), 20, [np.inf]), outcome=_steps(50, {20: SKIPPED_GRADIENT})
    ),
    "bad_batch": lambda: record(HE.but(steps=60, rate=0.05, bad_batches=(33,))),
    "bad_batch_every_epoch_skipped": lambda: record(HE.but(steps=60, rate=0.05, bad_batches=(3, 27, 51), guard=True)),
    "all_batches_bad_skipped": lambda: record(HE.but(steps=30, bad_batches=tuple(range(30)), guard=True)),
    "nan_from_the_start": lambda: record(HE.but(steps=10, bad_batches=(0,))),
}

# A code without both is refused by test_codes.py.
FIRES: dict[str, tuple[str, ...]] = {
    "exploding_initialization": (
        "variance_4_at_30_layers",
        "variance_4_activations_apart",
        "std_1_at_5_layers",
        "std_1_at_5_layers_trained",
        "tanh_std_1_at_12_layers",
        "chain_of_20_neurons",
    ),
    "exploding_gradient": (
        "variance_4_at_30_layers",
        "std_1_at_5_layers",
        "gradient_overflow",
        "gradient_overflow_skipped",
        "spike_for_good",
        "unscaled_inputs",
        "rate_too_high_squared_loss",
    ),
    "nonfinite_loss": (
        "bad_batch",
        "isolated_bad_batch_skipped",
        "bad_batch_every_epoch_skipped",
        "all_batches_bad_skipped",
        "nan_from_the_start",
        "gradient_overflow",
        "rate_too_high_squared_loss",
    ),
    "learning_rate_too_high": ("rate_10", "rate_3_adam", "rate_too_high_squared_loss", "climbing_loss"),
}
SOUND = (
    "empty",
    "no_layers",
    "he",
    "he_2_layers",
    "he_100_layers_width_16",
    "he_100_layers_width_64",
    "he_6_layers_width_1024",
    "he_narrowing",
    "glorot_tanh",
    "lecun_selu_100_layers",
    "orthogonal",
    "layer_normalized_std_1",
    "residual_10_blocks",
    "2_layers_slightly_large",
    "3_layers_slightly_large",
    "sound_run",
    "sound_run_adam",
    "noisy_falling",
    "early_bump_that_heals",
    "edge_of_stability",
    "large_early_gradient",
    "spike_that_heals",
    "loss_not_measured",
)
SILENT: dict[str, tuple[str, ...]] = {
    "exploding_initialization": (
        *SOUND,
        "batch_normalized_std_1",
        "unscaled_inputs",
        "unscaled_targets",
        "large_without_description",
        "rate_10",
        "bad_batch",
    ),
    "exploding_gradient": (*SOUND, "isolated_bad_batch_skipped", "bad_batch", "climbing_loss"),
    "nonfinite_loss": (*SOUND, "climbing_loss", "spike_for_good", "gradient_overflow_skipped"),
    "learning_rate_too_high": (
        *SOUND,
        "isolated_bad_batch_skipped",
        "bad_batch",
        "bad_batch_every_epoch_skipped",
        "all_batches_bad_skipped",
        "nan_from_the_start",
        "unscaled_inputs",
        "unscaled_targets",
        "std_1_at_5_layers_trained",
        "gradient_overflow_skipped",
        "spike_for_good",
    ),
}

for _table, _more in ((TRACES, hand_made.TRACES), (FIRES, hand_made.FIRES), (SILENT, hand_made.SILENT)):
    _table.update({name: _table[name] + more if name in _table else more for name, more in _more.items()})

_built: dict[str, Trace] = {}


@pytest.fixture
def trace_of() -> Callable[[str], Trace]:
    """Return the trace of a name; built once, never written to."""

    def get(name: str) -> Trace:
        if name not in _built:
            _built[name] = TRACES[name]()
        return _built[name]

    return get


@pytest.fixture
def simulate() -> Callable[..., Trace]:
    """Return a function that simulates a Net with the given fields."""
    return lambda **fields: record(Net(**fields))


@pytest.fixture
def trace_of_losses() -> Callable[..., Trace]:
    return losses


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that asks for `fires` or `silent` every (code, trace) pair of the tables above."""
    for argument, table in (("fires", FIRES), ("silent", SILENT)):
        if argument in metafunc.fixturenames:
            pairs = [(code, name) for code, names in table.items() for name in names]
            metafunc.parametrize(argument, pairs, ids=["-".join(pair) for pair in pairs])


@pytest.fixture
def fixtures_by_code() -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    return FIRES, SILENT


@pytest.fixture
def initializers() -> dict[str, Callable]:
    return {"he": he, "glorot": glorot, "lecun": lecun, "orthogonal": orthogonal(), "scaled": scaled, "normal": normal}
