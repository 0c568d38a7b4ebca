"""Under XLA a step is compiled once: nothing in it is a constant that changes from step to step."""

from __future__ import annotations

from pathlib import Path

import keras
import pytest

import gradrecipes as gr
from tests.training.nets import compiled, digits, two_dense

MAPS = Path("/proc/self/maps")  # compiled code lies in pages of its own, so that each compilation adds some


@pytest.mark.skipif(not MAPS.exists(), reason="counts the memory maps as Linux lists them")
@pytest.mark.parametrize(
    "method",
    [None, *(pytest.param(method, marks=pytest.mark.slow) for method in gr.clipping.METHODS)],
    ids=lambda method: getattr(method, "__name__", "none"),
)
def test_later_fits_compile_nothing(method):
    x, y = digits(256)
    keras.utils.set_random_seed(0)
    model = compiled(two_dense(), jit_compile=True)
    callbacks = [gr.GradientMonitor(), gr.GradientGuard(clipping=None if method is None else method())]
    counts = []
    for _ in range(3):
        model.fit(x, y, epochs=2, batch_size=32, verbose=0, callbacks=callbacks)
        counts.append(len(MAPS.read_text().splitlines()))
    assert counts[2] - counts[1] < 8
    assert counts[1] - counts[0] < 8


def test_two_optimizers_of_one_accumulate_and_clip_each_with_its_own_memory():
    x, y = digits(256)
    model = two_dense()
    optimizers = {layer.name: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2) for layer in model.layers}

    def choose(variable):
        return optimizers[variable.path.split("/")[-2]]

    multi = getattr(keras.optimizers, "MultiOptimizer", None)
    if multi is None:
        pytest.skip("this Keras has no MultiOptimizer")
    compiled(model, multi(choose))
    guard = gr.GradientGuard(clipping=gr.clipping.adaptive_by_tensor(warm_up=1))
    history = model.fit(x, y, epochs=4, batch_size=32, verbose=0, callbacks=[guard]).history
    assert history["loss"][-1] < history["loss"][0]
    assert guard.events == []
