from __future__ import annotations

import json
import subprocess
import sys
import types

import numpy as np
import pytest

from gradrecipes.cli import main as cli
from gradrecipes.cli.main import COMMANDS, main
from gradrecipes.cli.terminal import UsageError
from gradrecipes.core.trace import Trace


@pytest.fixture
def healthy(tmp_path):
    steps = 60
    trace = Trace(["dense"])
    falling = np.linspace(2.0, 1.0, steps)
    trace.extend(step=np.arange(steps), loss=falling, gradient_norm=falling, layer_gradient_norm=falling[:, None])
    trace.save(tmp_path / "healthy.trace")
    return tmp_path / "healthy.trace"


@pytest.fixture
def unhealthy(tmp_path):
    steps = 60
    trace = Trace(["dense"])
    values = np.where(np.arange(steps) < 20, 1.0, np.nan)
    trace.extend(step=np.arange(steps), loss=values, gradient_norm=values, layer_gradient_norm=values[:, None])
    trace.save(tmp_path / "unhealthy.trace")
    return tmp_path / "unhealthy.trace"


def one_line(captured):
    assert captured.out == ""
    assert captured.err.startswith("gradrecipes: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_a_healthy_trace_gives_0_and_a_page_beside_it(healthy, capsys):
    assert main(["report", str(healthy)]) == 0
    captured = capsys.readouterr()
    assert "Healthy" in captured.out and "\x1b[" not in captured.out
    page = healthy.with_suffix(".html")
    assert str(page) in captured.err
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_an_unhealthy_trace_gives_1_and_the_page_where_it_was_asked_for(unhealthy, tmp_path, capsys):
    assert main(["report", str(unhealthy), "--html", str(tmp_path / "deep" / "page.html")]) == 1
    assert "Unhealthy" in capsys.readouterr().out
    assert (tmp_path / "deep" / "page.html").is_file()
    assert not unhealthy.with_suffix(".html").exists()


def test_json_prints_json_only(unhealthy, capsys):
    assert main(["report", str(unhealthy), "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["healthy"] is False
    assert captured.err == ""
    assert not unhealthy.with_suffix(".html").exists()


def test_json_and_a_page_go_together(healthy, tmp_path, capsys):
    assert main(["report", str(healthy), "--json", "--html", str(tmp_path / "page.html")]) == 0
    assert json.loads(capsys.readouterr().out)["healthy"] is True
    assert (tmp_path / "page.html").is_file()


def test_a_missing_file_is_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none.trace")]) == 2
    assert "There is no trace at" in one_line(capsys.readouterr())


@pytest.mark.parametrize("content", [b"", b"not a trace", b"PK\x03\x04 half a zip"], ids=["empty", "text", "half"])
def test_a_damaged_file_is_one_line(content, tmp_path, capsys):
    (tmp_path / "bad.trace").write_bytes(content)
    assert main(["report", str(tmp_path / "bad.trace")]) == 2
    assert "not a readable gradrecipes trace" in one_line(capsys.readouterr())


def test_a_truncated_trace_is_one_line(healthy, capsys):
    healthy.write_bytes(healthy.read_bytes()[:-40])
    assert main(["report", str(healthy)]) == 2
    one_line(capsys.readouterr())


def test_a_folder_is_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    one_line(capsys.readouterr())


def test_the_page_never_overwrites_the_trace(healthy, capsys):
    before = healthy.read_bytes()
    assert main(["report", str(healthy), "--html", str(healthy)]) == 2
    assert "would overwrite the trace" in one_line(capsys.readouterr())
    renamed = healthy.rename(healthy.with_suffix(".html"))
    assert main(["report", str(renamed)]) == 2
    assert renamed.read_bytes() == before


def test_a_place_that_cannot_be_written_is_named(healthy, tmp_path, capsys):
    assert main(["report", str(healthy), "--html", str(tmp_path)]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("asked", [True, False])
def test_without_jinja2_the_terminal_still_works(asked, healthy, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    arguments = ["report", str(healthy), *(["--html", "page.html"] if asked else [])]
    assert main(arguments) == (2 if asked else 0)
    captured = capsys.readouterr()
    assert "Healthy" in captured.out
    assert "pip install 'gradrecipes[report]'" in captured.err


def test_full_prints_what_one_screen_leaves_out(unhealthy, capsys):
    assert main(["report", str(unhealthy)]) == 1
    screen = capsys.readouterr().out
    assert main(["report", str(unhealthy), "--full"]) == 1
    full = capsys.readouterr().out
    assert len(screen.splitlines()) <= 40
    assert "print(diagnosis.full())" in screen and "Remedy 1:" in full and "Remedy 1:" not in screen


def test_without_rich_the_plain_text_is_printed(healthy, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["report", str(healthy)]) == 0
    assert capsys.readouterr().out.startswith("Healthy")


@pytest.mark.parametrize("arguments", [[], ["reprot"], ["report"], ["report", "x", "--colour"], ["--colour"]], ids=str)
def test_wrong_use_is_2(arguments, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err


def test_an_unknown_command_lists_the_choices(capsys):
    main(["reprot"])
    error = capsys.readouterr().err
    assert all(name in error for name in COMMANDS)
    assert "reprot" in error


def test_help_names_every_command_and_the_exit_codes(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    assert "Exit codes" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_has_help(name, capsys):
    assert main([name, "--help"]) == 0
    assert f"gradrecipes {name}" in capsys.readouterr().out


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("gradrecipes ")


def command(monkeypatch, run):
    module = types.SimpleNamespace(add_arguments=lambda parser: None, run=run)
    monkeypatch.setitem(sys.modules, "a_command", module)
    monkeypatch.setitem(cli.COMMANDS, "try", ("a_command", "try something"))


def test_a_row_and_a_module_make_a_command(monkeypatch):
    command(monkeypatch, lambda arguments: 0)
    assert main(["try"]) == 0


def test_a_mistake_of_the_user_is_one_line_but_a_fault_of_ours_is_not_hidden(monkeypatch, capsys):
    def wrong(arguments):
        raise UsageError("two\nlines")

    command(monkeypatch, wrong)
    assert main(["try"]) == 2
    assert one_line(capsys.readouterr()) == "gradrecipes: error: two lines\n"
    command(monkeypatch, lambda arguments: [][0])
    with pytest.raises(IndexError):
        main(["try"])


def test_ctrl_c_is_130_without_a_traceback(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    command(monkeypatch, interrupted)
    assert main(["try"]) == 130
    assert capsys.readouterr().err == "gradrecipes: interrupted\n"


@pytest.mark.slow
def test_help_loads_nothing_heavy():
    script = (
        "import sys; from gradrecipes.cli.main import main; code = main(['--help']);"
        "print(code, *{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    code, *loaded = run.stderr.split()
    assert code == "0"
    assert not {"keras", "tensorflow", "numpy", "matplotlib", "jinja2", "rich"} & set(loaded)


@pytest.mark.slow
def test_a_report_needs_no_keras(healthy):
    script = (
        f"import sys; from gradrecipes.cli.main import main; code = main(['report', {str(healthy)!r}]);"
        "print(code, *{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    code, *loaded = run.stderr.splitlines()[-1].split()
    assert code == "0"
    assert not {"keras", "tensorflow"} & set(loaded)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("healthy", 0), ("unhealthy", 1), ("missing", 2)])
def test_the_module_ends_with_the_exit_code(name, code, healthy, unhealthy, tmp_path):
    command_line = [sys.executable, "-m", "gradrecipes", "report", str(tmp_path / f"{name}.trace"), "--json"]
    run = subprocess.run(command_line, capture_output=True, text=True, check=False)
    assert run.returncode == code
    assert "Traceback" not in run.stderr
