"""One training step with the pipeline between gradients and optimizer."""
