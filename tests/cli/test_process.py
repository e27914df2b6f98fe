"""What only a process of its own shows: imports, pipes, terminals, interruption."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.outcome import run
from tranship.cli.output import Answer

ROOT = Path(__file__).parents[2]
PLAN = "small.plan.json"


def environment(**changes: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    return {**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm", **changes}


def start(
    *arguments: str, stdout: int = subprocess.PIPE, **changes: str
) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "tranship", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=stdout, stderr=pipe, env=environment(**changes))


def python(code: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)


def test_help_loads_nothing_heavy() -> None:
    done = python(
        "import sys\n"
        "from tranship.cli.app import app\n"
        "try:\n"
        "    app(['--help'], prog_name='tranship')\n"
        "finally:\n"
        "    heavy = {'networkx', 'numpy', 'pydantic', 'torch', 'jsonschema'}\n"
        "    print(sorted(heavy & sys.modules.keys()), file=sys.stderr)\n"
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_torch_is_not_loaded_to_compile(folder: Path) -> None:
    done = python(
        "import sys\n"
        "from tranship.cli.app import app\n"
        "try:\n"
        "    app(['compile', 'small.transfer.toml'], prog_name='tranship')\n"
        "finally:\n"
        "    print('torch' in sys.modules, file=sys.stderr)\n"
    )
    assert (done.returncode, done.stderr) == (0, "False\n")


def test_demo_without_torch_says_how_to_install_it() -> None:
    done = python(
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from tranship.cli.app import app\n"
        "app(['demo'], prog_name='tranship')\n"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "error[TS901]" in done.stderr
    assert "pip install 'tranship[runtime]'" in done.stderr


def test_reader_that_leaves_is_no_error(compiled: Path) -> None:
    process = start("show", PLAN)
    assert process.stdout
    process.stdout.close()
    assert process.stderr
    assert (process.stderr.read(), process.wait()) == (b"", 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk_behind_stdout_is_an_error(compiled: Path) -> None:
    with open("/dev/full", "wb") as full:
        process = start("show", PLAN, stdout=full.fileno())
        assert process.stderr
        message = process.stderr.read().decode()
        assert (process.wait(), message.count("\n")) == (2, 1)
    assert message.startswith("stdout cannot be written")


def on_terminal(*arguments: str, **changes: str) -> str:
    """Run with stdout on a terminal of 100 columns, and return all that it shows."""
    shown, terminal = os.openpty()
    try:
        process = start(*arguments, stdout=terminal, COLUMNS="100", **changes)
        os.close(terminal)
        text = b""
        while chunk := _read(shown):
            text += chunk
        assert process.wait() == 0
    finally:
        os.close(shown)
    return text.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that the other end is closed
        return b""


GREEN = "\x1b[32m"


def test_colors_are_for_terminals_alone(compiled: Path) -> None:
    assert GREEN in on_terminal("show", PLAN)
    assert GREEN not in on_terminal("show", PLAN, NO_COLOR="1")
    process = start("show", PLAN)
    out, _ = process.communicate()
    assert b"\x1b" not in out


def test_width_of_what_is_not_a_terminal_depends_on_nothing(compiled: Path) -> None:
    texts = [start("show", PLAN, COLUMNS=columns).communicate()[0] for columns in ("40", "200")]
    assert texts[0] == texts[1] == run("show", PLAN).out.encode()


def test_output_that_cannot_be_encoded_is_escaped(compiled: Path) -> None:
    out, err = start("verify", "small.transfer.toml", PYTHONIOENCODING="ascii").communicate()
    assert (out.count(b"\n  ok  "), err) == (8, b"")
    manifest = compiled / "trainer.manifest.json"
    manifest.write_text(manifest.read_text().replace("fsdp2", "fsdp\u00e9\u4e2d"))
    out, err = start("show", manifest.name, PYTHONIOENCODING="ascii").communicate()
    assert (b"fsdp\\xe9\\u4e2d" in out, err) == (True, b"")


def test_control_characters_do_not_reach_the_terminal(compiled: Path) -> None:
    manifest = compiled / "trainer.manifest.json"
    manifest.write_text(manifest.read_text().replace("fsdp2", "fsdp\\u001b[2J"))
    assert "\x1b" not in run("show", manifest.name).out
    (compiled / "\x1b[2J.json").write_text("{}")
    outcome = run("check", "\x1b[2J.json")
    assert "\x1b" not in outcome.out + outcome.err


def fail_with(error: BaseException) -> Callable[[list[str]], Answer]:
    def verb(files: list[str]) -> Answer:
        raise error

    return verb


def test_interruption_leaves_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tranship.cli.check.run", fail_with(KeyboardInterrupt()))
    outcome = run("check", "x.json")
    assert (outcome.status, outcome.out, outcome.err) == (130, "", "interrupted\n")


def test_fault_of_tranship_is_one_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tranship.cli.check.run", fail_with(KeyError("a\nb")))
    outcome = run("check", "x.json")
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.count("error[TS900]") == 1
    assert "Traceback" not in outcome.err
    assert "TRANSHIP_TRACEBACK=1" in outcome.err


def test_fault_of_tranship_shows_where_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tranship.cli.check.run", fail_with(KeyError("a")))
    monkeypatch.setenv("TRANSHIP_TRACEBACK", "1")
    outcome = run("check", "x.json")
    assert (outcome.status, "Traceback" in outcome.err) == (2, True)
