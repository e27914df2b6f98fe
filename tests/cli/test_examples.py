"""The committed examples are what their generators and the compiler write."""

import runpy
from pathlib import Path

import pytest

from tests.cli.outcome import contents, run

EXAMPLES = Path(__file__).parents[2] / "examples"
TRANSFERS = sorted(EXAMPLES.glob("*/*.transfer.toml"))


@pytest.mark.parametrize("transfer", TRANSFERS, ids=lambda path: path.parent.name)
def test_committed_plan_is_current_and_proved(transfer: Path) -> None:
    assert run("compile", str(transfer), "--check").status == 0
    assert run("verify", str(transfer)).status == 0


@pytest.mark.parametrize(
    "generator", sorted(EXAMPLES.glob("*/generate.py")), ids=lambda path: path.parent.name
)
def test_generator_writes_the_committed_manifests(generator: Path, tmp_path: Path) -> None:
    copy = tmp_path / "generate.py"
    copy.write_bytes(generator.read_bytes())
    runpy.run_path(str(copy), run_name="__main__")
    written = contents(tmp_path)
    assert len(written) > 1
    assert written.items() <= contents(generator.parent).items()


def test_readme_shows_what_the_command_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    readme = (EXAMPLES / "qwen3-8b" / "README.md").read_text()
    plan = "examples/qwen3-8b/qwen3-8b.plan.json"
    assert f"`tranship show {plan} --tensor '*.mlp.up_proj.*'`" in readme
    assert f"```\n{run('show', plan, '--tensor', '*.mlp.up_proj.*').out}```\n" in readme
