"""`tranship manifest`: declare a side offline, from a config.json and data files."""

from collections.abc import Sequence

import typer

from tranship.cli.layout import GOOD, count, flow
from tranship.cli.load import check_document, raise_errors, refuse_inputs, unwritten
from tranship.cli.output import Answer, answer_width
from tranship.models.produce import Request, produce
from tranship.schema.codec import digest, dump, write_atomically
from tranship.schema.manifest import Side


def run(
    architecture: str,
    config: str,
    layout: str,
    options: Sequence[str],
    quantization: str | None,
    side: str | None,
    output: str,
) -> Answer:
    """Make a manifest and write it; it is checked like any other.

    Raises:
        DiagnosticError: the model cannot be held like this, or a file is broken or in the way.
        typer.BadParameter: an option is not NAME=VALUE, or the side is none.
    """
    given = parse_options(options)
    if side not in (None, *Side):
        raise typer.BadParameter(f"--side {side!r} is neither sender nor receiver")
    refuse_inputs(output, [config])
    manifest = produce(
        Request(architecture, config, layout, given, quantization, Side(side) if side else None)
    )
    data = dump(manifest)
    raise_errors(check_document(manifest, unwritten(output, data)))
    write_atomically(output, data)
    parts = [
        ("written", GOOD),
        count(manifest.world_size, "rank"),
        count(len(manifest.buffers), "buffer family", "buffer families"),
        f"{len(data):,} bytes",
    ]
    return Answer(
        [*flow(f"{output}  ", parts, answer_width())],
        {"output": output, "digest": digest(data), "ranks": manifest.world_size},
    )


def parse_options(texts: Sequence[str]) -> dict[str, str]:
    """Read NAME=VALUE.

    Raises:
        typer.BadParameter: one is not.
    """
    return dict(map(_option, texts))


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"--option {text!r} is not NAME=VALUE")
    return name.strip(), value.strip()
