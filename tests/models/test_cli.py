"""The two verbs as a user sees them."""

from pathlib import Path

import pytest

from tests.cli.golden import assert_golden
from tests.cli.outcome import run
from tests.models.configs import FP8, write_config


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, "qwen3_moe", num_hidden_layers=2, tie_word_embeddings=False, **FP8)


def manifest(*arguments: str) -> str:
    outcome = run(
        *("manifest", "--architecture", "qwen3_moe", "--config", "config.json"),
        *("--layout", "sglang", "--output", "engine.json", *arguments),
    )
    return f"{outcome.out}{outcome.err}exit status {outcome.status}\n"


def test_a_manifest_and_its_launch_arguments():
    text = manifest("--option", "tp_size=2", "--option", "ep_size=2")
    text += Path("engine.json").read_text() + run("engine-args", "engine.json").out
    assert_golden("models/manifest.txt", text)


def test_what_is_impossible_is_reported_and_nothing_written():
    text = manifest("--option", "tp_size=3", "--option", "eb_size=2", "--quantization", "fp8")
    text += manifest("--option", "tp_size=3", "--option", "ep_size=3")
    text += manifest("--option", "tp_size=4")
    assert not Path("engine.json").exists()
    assert_golden("models/impossible.txt", text)


def test_an_option_without_value_is_a_matter_of_usage():
    assert manifest("--option", "tp_size").endswith("exit status 2\n")


def test_the_config_is_not_written_over():
    before = Path("config.json").read_bytes()
    outcome = run(
        *("manifest", "-a", "qwen3_moe", "-c", "config.json", "-l", "sglang"),
        *("-o", "config.json"),
    )
    assert "TS107" in outcome.err
    assert Path("config.json").read_bytes() == before


def test_a_side_that_there_is_not():
    assert manifest("--side", "middle").endswith("exit status 2\n")
