"""A trace on disk: whole or refused, and never unpickled."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.description import Description, OptimizerDescription
from gradrecipes.core.trace.trace import Event


def sound_trace() -> Trace:
    trace = Trace(["dense", "out"], description=Description(batch_size=32))
    trace.extend(step=range(4), loss=[1.0, np.nan, np.inf, 0.5], layer_gradient_norm=np.ones((4, 2)))
    trace.extend_samples(step=[0], weight_norm=[[1.0, 2.0]])
    trace.add_event(Event("skip", 1, 0, 1, "nonfinite_loss"))
    return trace


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "run.trace"
    sound_trace().save(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "some run.trace"


class Bomb:
    """Leaves a mark when it is unpickled."""

    exploded = False

    def __reduce__(self):
        return setattr, (Bomb, "exploded", True)


def assert_refused(path: Path, content: bytes, words: str = "not a readable gradrecipes trace") -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        Trace.load(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert "Expected" in str(caught.value) or "Install" in str(caught.value)


def changed(sound: bytes, **members: bytes | None) -> bytes:
    """Return the file with some members other; None leaves one out."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(sound)) as old, zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as new:
        whole = {name: old.read(name) for name in old.namelist()} | members
        for name, content in whole.items():
            if content is not None:
                new.writestr(name, content)
    return result.getvalue()


def npy(values) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(values), allow_pickle=np.asarray(values).dtype == object)
    return stream.getvalue()


def head(**changes) -> bytes:
    sound = {"format": "gradrecipes.trace", "version": 1, "layers": ["dense", "out"], "description": {}, "events": []}
    return npy(np.frombuffer(json.dumps(sound | changes).encode(), np.uint8))


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_is_refused(sound, path, share):
    assert_refused(path, sound[: int(len(sound) * share)])


@given(place=st.integers(0), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_harmless(sound, path, place, bit):
    damaged = bytearray(sound)
    damaged[place % len(sound)] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        read = Trace.load(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:  # a date or an attribute in the zip, which nobody reads
        for mine, theirs in ((read.steps, sound_trace().steps), (read.samples, sound_trace().samples)):
            for name, column in mine.items():
                assert column.tobytes() == theirs[name].tobytes()


@given(content=st.binary(max_size=200))
def test_foreign_bytes_are_refused(path, content):
    assert_refused(path, content)


def test_an_empty_file_is_refused(path):
    assert_refused(path, b"")


def test_text_is_refused(path):
    assert_refused(path, b"step,loss\n0,2.3\n")


def test_a_foreign_npz_is_refused(path):
    stream = io.BytesIO()
    np.savez(stream, weights=np.ones(3))
    assert_refused(path, stream.getvalue(), "it has no head")


def test_a_single_array_is_refused(path):
    assert_refused(path, npy(np.ones(3)))


def test_nothing_is_ever_unpickled(path, sound):
    bomb = np.array([Bomb()], dtype=object)
    assert_refused(path, pickle.dumps(Bomb()))
    assert_refused(path, npy(bomb))
    assert_refused(path, changed(sound, **{"steps/loss.npy": npy(bomb)}), "allow_pickle=False")
    assert_refused(path, changed(sound, **{"head.npy": npy(bomb)}), "allow_pickle=False")
    assert_refused(path, changed(sound, **{"steps/loss.npy": pickle.dumps(Bomb())}))
    assert not Bomb.exploded
    pickle.loads(pickle.dumps(Bomb()))
    assert Bomb.exploded, "the bomb of this test is a dud"
    Bomb.exploded = False


@pytest.mark.parametrize("version", [3, 10**30])
def test_a_later_version_asks_for_a_newer_package_whatever_else_it_holds(path, sound, version):
    later = npy(np.frombuffer(json.dumps({"format": "gradrecipes.trace", "version": version}).encode(), np.uint8))
    words = f"is a trace of version {version}; this package reads up to version 2. Install a newer gradrecipes"
    assert_refused(path, changed(sound, **{"head.npy": later, "steps/loss.npy": b"of another kind"}), words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "other"}, "its head is not that of a trace"),
        ({"version": "1"}, "its version is '1'"),
        ({"version": None}, "its version is None"),
        ({"version": True}, "its version is True"),
        ({"version": float("nan")}, "its version is nan"),
        ({"layers": None}, "not a readable gradrecipes trace"),
        ({"layers": "dense"}, "not a readable gradrecipes trace"),
        ({"layers": ["dense"]}, "must have the shape (4, 1). Received: (4, 2)"),
        ({"layers": [["dense"], 3]}, "not a readable gradrecipes trace"),
        ({"description": 3}, "not a readable gradrecipes trace"),
        ({"events": 3}, "not a readable gradrecipes trace"),
        ({"events": [3]}, "not a readable gradrecipes trace"),
        ({"events": [{"kind": "skip"}]}, "not a readable gradrecipes trace"),
        ({"events": [{"kind": "skip", "step": "1", "epoch": 0, "batch": 0}]}, "not a readable gradrecipes trace"),
    ],
)
def test_a_head_that_makes_no_sense_is_refused(path, sound, changes, words):
    assert_refused(path, changed(sound, **{"head.npy": head(**changes)}), words)


@pytest.mark.parametrize("content", [b"[]", b"null", b"3", b"{", b"\xff\xfe", b"[" * 100_000, b""])
def test_a_head_that_is_no_json_object_is_refused(path, sound, content):
    assert_refused(path, changed(sound, **{"head.npy": npy(np.frombuffer(content, np.uint8))}))


HUGE = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
HUGE += b"{'descr': '<f4', 'fortran_order': False, 'shape': (4000000000000000,), }".ljust(117) + b"\n"


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"steps/loss.npy": npy(np.ones(3))}, "'loss' must have the shape (4,). Received: (3,)"),
        ({"steps/loss.npy": npy(np.ones((4, 2)))}, "'loss' must have the shape"),
        ({"steps/loss.npy": npy(np.array(["1"] * 4))}, "'loss' must be real numbers"),
        ({"steps/epoch.npy": npy(np.full(4, np.nan))}, "'epoch' must be whole numbers"),
        ({"steps/loss.npy": npy(3.0)}, "one row for each step"),
        ({"steps/loss.npy": b""}, "not a readable gradrecipes trace"),
        ({"steps/loss.npy": HUGE}, "not a readable gradrecipes trace"),
        ({"steps/step.npy": None}, "the column 'step' of its steps is missing"),
        ({"samples/step.npy": None}, "the column 'step' of its samples is missing"),
        ({"steps/lozz.npy": npy(np.ones(4))}, "Unknown readings: ['lozz']"),
        ({"other/loss.npy": npy(np.ones(4))}, "it holds 'other/loss'"),
        ({"readme.txt": b"hello"}, "not a readable gradrecipes trace"),
        ({"head.npy": None}, "it has no head"),
    ],
)
def test_members_that_do_not_fit_are_refused(path, sound, members, words):
    assert_refused(path, changed(sound, **members), words)


def test_an_encrypted_or_strangely_packed_zip_is_refused(path, sound):
    directory = sound.index(b"PK\x01\x02")
    for place, value in ((directory + 8, 1), (directory + 10, 99)):  # the flag bits; the method of compression
        damaged = bytearray(sound)
        damaged[place] = value
        assert_refused(path, bytes(damaged))


@pytest.mark.parametrize("name", [".", "missing.trace", "missing/run.trace"])
def test_no_file_is_said_to_be_missing(tmp_path, name):
    with pytest.raises(FileNotFoundError) as caught:
        Trace.load(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "Trace.save" in str(caught.value)


def test_a_column_of_an_older_file_that_did_not_know_it_is_nan(path, sound):
    path.write_bytes(changed(sound, **{"samples/output_rms.npy": None}))
    assert np.isnan(Trace.load(path).samples["output_rms"]).all()


def test_numpy_values_in_the_description_become_plain_ones(path):
    settings = {"momentum": np.float32(0.5), "scales": np.arange(2), "n": np.int64(3)}
    trace = Trace(description=Description(optimizer=OptimizerDescription("SGD", settings=settings)))
    trace.add_event(Event("skip", 0, 0, 0, details={"norm": np.float64(2.5)}))
    trace.save(path)
    read = Trace.load(path)
    assert read.description.optimizer.settings == {"momentum": 0.5, "scales": [0, 1], "n": 3}
    assert read.events[0].details == {"norm": 2.5}


def test_a_description_that_json_cannot_hold_is_refused_and_the_old_file_stays(path):
    sound_trace().save(path)
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"plain JSON values.*<object object.*Give a string"):
        Trace(description=Description(model=object())).save(path)
    assert path.read_bytes() == before


def test_a_save_that_breaks_off_leaves_no_rubbish(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(np.lib.format, "write_array", broken)
    with pytest.raises(OSError, match="disk full"):
        sound_trace().save(tmp_path / "run.trace")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="other systems have other permissions")
def test_a_saved_trace_may_be_read_by_whom_the_umask_allows(tmp_path):
    old = os.umask(0o022)
    try:
        sound_trace().save(tmp_path / "run.trace")
    finally:
        os.umask(old)
    assert (tmp_path / "run.trace").stat().st_mode & 0o777 == 0o644
