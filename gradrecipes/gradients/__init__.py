"""Arithmetic on gradients: statistics, clipping, and the pipeline that puts them in order."""
