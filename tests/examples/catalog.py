"""The committed examples: their files, and the commands that wrote them."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.declare import Case
from tranship.models.produce import Request
from tranship.schema.codec import load
from tranship.schema.manifest import Manifest
from tranship.schema.placement import Placement
from tranship.schema.plan import TransferPlan
from tranship.schema.transfer import Transfer

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*/regenerate.sh"))
TRANSFERS = sorted(EXAMPLES.glob("*/*.transfer.toml"))


def name_of(path: Path) -> str:
    """A test's name for a transfer file or a script."""
    return f"{path.parent.name}/{path.name.partition('.')[0]}"


def plan_file(transfer: Path) -> Path:
    """The plan beside a transfer file."""
    return transfer.with_name(transfer.name.replace(".transfer.toml", ".plan.json"))


@dataclass(frozen=True)
class Full:
    """A committed example as it is: its inputs and its plan."""

    case: Case
    plan: TransferPlan


def load_full(transfer: Path) -> Full:
    """Read a transfer file, everything that it names, and the plan."""
    folder, spec = transfer.parent, load(transfer, Transfer).value
    placement = load(folder / spec.placement, Placement).value if spec.placement else None
    case = Case(
        name_of(transfer),
        load(folder / spec.sender, Manifest).value,
        load(folder / spec.receiver, Manifest).value,
        placement=placement,
        options=spec.options,
    )
    return Full(case, load(plan_file(transfer), TransferPlan).value)


def commands(script: Path) -> list[list[str]]:
    """The arguments of every `tranship` command of a script."""
    lines = script.read_text().replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("tranship ")]


def requests(script: Path) -> dict[str, Request]:
    """What the `tranship manifest` commands of a script ask for, by the file that they write."""
    found: dict[str, Request] = {}
    for verb, *arguments in commands(script):
        if verb == "manifest":
            pairs = list(zip(arguments[::2], arguments[1::2], strict=True))
            flags = dict(pairs)
            options = dict(text.split("=") for flag, text in pairs if flag == "--option")
            found[flags["--output"]] = Request(
                flags["--architecture"],
                str(script.parent / flags["--config"]),
                flags["--layout"],
                options,
                flags.get("--quantization"),
            )
    return found
