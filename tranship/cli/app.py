"""The verbs of the command line, with their arguments and flags, which scripts depend on.

What a verb does is in the file of its name. Those are imported only when their verb runs, so that
help and completion come at once, and only `demo` loads torch.
"""

from typing import Annotated

import typer

from tranship import __version__
from tranship.cli.output import Answer, Format, deliver

app = typer.Typer(
    name="tranship",
    help="Compile what a trainer holds and what an engine needs into one verified transfer plan.",
    epilog="Exit status: 0 fine, 1 findings, 2 usage or failure, 3 valid but different.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

TransferFile = Annotated[str, typer.Argument(metavar="TRANSFER", help="A NAME.transfer.toml file.")]
FormatOption = Annotated[
    Format, typer.Option("--format", help="For people, or one JSON document for programs.")
]


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
    form: FormatOption = Format.HUMAN,
) -> None:
    """Compile a transfer file into a plan, verify it, and write it beside the file."""

    def verb() -> Answer:
        from tranship.cli.compile import run

        return run(transfer, output, check=check)

    deliver(verb, form)


@app.command("verify")
def verify_verb(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A transfer file, or a plan with --transfer.")
    ],
    transfer: Annotated[
        str | None,
        typer.Option("--transfer", metavar="TRANSFER", help="What the plan was compiled from."),
    ] = None,
    form: FormatOption = Format.HUMAN,
) -> None:
    """Prove that a plan does what the manifests need, without asking the compiler."""

    def verb() -> Answer:
        from tranship.cli.verify import run

        return run(file, transfer)

    deliver(verb, form)


@app.command("check")
def check_verb(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...", help="Manifests, policies, placements, transfer files or plans."
        ),
    ],
    form: FormatOption = Format.HUMAN,
) -> None:
    """Check files one by one against their format and its rules."""

    def verb() -> Answer:
        from tranship.cli.check import run

        return run(files)

    deliver(verb, form)


@app.command("show")
def show_verb(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A plan or a manifest.")],
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


@app.command("explain")
def explain_verb(
    code: Annotated[
        str | None, typer.Argument(metavar="CODE", help="A code from a report, such as TS203.")
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
        list[str], typer.Argument(metavar="FILE...", help="Manifests of some ranks of one side.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="OUT", help="What to write.")],
    form: FormatOption = Format.HUMAN,
) -> None:
    """Merge the manifests that each rank wrote into one of the whole side."""

    def verb() -> Answer:
        from tranship.cli.merge import run

        return run(files, output)

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
    app(prog_name="tranship")
