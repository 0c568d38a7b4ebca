"""The traced functions that do what the callbacks of a fit ask for together."""

from __future__ import annotations

from typing import Any

import keras

from gradrecipes.compat import keras_private
from gradrecipes.core.trace import Trace
from gradrecipes.gradients.pipeline import Pipeline, PipelineSettings
from gradrecipes.training.fit.request import Request
from gradrecipes.training.fit.trace_writer import Harvest
from gradrecipes.training.step.instrumented_step import InstrumentedStep

RING_STEPS = 256  # steps that the record holds on the device; the host takes them every half of that


class PreparedStep:
    """Compile a model's train step with one pipeline for all requests.

    Args:
        model: The compiled model.
        requests: What each callback asks.
        trace: The record to go on with.

    Attributes:
        pipeline: What measures, decides, clips and records.
        every_step: The train function for a step of which no sample is due.
        sampled_step: The one for a step that measures more.
        harvest: What takes the readings into a Trace.

    Raises:
        ValueError: A layer was made trainable after the model was compiled and trained.
    """

    def __init__(self, model: keras.Model, requests: dict[Any, Request], trace: Trace):
        self._identity = keras_private.compile_identity(model)
        self._requests = dict(requests)
        wanted = list(requests.values())
        every = min((request.sample_every for request in wanted if request.sample_every), default=0)
        clippings = [request.clipping for request in wanted if request.clipping is not None]
        own = getattr(model, "clipping", None)
        deciding = sorted((request for request in wanted if request.skip), key=lambda request: request.keep_batches)
        settings = PipelineSettings(
            clipping=clippings[0] if clippings else own,
            skip=any(request.skip for request in wanted),
            sigmas=deciding[0].sigmas if deciding else None,
            record=True,
            sample_every=every or RING_STEPS,
            capacity=max(RING_STEPS, 2 * model.steps_per_execution),
            steps_at_once=model.steps_per_execution,
            xla=bool(model.jit_compile),
        )
        self.pipeline = Pipeline(settings)
        keras_private.build_optimizer(model)
        if unknown := keras_private.weights_without_slots(model):
            raise ValueError(
                "The optimizer must know every trainable weight of the model. Received: "
                f"{', '.join(repr(variable.path) for variable in unknown[:3])}, trainable only since the model was "
                "compiled and trained. Call model.compile(...) after a change of `trainable`, else it has no effect."
            )
        said = [request.logs for request in wanted]
        logs = True in said and False not in said
        step = InstrumentedStep(model, model.train_step, self.pipeline, logs=logs)
        self.every_step = self.sampled_step = keras_private.compile_train_step(model, step)
        if every:
            step = InstrumentedStep(model, model.train_step, self.pipeline, sample=True, logs=logs)
            self.sampled_step = keras_private.compile_train_step(model, step)
        self.harvest = Harvest(self.pipeline, step, trace=trace)

    def serves(self, model: keras.Model, requests: dict[Any, Request]) -> bool:
        """Whether it is still what would be prepared now."""
        identity = keras_private.compile_identity(model)
        return keras_private.same_identity(identity, self._identity) and requests == self._requests
