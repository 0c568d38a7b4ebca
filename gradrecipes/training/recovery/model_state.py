"""What a training changes in a model: put back after a look at other weights, or kept in snapshots to go back to."""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_optimizers import learning_rates
from gradrecipes.compat.keras_private import optimizers_of, sublayers
from gradrecipes.compat.tensorflow_private import variable_of
from gradrecipes.gradients.packing import STACK_BELOW

P = ParamSpec("P")
T = TypeVar("T")
State = Sequence[Any] | Mapping[str, Any] | None


@contextlib.contextmanager
def preserve_state(model: keras.Model, also: Sequence[Any] = ()) -> Iterator[None]:
    """Put back weights, moving statistics, seeds, metrics and optimizer after the `with` block, whatever happens in it.

    Metrics that came into being within the block start from nothing.

    Args:
        model: The model.
        also: Further variables that are put back.
    """
    variables = [*variables_of(model), *also]
    before = [(part, tf.identity(tf.convert_to_tensor(part))) for one in variables for part in _parts(one)]
    known = {id(variable) for variable in variables}
    try:
        yield
    finally:
        for part, value in before:
            part.assign(value)
        for metric in model.metrics:
            if metric.variables and not any(id(variable) in known for variable in metric.variables):
                metric.reset_state()


def preserves_state(probe: Callable[Concatenate[keras.Model, P], T]) -> Callable[Concatenate[keras.Model, P], T]:
    """Run a function of a model, its first argument, within `preserve_state`."""

    @functools.wraps(probe)
    def preserving(model: keras.Model, *args: P.args, **kwargs: P.kwargs) -> T:
        with preserve_state(model):
            return probe(model, *args, **kwargs)

    return preserving


def load_temporarily(model: keras.Model, weights: State, optimizer_variables: State) -> list[str]:
    """Put given values into a model; within `preserve_state` only.

    Args:
        model: The model.
        weights: Values in the order of `model.variables`, or of `model.weights`, or by the paths of the variables.
        optimizer_variables: Values in the order of `model.optimizer.variables`, or by path.

    Returns:
        What could not be put in, in sentences.
    """
    notes = []
    if weights is not None:
        notes += _assign([model.variables, model.weights], weights, "weights")
    if optimizer_variables is not None:
        optimizer = getattr(model, "optimizer", None)
        slots = [] if optimizer is None else optimizer.variables
        notes += _assign([slots], optimizer_variables, "optimizer variables")
    return notes


def variables_of(model: keras.Model) -> list[Any]:
    """Return every variable that a training step may change, each once."""
    found = [*model.variables, *model.metrics_variables, *recurrent_states(model)]
    found += [slot for optimizer in optimizers_of(model) for slot in optimizer.variables]
    return list({id(variable): variable for variable in found}.values())


def recurrent_states(model: keras.Model) -> list[Any]:
    """Return what stateful recurrent layers remember, which Keras does not count among the variables of a model."""
    remembered = [getattr(layer, "states", None) for layer in sublayers(model) if isinstance(layer, keras.layers.RNN)]
    return [part for part in keras.tree.flatten(remembered) if hasattr(part, "assign")]


def _parts(variable: Any) -> list[Any]:
    """Return the copies of a variable, one a replica; moving statistics and metrics differ between replicas."""
    held = getattr(variable, "value", variable)
    return list(held.values) if isinstance(held, tf.distribute.DistributedValues) else [variable]


def _assign(choices: list[Sequence[Any]], values: State, what: str) -> list[str]:
    if isinstance(values, Mapping):
        by_path = {variable.path: variable for variable in choices[0]}
        unknown = sorted(set(values) - set(by_path))
        pairs = [(by_path[path], value) for path, value in values.items() if path in by_path]
        notes = [f"The model has no {what} of these names, so they were left out: {unknown}."] if unknown else []
    else:
        values = list(values)
        fitting = [choice for choice in choices if _shapes(choice) == _shapes(values)]
        if not fitting:
            expected = " or ".join(str(len(choice)) for choice in choices)
            return [
                f"The given {what} do not fit the model ({len(values)} arrays; expected {expected}, in its shapes): "
                "the analysis used those that the model has now."
            ]
        pairs, notes = list(zip(fitting[0], values, strict=True)), []
    for variable, value in pairs:
        try:
            variable.assign(tf.cast(tf.convert_to_tensor(value), variable.dtype))
        except (TypeError, ValueError) as error:
            notes.append(f"The value given for {variable.path} was left out: {error}")
    return notes


def _shapes(values: Sequence[Any]) -> list[tuple[int, ...]]:
    return [tuple(value.shape) if hasattr(value, "shape") else np.shape(value) for value in values]


MAX_MOVE = 1.0  # times the weights' own norm between two snapshots: beyond, little of what they were is left
SNAPSHOT_PLACES = ("host", None)


@dataclass(frozen=True)
class Snapshot:
    """The state of a training after a step.

    Args:
        step: Steps that had run.
        rates: The learning rates at which all was well, as `keras_optimizers.learning_rates` names them; infinite where
            none has been tried yet.
        values: The copy of each variable, by its id: weights, optimizer slots and counters, moving statistics, seeds,
            metrics.
    """

    step: int
    rates: dict[str, float]
    values: dict[int, Copy]

    @property
    def proven(self) -> bool:
        """Whether the training was known to be well at these rates."""
        return bool(np.isfinite(list(self.rates.values())).all())


class SnapshotRing:
    """Keep the last few finite states of a training in memory.

    Args:
        model: The model.
        also: Returns further variables, made by `plain_variable`, that go back with the model's.
        capacity: How many are kept. Each takes the memory of the weights and the optimizer's slots.
        place: "host" for the host's memory, None for the device of the variables.
        earlier: The ring of an earlier fit, whose compiled function serves again where the variables are the same.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        also: Callable[[], list[Any]] = list,
        capacity: int = 3,
        place: str | None = "host",
        earlier: SnapshotRing | None = None,
    ):
        self._model = model
        self._also = also
        self._capacity = capacity
        self._place = place
        self._ring: deque[Snapshot] = deque()
        self._state: StackedState | None = None if earlier is None else earlier._state
        self._looking = False
        self._seen: tuple[dict[int, Copy], set[int]] | None = None  # by the present look
        self._never_finite: set[int] | None = None  # by id: what was not finite from the beginning

    def __len__(self) -> int:
        return len(self._ring)

    @property
    def newest(self) -> Snapshot:
        """The last one that was kept."""
        return self._ring[-1]

    @contextlib.contextmanager
    def one_look(self) -> Iterator[None]:
        """Read the state at most once within the `with` block, unless it goes back there."""
        self._looking = True
        try:
            yield
        finally:
            self._looking, self._seen = False, None

    def keep(self, step: int, *, proven: bool = True) -> bool:
        """Copy the state, unless a number in it is not finite; return whether it was kept.

        One that is not proven stands only until there is a better one. Metrics are kept and not judged, nor is what
        was not finite at the beginning, such as a mask of -inf.

        Args:
            step: Steps that have run.
            proven: Whether the training is known to be well at its present learning rate.
        """
        values, broken = self._read()
        finite = self._judge(broken)
        if finite:
            rates = learning_rates(self._model)
            if len(self) == 1 and not self.newest.proven:
                self._ring.clear()
            if len(self) == self._capacity:
                self._ring.popleft()  # before the weights change, and with them the memory that the new one shares
            self._ring.append(Snapshot(step, rates if proven else dict.fromkeys(rates, np.inf), values))
        return finite

    def is_current(self) -> bool:
        """Return whether the model is still, bit by bit, as in the newest snapshot: going back would change nothing."""
        now, then = self._read()[0], self.newest.values
        keys = [id(weight) for weight in self._model.variables]
        return all(key in then and np.array_equal(now[key].value, then[key].value) for key in keys)

    def state_is_finite(self) -> bool:
        """Return whether every number of the state as it is now is finite."""
        return self._judge(self._read()[1])

    def moved_far(self) -> bool:
        """Return whether the weights have moved farther from the newest snapshot than they are large in it."""
        if not len(self):
            return False
        now, then = self._read()[0], self.newest.values
        moved = size = 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            for key in (id(weight) for weight in self._model.trainable_variables):
                if key in then:
                    old, new = (_flat(copies[key].value) for copies in (then, now))
                    move = new - old
                    size += float(old @ old)
                    moved += float(move @ move)
        return not moved <= MAX_MOVE**2 * size < np.inf

    def drop_newest(self) -> None:
        """Forget the newest one: it was no good."""
        self._ring.pop()

    def restore(self) -> Snapshot:
        """Put the newest one back and return it; it stays in the ring."""
        self._seen = None
        then = {key: copy.value for key, copy in self.newest.values.items()}
        beginnings = {id(variable): variable.beginning for variable in self._also()}  # for those of after the snapshot
        for variable in self._variables():
            value = then.get(id(variable), beginnings.get(id(variable)))
            if value is not None:
                variable.assign(value)
        return self.newest

    def _read(self) -> tuple[dict[int, Copy], set[int]]:
        if self._seen is not None:
            return self._seen
        variables = self._variables()
        if self._state is None or [*map(id, variables)] != [*map(id, self._state.variables)]:
            self._state = StackedState(variables)
        found = self._state.copies(host=self._place == "host")
        self._seen = found if self._looking else None
        return found

    def _judge(self, broken: set[int]) -> bool:
        broken = broken - {id(metric) for metric in self._model.metrics_variables}
        if self._never_finite is None:
            self._never_finite = broken - {id(weight) for weight in self._model.trainable_variables}
        return broken <= self._never_finite

    def _variables(self) -> list[Any]:
        return [*variables_of(self._model), *self._also()]


COMPILE_AT = 8  # reads from which on tracing a function for them pays


class Copy(NamedTuple):
    """The copy of one variable, a row of the stack in which it was copied.

    Attributes:
        stack: An array or a tensor.
        row: Which row, or None where the variable stands alone.
    """

    stack: Any
    row: int | None

    @property
    def value(self) -> Any:
        """The value of the variable."""
        return self.stack if self.row is None else self.stack[self.row]


class StackedState:
    """Read the values of variables in one call, compiled after a few; one by one, each costs the host 60 microseconds.

    Args:
        variables: The variables; those without a static shape stand alone.
    """

    def __init__(self, variables: Sequence[Any]):
        groups: dict[Any, list[Any]] = {}
        for index, variable in enumerate(variables):
            entries = tf.TensorShape(variable.shape).num_elements()
            small = entries is not None and entries <= STACK_BELOW
            key = (tuple(variable.shape), tf.as_dtype(variable.dtype)) if small else index
            groups.setdefault(key, []).append(variable)
        self.variables = list(variables)
        self._groups = list(groups.values())
        self._compiled = tf.function(self._stacks, autograph=False)
        self._reads = 0

    def copies(self, *, host: bool) -> tuple[dict[int, Copy], set[int]]:
        """Return the copy of each variable by its id, and the ids of those that are not finite.

        Args:
            host: Whether the copies are numpy arrays in the host's memory; else they stay where the variables are.
        """
        self._reads += 1
        read = self._stacks if self._reads < COMPILE_AT or tf.distribute.has_strategy() else self._compiled
        stacks, finite = read()
        sums_are_finite = finite.numpy()
        found: dict[int, Copy] = {}
        broken: set[int] = set()
        for group, stack, is_plain in zip(self._groups, stacks, sums_are_finite, strict=True):
            stack = stack.numpy() if host else stack
            rows = range(len(group)) if len(group) > 1 else [None]
            copies = {id(variable): Copy(stack, row) for variable, row in zip(group, rows, strict=True)}
            if not is_plain:
                broken |= {key for key, copy in copies.items() if not is_finite(np.asarray(copy.value))}
            found |= copies
        return found, broken

    def _stacks(self) -> tuple[list[tf.Tensor], tf.Tensor]:
        stacks = []
        for group in self._groups:
            values = [_value(variable) for variable in group]
            stacks.append(tf.stack(values) if len(group) > 1 else tf.identity(values[0]))
        return stacks, tf.stack([_sum_is_finite(stack) for stack in stacks])


def _flat(value: Any) -> np.ndarray:
    """Return a copy as a vector in which a sum of squares is precise enough; infinite sums count as far."""
    array = np.ravel(np.asarray(value))
    return array if array.dtype == np.float32 else array.astype(np.float64)


def _value(variable: Any) -> tf.Tensor:
    held = variable_of(variable)
    if isinstance(held, tf.distribute.DistributedValues):
        return tf.convert_to_tensor(variable)
    return tf.raw_ops.ReadVariableOp(resource=held.handle, dtype=held.dtype)  # a tenth of what `read_value` costs


def _sum_is_finite(stack: tf.Tensor) -> tf.Tensor:
    """Return True only if every entry is finite: most often one cheap pass is enough."""
    if not stack.dtype.is_floating:
        return tf.constant(True)
    return tf.math.is_finite(tf.reduce_sum(tf.cast(stack, tf.float32)))


def is_finite(array: np.ndarray) -> bool:
    """Return whether every number is finite; of an array of no floating dtype every number is."""
    if not np.issubdtype(array.dtype, np.floating) and array.dtype.kind != "V":
        return True
    return bool(np.isfinite(array.astype(np.float64) if array.dtype.kind == "V" else array).all())
