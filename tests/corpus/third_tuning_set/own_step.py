"""The step that several programs of this set write out themselves."""

from __future__ import annotations

import keras
import tensorflow as tf


class OwnStep(keras.Model):
    """A model whose step is written out, as the guide on custom train steps has it; `objective` is the loss."""

    def __init__(self):
        super().__init__()
        self.tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.tracker]

    def objective(self, x, y):
        raise NotImplementedError

    def train_step(self, batch):
        x, y = batch
        with tf.GradientTape() as tape:
            loss = self.objective(x, y)
        grads = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(grads, self.trainable_variables, strict=True))
        self.tracker.update_state(loss)
        return {"loss": self.tracker.result()}

    def test_step(self, batch):
        x, y = batch
        self.tracker.update_state(self.objective(x, y))
        return {"loss": self.tracker.result()}
