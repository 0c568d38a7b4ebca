"""Gradient histograms where TensorBoard looks for them; Keras has had none since `write_grads` went."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from gradrecipes.core.trace import HISTOGRAM_BINS, HISTOGRAM_LOWEST, Trace


def write_histograms(trace: Trace, directory: str, *, first_sample: int = 0) -> None:
    """Write the histograms of log2|g| of a Trace's samples as TensorBoard histograms.

    Args:
        trace: The record.
        directory: A TensorBoard log directory; tags are `gradients_log2/<layer>`.
        first_sample: Samples before this one are left out, as they were written before.
    """
    from tensorboard.plugins.histogram import metadata

    steps, counts = trace.samples["step"][first_sample:], trace.samples["histogram"][first_sample:]
    if not len(steps):
        return
    left = HISTOGRAM_LOWEST + np.arange(HISTOGRAM_BINS, dtype=np.float64)
    writer = tf.summary.create_file_writer(directory)
    with writer.as_default():
        for step, of_layers in zip(steps, counts, strict=True):
            for layer, of_layer in zip(trace.layers, of_layers, strict=True):
                if of_layer.sum() > 0:
                    tag = f"gradients_log2/{layer}"
                    summary = metadata.create_summary_metadata(display_name=tag, description="log2 of |gradient|")
                    tf.summary.write(tag, np.stack([left, left + 1, of_layer], axis=1), int(step), summary)
    writer.close()
