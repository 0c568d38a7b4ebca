"""Run a model for a few steps and put everything back."""
