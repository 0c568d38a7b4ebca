"""The traced functions that do what the callbacks of a fit ask for together."""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras

from gradrecipes.compat import keras_private
from gradrecipes.compat.tensorflow_private import dismantle
from gradrecipes.core.trace import Trace
from gradrecipes.gradients.pipeline import Pipeline
from gradrecipes.gradients.recorder import is_due
from gradrecipes.gradients.update import PipelineSettings
from gradrecipes.training.fit.trace_writer import TraceWriter
from gradrecipes.training.step.instrumented_step import InstrumentedStep

if TYPE_CHECKING:
    from gradrecipes.gradients.clipping.method import Clipping

RING_STEPS = 256  # steps that the record holds on the device; the host takes them every half of that
# A step without captured activations is a few percent cheaper and has to be traced once more. Whoever waits until the
# time spent would have paid for the tracing that often pays at most about twice of what hindsight would have paid.
LEAN_AFTER = 20  # times the first execution, tracing included
SAMPLE_EVERY, SAMPLE_EVERY_OF_LARGE = 100, 200  # steps, so that samples cost about 1% of the training
LARGE_MODEL = 1_000_000  # trainable parameters
TOLD_AT = 3  # preparations of one compiled model for new callbacks of the same classes
_LOG = logging.getLogger(__name__)
_PREPARED: weakref.WeakKeyDictionary[keras.Model, tuple[Any, list[str], int]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Request:
    """What one callback asks of the fit session.

    Args:
        clipping: How to clip, or None.
        skip: Whether non-finite steps are to be left out.
        sigmas: Standard deviations from which on a finite step is an outlier and left out; None for never.
        samples: Whether samples are to be taken.
        sample_every: Steps from sample to sample; None for what suits the size of the model.
        log: Whether readings join the logs. True: on, unless another callback says False. None: no preference.
        keep_batches: Whether the batch of the last step is to be held; steps of one execution are then run one by one.
        keep_reference: Whether a batch is to be kept, on which a step can be tried again.
        fused: Whether the update is to go through TensorFlow's fused kernels.
        check: Called on the host between executions.
        before_look: Called before the weights are saved, evaluated or read while the fit runs.
        check_every: Steps from one check to the next: the host waits for the device there.
        optional: Whether the fit goes on without the callback where its train step cannot be instrumented.
        renewed: Called when the step was prepared anew in the middle of the fit: what a callback keeps of pipeline and
            weights is of the past then.
    """

    clipping: Clipping | None = None
    skip: bool = False
    sigmas: float | None = None
    samples: bool = False
    sample_every: int | None = None
    log: bool | None = True
    keep_batches: bool = False
    keep_reference: bool = False
    fused: bool = False
    check: Callable[[], None] | None = None
    before_look: Callable[[], None] | None = None
    check_every: int = 8
    optional: bool = False
    renewed: Callable[[], None] | None = None

    def sample_interval(self, model: Any) -> int:
        """Return the steps from one sample to the next: a sample costs as much as one to two steps."""
        if self.sample_every is not None:
            return self.sample_every
        large = sum(math.prod(variable.shape) for variable in model.trainable_variables) > LARGE_MODEL
        return SAMPLE_EVERY_OF_LARGE if large else SAMPLE_EVERY


class PreparedStep:
    """Compile a model's train step with one pipeline for all requests, and choose what runs.

    The first function takes samples when they are due and serves all steps, so that a fit of a few steps traces once.
    In a long fit a second one without captured activations takes over for the steps between two samples.

    Args:
        model: The compiled model.
        requests: What each callback asks.
        trace: The record to go on with.

    Attributes:
        pipeline: What measures, decides, clips and records.
        writer: What writes the readings into a Trace.
        logs: Whether what `read_logs` returns is to join the logs of the fit.
        next_step: The host's own count of batches; `collect` corrects it by the device's.

    Raises:
        ValueError: A layer was made trainable after the model was compiled and trained.
    """

    def __init__(self, model: keras.Model, requests: dict[Any, Request], trace: Trace):
        self._model = model
        self._identity = keras_private.compile_identity(model)
        self._requests = dict(requests)
        self._steps: list[InstrumentedStep] = []
        self._finalizers: list[weakref.finalize] = []
        wanted = list(requests.values())
        every = min((request.sample_interval(model) for request in wanted if request.samples), default=0)
        self.pipeline = Pipeline(_settings(model, wanted, every))
        keras_private.build_optimizer(model)
        if unknown := keras_private.weights_without_slots(model):
            raise ValueError(
                "The optimizer must know every trainable weight of the model. Received: "
                f"{', '.join(repr(variable.path) for variable in unknown[:3])}, trainable only since the model was "
                "compiled and trained. Call model.compile(...) after a change of `trainable`, else it has no effect."
            )
        if self.pipeline.settings.fused:
            from gradrecipes.compat.keras_optimizers import require_fusible

            for optimizer in keras_private.optimizers_of(model):
                for leaf in keras_private.leaves(optimizer):
                    require_fusible(leaf, "GradientGuard" if any(r.fused for r in wanted) else type(model).__name__)
        said = [request.log for request in wanted]
        self.logs = True in said and False not in said
        self._optional = all(request.optional for request in wanted)
        self._step = self._instrumented(sample=bool(every))
        self._function = keras_private.compile_train_step(model, self._step)
        self._lean: Callable[[Any], Any] | None = None if every else self._function
        self._lean_until = 0  # the step before which no sample is due
        self._began = 0.0
        self._traced_in = 0.0
        self.writer = TraceWriter(self.pipeline, self._step, trace=trace)
        self.next_step = 0
        self._collected = 0
        _notice_new_callbacks(model, requests)

    def serves(self, model: keras.Model, requests: dict[Any, Request]) -> bool:
        """Return whether it is still what would be prepared now."""
        identity = keras_private.compile_identity(model)
        return keras_private.same_identity(identity, self._identity) and requests == self._requests

    def run(self, iterator: Any, steps: int) -> Any:
        """Run one execution.

        Args:
            iterator: What the train function takes batches from.
            steps: How many steps it runs.

        Returns:
            The logs, as the train function returns them.
        """
        lean = self.next_step + steps <= self._lean_until
        function = self._lean if lean else self._function_for(steps)
        logs = function(iterator) if self._began else self._run_first(function, iterator)
        self.next_step += steps
        if self.next_step - self._collected >= self.pipeline.settings.capacity // 2:  # half the ring is full
            self.collect()
        return logs

    def retry(self, iterator: Any) -> None:
        """Run one execution that does not count."""
        (self._lean or self._function)(iterator)

    def _run_first(self, function: Callable[[Any], Any], iterator: Any) -> Any:
        started = time.monotonic()
        keras_private.build_metrics_by_spec(self._model, getattr(iterator, "element_spec", None))
        logs = function(iterator)
        self._began = time.monotonic()
        self._traced_in = self._began - started
        return logs

    def _function_for(self, steps: int) -> Callable[[Any], Any]:
        every = self.pipeline.settings.sample_every
        if self.pipeline.accumulated is not None:  # which batch completes a step is known on the device alone
            return self._function
        if self._lean is None and not self._began:
            return self._function
        if any(is_due(step, every) for step in range(self.next_step, self.next_step + steps)):
            return self._function
        if self._lean is None and time.monotonic() - self._began > LEAN_AFTER * self._traced_in:
            self._lean = self._make_lean()
        if self._lean is None:
            return self._function
        self._lean_until = -(-self.next_step // every) * every  # the early samples have been taken
        return self._lean

    def _make_lean(self) -> Callable[[Any], Any]:
        from gradrecipes.compat.random_state import draws_by_itself

        if any(draws_by_itself(graph()) for graph in self._step.graphs):  # which go on within one graph only
            return self._function
        return keras_private.compile_train_step(self._model, self._instrumented())

    def _instrumented(self, *, sample: bool = False) -> InstrumentedStep:
        step = InstrumentedStep(
            self._model,
            self._model.train_step,
            self.pipeline,
            sample=sample,
            optional=self._optional,
        )
        self._free_when_dropped(step)
        self._steps.append(step)
        return step

    def hand_over(self) -> Callable[[Any], Any]:
        """Return the function that has run, to be used on without this object."""
        for finalizer in self._finalizers:
            finalizer.detach()
        return self._function

    @property
    def not_instrumented(self) -> str | None:
        """Why the fit is to go on without this step, which then has changed nothing; None where it works."""
        for step in self._steps:
            if step.not_instrumented is not None:
                return step.not_instrumented
        return None

    def _free_when_dropped(self, step: InstrumentedStep) -> None:
        finalizer = weakref.finalize(self, dismantle, step.graphs)
        finalizer.atexit = False
        self._finalizers.append(finalizer)

    @property
    def steps_run(self) -> int:
        """How many steps have run, by the host's own count where each is one batch."""
        return self.next_step if self.pipeline.accumulated is None else int(self.pipeline.step.numpy())

    def begin_epoch(self, epoch: int) -> None:
        """Assign the steps from here on to an epoch."""
        self.writer.begin_epoch(epoch)
        self._correct_count()

    def read_logs(self) -> dict[str, float]:
        """Return what joins the logs: mean and maximum of the norms of this epoch, and counts."""
        return self.writer.read_norms() | self.pipeline.read_counts()

    def collect(self) -> Trace:
        """Bring the trace up to date with the device and return it."""
        self.writer.collect()
        self._correct_count()
        self._collected = self.next_step
        return self.writer.trace

    def _correct_count(self) -> None:
        self.next_step = self.pipeline.batches


def _settings(model: keras.Model, wanted: list[Request], every: int) -> PipelineSettings:
    clippings = [request.clipping for request in wanted if request.clipping is not None]
    deciding = sorted((request for request in wanted if request.skip), key=lambda request: request.keep_batches)
    return PipelineSettings(
        clipping=clippings[0] if clippings else getattr(model, "clipping", None),
        skip=bool(deciding),
        sigmas=deciding[0].sigmas if deciding else None,
        record=True,
        sample_every=every or RING_STEPS,
        capacity=max(RING_STEPS, 2 * model.steps_per_execution),
        xla=bool(model.jit_compile),
        fused=any(request.fused for request in wanted) or getattr(model, "fused", False),
    )


def _notice_new_callbacks(model: keras.Model, callbacks: Iterable[Any]) -> None:
    """Say once of a model that its step is traced anew in each fit, since each brings callbacks of its own."""
    names = sorted(type(callback).__name__ for callback in callbacks)
    optimizer, before, times = _PREPARED.get(model, (None, [], 0))
    same = optimizer is not None and optimizer() is model.optimizer and before == names
    times = times + 1 if same else 1
    _PREPARED[model] = weakref.ref(model.optimizer), names, times
    if times == TOLD_AT:
        new = " and ".join(f"a new {name}" for name in names)
        _LOG.warning(
            "The train step of %r is traced for the third time, since each fit brings %s. Make callbacks once, before "
            "the loop, and give the same ones to every fit: then it is traced once.",
            *(model.name, new),
        )
