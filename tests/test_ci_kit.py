"""What users' repositories take from this one: the action, the hooks, and plans in `git diff`."""

import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.example import write_example

ROOT = Path(__file__).resolve().parent.parent
ACTION = (ROOT / "action.yml").read_text(encoding="utf-8")
HOOKS = (ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")


def section(text: str, key: str) -> str:
    """The block under `key:`, without its indentation."""
    found = re.search(rf"^( *){key}:[^\n]*\n((?:\1 [^\n]*\n|\n)+)", text, re.MULTILINE)
    assert found, key
    return textwrap.dedent(found[2])


@dataclass(frozen=True)
class Step:
    """One step of a composite action."""

    name: str
    shell: str
    environment: Mapping[str, str]
    script: str


def steps() -> Iterator[Step]:
    for part in re.split(r"^- ", section(section(ACTION, "runs"), "steps"), flags=re.MULTILINE)[1:]:
        text = textwrap.dedent("  " + part)
        fields = dict(re.findall(r"^(\w+): (.+)$", text, re.MULTILINE))
        environment = dict(re.findall(r"^(\w+): (.+)$", section(text, "env"), re.MULTILINE))
        yield Step(fields["name"], fields["shell"], environment, section(text, "run"))


INSTALL, PROVE = steps()


def inputs() -> dict[str, str]:
    """Defaults of the action's inputs."""
    blocks = re.findall(
        r"^(\w+):\n((?: +.+\n)+)", section(ACTION, "inputs") + "\n", flags=re.MULTILINE
    )
    return {
        name: shlex.split(re.findall(r"default: (.*)", body)[0])[0]
        for name, body in blocks
        if re.search(r"description: \S", body)
    }


def test_the_action_declares_the_inputs_that_it_reads() -> None:
    read = re.findall(r"\$\{\{ inputs\.(\w+) \}\}", ACTION)
    assert sorted(read) == sorted(inputs())
    assert section(ACTION, "runs").startswith("using: composite\n")


@pytest.mark.parametrize("step", [INSTALL, PROVE], ids=lambda step: step.name)
def test_a_step_takes_inputs_from_its_environment_alone(step: Step) -> None:
    assert step.shell == "bash"
    assert "${{" not in step.script
    checked = subprocess.run(["bash", "-n"], input=step.script, text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")


@dataclass(frozen=True)
class Repository:
    """A user's repository, and the tranship that is found in it."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment | environment,
            text=True,
            capture_output=True,
        )

    def git(self, *arguments: str) -> str:
        done = self.run("git", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "change")

    def tranship(self, *arguments: str) -> None:
        done = self.run("tranship", *arguments)
        assert done.returncode == 0, done.stderr

    def edit(self, name: str, before: str, after: str) -> None:
        path = self.folder / name
        text = path.read_text(encoding="utf-8")
        assert before in text
        path.write_text(text.replace(before, after), encoding="utf-8")


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which `tranship` is this tree, and git knows nobody's configuration."""
    folder = tmp_path_factory.mktemp("bin")
    command = folder / "tranship"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m tranship "$@"\n')
    command.chmod(0o755)
    return {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        **{
            f"GIT_{who}_{what}": value
            for who in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", "Someone"), ("EMAIL", "someone@example.org"))
        },
    }


@pytest.fixture
def repository(tmp_path: Path, tools: dict[str, str]) -> Repository:
    """A repository with a compiled transfer, all committed."""
    folder = tmp_path / "repository"
    (folder / "transfers").mkdir(parents=True)
    write_example(folder / "transfers")
    made = Repository(folder, tools)
    made.git("init", "--quiet", "--initial-branch", "main")
    (transfer,) = (folder / "transfers").glob("*.transfer.toml")
    made.tranship("compile", str(transfer.relative_to(folder)))
    made.commit()
    return made


def prove(repository: Repository, **given: str) -> tuple[int, str, str]:
    """Run the action's main step: its status, what it prints, the job summary."""
    summary = repository.folder.parent / "summary.md"
    summary.touch()
    values = {f"INPUT_{name.upper()}": value for name, value in (inputs() | given).items()}
    environment = {name: values[name] for name in PROVE.environment}
    command = ("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", PROVE.script)
    done = repository.run(*command, GITHUB_STEP_SUMMARY=str(summary), **environment)
    return done.returncode, done.stdout + done.stderr, summary.read_text(encoding="utf-8")


def test_the_action_proves_a_good_repository(repository: Repository) -> None:
    status, printed, summary = prove(
        repository, files="**/*.manifest.json\ntransfers/policy.json", against="HEAD", sarif="found"
    )
    assert (status, "::error" in printed) == (0, False), printed
    verbs = [line.split()[1] for line in printed.splitlines() if line.startswith("tranship ")]
    assert verbs == ["check", "compile", "verify", "breaking", "breaking"]
    assert summary.count("## `tranship ") == 5
    assert len(list((repository.folder / "found").glob("*.sarif"))) == 5


def test_the_action_refuses_a_plan_that_is_out_of_date(repository: Repository) -> None:
    (transfer,) = (repository.folder / "transfers").glob("*.transfer.toml")
    repository.edit(f"transfers/{transfer.name}", "4194304", "8388608")
    status, printed, summary = prove(repository)
    assert status == 3, printed
    assert "tranship compile" in summary


def test_the_action_marks_the_line_that_is_wrong(repository: Repository) -> None:
    repository.edit("transfers/engine.manifest.json", '"f8e4m3fn"', '"bf16"')
    status, printed, _ = prove(repository, summary="false")
    assert status == 1
    assert re.search(r"^::error file=transfers/engine.manifest.json,line=\d+.*TS172", printed, re.M)


def test_the_action_does_not_pass_for_want_of_files(repository: Repository) -> None:
    status, printed, _ = prove(repository, transfers="nothing/*.transfer.toml")
    assert status == 2
    assert "no file matches nothing/*.transfer.toml" in printed
    status, printed, _ = prove(repository, transfers="")
    assert status == 2
    assert "there was nothing to check" in printed


def test_the_action_says_so_if_a_revision_was_not_fetched(repository: Repository) -> None:
    status, printed, _ = prove(repository, against="origin/main", summary="false")
    assert status == 2
    assert "no commit origin/main here" in printed


def test_the_action_runs_nothing_that_is_named_in_an_input(repository: Repository) -> None:
    for name in ("transfers", "files", "against", "manifests", "sarif"):
        prove(repository, **{"transfers": "", name: "$(touch owned); touch owned #"})
    assert not (repository.folder / "owned").exists()


def test_the_action_installs_its_own_revision_apart(tmp_path: Path) -> None:
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\n'
        '[ "$2" != venv ] || { mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; }\n'
    )
    python.chmod(0o755)
    paths = tmp_path / "paths"
    environment = {
        "PATH": os.environ["PATH"],
        "INPUT_PYTHON": str(python),
        "ACTION_PATH": "/actions/tranship",
        "RUNNER_TEMP": str(tmp_path),
        "GITHUB_PATH": str(paths),
    }
    assert INSTALL.environment.keys() <= environment.keys()
    subprocess.run(["bash", "-eo", "pipefail", "-c", INSTALL.script], env=environment, check=True)
    made, installed = log.read_text().splitlines()
    assert made == f"-m venv {tmp_path}/tranship/venv"
    assert installed.split()[:3] == ["-m", "pip", "install"]
    assert installed.split()[-1] == "/actions/tranship"
    assert paths.read_text() == f"{tmp_path}/tranship/bin\n"
    assert (
        os.readlink(tmp_path / "tranship/bin/tranship") == f"{tmp_path}/tranship/venv/bin/tranship"
    )


def hooks() -> dict[str, dict[str, str]]:
    found = re.findall(r"^- id: (\S+)\n((?:  \w+: .+\n)+)", HOOKS, re.MULTILINE)
    return {name: dict(re.findall(r"^  (\w+): (.+)$", body, re.M)) for name, body in found}


def test_hooks_take_the_documents_and_nothing_else() -> None:
    assert list(hooks()) == ["tranship-check", "tranship-compile-check"]
    names = ["a/engine.manifest.json", "b.plan.json", "c.transfer.toml", "policy.json"]
    names += ["x/policy.toml", "moe.policy.json", "placement.toml"]
    for hook in hooks().values():
        assert hook["language"] == "python"
        pattern = re.compile(hook["files"])
        assert all(pattern.search(name) for name in names)
        assert not any(map(pattern.search, ["package.json", "mypolicy.json", "plan.json.md"]))


def hook(repository: Repository, name: str, *files: str) -> int:
    return repository.run(*shlex.split(hooks()[name]["entry"]), *files).returncode


def test_hooks_find_what_is_wrong(repository: Repository) -> None:
    manifest = "transfers/engine.manifest.json"
    (plan,) = (repository.folder / "transfers").glob("*.plan.json")
    assert hook(repository, "tranship-check", manifest, f"transfers/{plan.name}") == 0
    assert hook(repository, "tranship-compile-check") == 0
    repository.edit(manifest, '"f8e4m3fn"', '"bf16"')
    assert hook(repository, "tranship-check", manifest, f"transfers/{plan.name}") == 1
    assert hook(repository, "tranship-compile-check") != 0


@pytest.mark.parametrize(
    "textconv", ["tranship show", 'f() { tranship show "$1" || cat "$1"; }; f']
)
def test_git_diff_shows_plans_and_manifests_in_words(repository: Repository, textconv: str) -> None:
    assert textconv in (ROOT / "docs/ci.md").read_text(encoding="utf-8")
    attributes = (ROOT / ".gitattributes").read_text(encoding="utf-8")
    (repository.folder / ".gitattributes").write_text(attributes, encoding="utf-8")
    repository.git("config", "diff.tranship.textconv", textconv)
    repository.edit("transfers/engine.manifest.json", '"bf16"', '"f32"')
    shown = repository.git("diff", "--", "transfers/engine.manifest.json")
    assert re.search(r"^\+.*\bf32\b", shown, re.M), shown
    assert '"dtype"' not in shown
    repository.git("checkout", "--", "transfers")
    (transfer,) = (repository.folder / "transfers").glob("*.transfer.toml")
    repository.edit(f"transfers/{transfer.name}", "4194304", "2097152")
    repository.tranship("compile", f"transfers/{transfer.name}")
    (plan,) = (repository.folder / "transfers").glob("*.plan.json")
    shown = repository.git("diff", "--", f"transfers/{plan.name}")
    assert "of at most 2.1 MB" in shown
    assert '"edges"' not in shown


def test_a_document_is_recognised_whatever_its_file_is_called(repository: Repository) -> None:
    manifest = repository.folder / "transfers/engine.manifest.json"
    for name in ("git-blob-a1b2c3", "x.txt"):
        copy = repository.folder / name
        copy.write_bytes(manifest.read_bytes())
        shown = repository.run("tranship", "show", name)
        assert shown.returncode == 0
        assert shown.stdout == repository.run("tranship", "show", str(manifest)).stdout
