"""Parameters that several verbs of the command line take, and those of `trace`."""

from typing import Annotated

import typer

from tranship.cli.completion import complete_path
from tranship.cli.output import Format, ReportFormat, Strictness

TransferFile = Annotated[
    str,
    typer.Argument(
        metavar="TRANSFER", help="A NAME.transfer.toml file.", autocompletion=complete_path
    ),
]
FormatOption = Annotated[
    Format, typer.Option("--format", help="For people, or one JSON document for programs.")
]
ReportOption = Annotated[
    ReportFormat,
    typer.Option("--format", help="For people, for programs, or for a service that runs checks."),
]
MaxErrors = Annotated[
    int,
    typer.Option("--max-errors", metavar="N", min=0, help="Show at most N errors; 0 for all."),
]
Warnings = Annotated[
    Strictness,
    typer.Option("--warnings", "-W", help="-W error makes errors of warnings."),
]
SPOT = "A path, or REV:path as git has it."

TraceQuantization = Annotated[
    str | None,
    typer.Option(
        "--quantization",
        metavar="NAME",
        help="bf16, fp8-block128 or fp8-block128-ue8m0, in place of the config's own.",
    ),
]
TraceArchitecture = Annotated[
    str | None,
    typer.Option(
        "--architecture",
        "-a",
        metavar="NAME",
        help="Whose data name the checkpoint's tensors; else its files do.",
    ),
]
TraceSources = Annotated[
    str | None,
    typer.Option("--sources", metavar="PATH", help="A folder of safetensors files, or a manifest."),
]
TraceOption = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="The engine's own arguments."),
]
TraceRank = Annotated[
    list[int] | None, typer.Option("--rank", metavar="N", help="Trace this rank alone.")
]
TraceDeepGemm = Annotated[
    str | None,
    typer.Option(
        "--deepgemm",
        metavar="SCALES",
        help="Declare scales as DeepGEMM reads them: power_of_two (Hopper) or packed (Blackwell).",
    ),
]
TraceCheck = Annotated[
    str | None,
    typer.Option("--check", metavar="FILE", help="Exit 3 if this manifest is out of date."),
]
