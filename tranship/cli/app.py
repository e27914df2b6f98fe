"""The verbs of the command line, with their arguments and flags, which scripts depend on.

What a verb does is in the file of its name. Those are imported only when their verb runs, so that
help and completion come at once, and only `demo` loads torch.
"""

import gc
from typing import Annotated

import typer

from tranship import __version__
from tranship.cli.completion import complete_code, complete_path
from tranship.cli.output import Answer, Format, ReportFormat, Reporting, Strictness, deliver
from tranship.cli.parameters import (
    SPOT,
    FormatOption,
    MaxErrors,
    ReportOption,
    TraceArchitecture,
    TraceCheck,
    TraceDeepGemm,
    TraceOption,
    TraceQuantization,
    TraceRank,
    TraceSources,
    TransferFile,
    Warnings,
)

app = typer.Typer(
    name="tranship",
    help="Compile what a trainer holds and what an engine needs into one verified transfer plan.",
    epilog="Exit status: 0 fine, 1 findings, 2 usage or failure, 3 valid but different.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tranship {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Take the flags that come before a verb."""
    del version


@app.command("compile")
def compile_verb(
    transfer: TransferFile,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 3 if the plan would change.")
    ] = False,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="PATH", help="Instead of NAME.plan.json beside it."),
    ] = None,
    form: ReportOption = ReportFormat.HUMAN,
    max_errors: MaxErrors = 0,
    warnings: Warnings = Strictness.DEFAULT,
) -> None:
    """Compile a transfer file into a plan, verify it, and write it beside the file."""

    def verb() -> Answer:
        from tranship.cli.compile import run

        return run(transfer, output, check=check, is_strict=warnings is Strictness.ERROR)

    deliver(verb, Reporting(form, max_errors, warnings is Strictness.ERROR))


@app.command("verify")
def verify_verb(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A transfer file, or a plan with --transfer.",
            autocompletion=complete_path,
        ),
    ],
    transfer: Annotated[
        str | None,
        typer.Option(
            "--transfer",
            metavar="TRANSFER",
            help="What the plan was compiled from.",
            autocompletion=complete_path,
        ),
    ] = None,
    form: ReportOption = ReportFormat.HUMAN,
    max_errors: MaxErrors = 0,
    warnings: Warnings = Strictness.DEFAULT,
) -> None:
    """Prove that a plan does what the manifests need, without asking the compiler."""

    def verb() -> Answer:
        from tranship.cli.verify import run

        return run(file, transfer)

    deliver(verb, Reporting(form, max_errors, warnings is Strictness.ERROR))


@app.command("check")
def check_verb(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="Manifests, policies, placements, transfer files or plans.",
            autocompletion=complete_path,
        ),
    ],
    form: ReportOption = ReportFormat.HUMAN,
    max_errors: MaxErrors = 0,
    warnings: Warnings = Strictness.DEFAULT,
) -> None:
    """Check files one by one against their format and its rules."""

    def verb() -> Answer:
        from tranship.cli.check import run

        return run(files)

    deliver(verb, Reporting(form, max_errors, warnings is Strictness.ERROR))


@app.command("show")
def show_verb(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="A plan or a manifest.", autocompletion=complete_path),
    ],
    tensor: Annotated[
        str | None,
        typer.Option("--tensor", metavar="GLOB", help="Only tensors and buffers of such names."),
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", metavar="N", min=0, help="Only what this rank does.")
    ] = None,
    form: FormatOption = Format.HUMAN,
) -> None:
    """Write a plan or a manifest in words."""

    def verb() -> Answer:
        from tranship.cli.show import run

        return run(file, tensor, rank)

    deliver(verb, form)


@app.command("diff")
def diff_verb(
    old: Annotated[str, typer.Argument(metavar="OLD", help=SPOT, autocompletion=complete_path)],
    new: Annotated[str, typer.Argument(metavar="NEW", help=SPOT, autocompletion=complete_path)],
    form: ReportOption = ReportFormat.HUMAN,
    max_errors: MaxErrors = 0,
) -> None:
    """Say what the difference of two documents means; exit 3 if there is any."""

    def verb() -> Answer:
        from tranship.cli.diff import run

        return run(old, new)

    deliver(verb, Reporting(form, max_errors))


@app.command("breaking")
def breaking_verb(
    manifest: Annotated[
        str, typer.Argument(metavar="MANIFEST", help=SPOT, autocompletion=complete_path)
    ],
    against: Annotated[
        str, typer.Option("--against", metavar="OLD", help=SPOT, autocompletion=complete_path)
    ],
    form: ReportOption = ReportFormat.HUMAN,
    max_errors: MaxErrors = 0,
) -> None:
    """Find the changes of a manifest that break plans made with an older one."""

    def verb() -> Answer:
        from tranship.cli.breaking import run

        return run(manifest, against)

    deliver(verb, Reporting(form, max_errors))


@app.command("explain")
def explain_verb(
    code: Annotated[
        str | None,
        typer.Argument(
            metavar="CODE",
            help="A code from a report, such as TS203.",
            autocompletion=complete_code,
        ),
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List all codes.")] = False,
    form: FormatOption = Format.HUMAN,
) -> None:
    """Explain a diagnostic code: what is wrong, an example, what to do."""

    def verb() -> Answer:
        from tranship.cli.explain import run

        return run(code, listing=listing)

    deliver(verb, form)


@app.command("merge")
def merge_verb(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="Manifests of some ranks of one side.",
            autocompletion=complete_path,
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="OUT", help="What to write.")],
    form: FormatOption = Format.HUMAN,
) -> None:
    """Merge the manifests that each rank wrote into one of the whole side."""

    def verb() -> Answer:
        from tranship.cli.merge import run

        return run(files, output)

    deliver(verb, form)


@app.command("manifest")
def manifest_verb(
    architecture: Annotated[
        str, typer.Option("--architecture", "-a", metavar="NAME", help="A name, or a .toml file.")
    ],
    config: Annotated[
        str, typer.Option("--config", "-c", metavar="PATH", help="The model's config.json.")
    ],
    layout: Annotated[
        str, typer.Option("--layout", "-l", metavar="NAME", help="A name, or a .toml file.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="OUT", help="What to write.")],
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="The framework's own options."),
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option(
            "--quantization", metavar="NAME", help="bf16, fp8-block128 or fp8-block128-ue8m0."
        ),
    ] = None,
    side: Annotated[
        str | None,
        typer.Option("--side", metavar="SIDE", help="sender or receiver; else as the layout says."),
    ] = None,
    form: FormatOption = Format.HUMAN,
) -> None:
    """Declare what a framework holds of a model, with neither GPU nor framework."""

    def verb() -> Answer:
        from tranship.cli.manifest import run

        return run(architecture, config, layout, option or [], quantization, side, output)

    deliver(verb, form)


@app.command("trace")
def trace_verb(
    framework: Annotated[
        str, typer.Argument(metavar="FRAMEWORK", help="sglang, vllm or checkpoint.")
    ],
    config: Annotated[
        str,
        typer.Option(
            "--config", "-c", metavar="PATH", help="The model's config.json, or its folder."
        ),
    ],
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="OUT", help="What to write.")
    ] = None,
    tp: Annotated[int, typer.Option("--tp", min=1, help="Ranks of the engine.")] = 1,
    ep: Annotated[
        int, typer.Option("--ep", min=1, help="Groups of ranks that experts are spread over.")
    ] = 1,
    quantization: TraceQuantization = None,
    architecture: TraceArchitecture = None,
    sources: TraceSources = None,
    option: TraceOption = None,
    rank: TraceRank = None,
    deepgemm: TraceDeepGemm = None,
    check: TraceCheck = None,
    form: FormatOption = Format.HUMAN,
) -> None:
    """Declare what an engine holds, by running its own loading code without weights.

    For a checkpoint its files are declared, as a sender.
    """

    def verb() -> Answer:
        from tranship.cli.manifest import parse_options
        from tranship.cli.trace import Engine, run

        asked = Engine(
            framework,
            config,
            tp,
            ep,
            quantization,
            architecture,
            sources,
            parse_options(option or []),
            rank or [],
            deepgemm,
        )
        return run(asked, output, check)

    deliver(verb, form)


@app.command("engine-args")
def engine_args_verb(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A manifest made offline.")],
    form: FormatOption = Format.HUMAN,
) -> None:
    """Print the launch arguments with which an engine holds what a manifest declares."""

    def verb() -> Answer:
        from tranship.cli.engine_args import run

        return run(file)

    deliver(verb, form)


@app.command("schema")
def schema_verb(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="manifest, policy, placement, transfer or plan."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit 3 if a published file is out of date.")
    ] = False,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="DIR", help="Write (or check) the files there."),
    ] = None,
    form: FormatOption = Format.HUMAN,
) -> None:
    """Print, write or check the JSON Schemas of the file formats."""

    def verb() -> Answer:
        from tranship.cli.schema import run

        return run(name, output, check=check)

    deliver(verb, form)


@app.command("demo")
def demo_verb() -> None:
    """Compile, verify and replay a small transfer, and show what happened."""

    def verb() -> Answer:
        from tranship.cli.demo import run

        return run()

    deliver(verb, Format.HUMAN)


def main() -> None:
    """Run the command line and leave the process with its exit status."""
    gc.disable()  # a command is short, and gives its memory back by ending
    app(prog_name="tranship")
