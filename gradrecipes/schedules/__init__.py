"""What Keras' learning-rate schedules lack: a warm-up around any of them, or around a constant rate."""

from gradrecipes.schedules.warm_up import WarmUp

__all__ = ["WarmUp"]
