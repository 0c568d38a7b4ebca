"""What rules read from a Trace: layers, data, losses, and what does not fit together."""
