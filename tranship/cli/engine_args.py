"""`tranship engine-args`: how to start an engine so that it holds what a manifest declares."""

import shlex
from collections.abc import Sequence

from rich.text import Text

from tranship.cli.load import check_document, raise_errors
from tranship.cli.output import Answer
from tranship.models.launch import launch_arguments
from tranship.schema.canonical import Json
from tranship.schema.codec import load
from tranship.schema.manifest import Manifest


def run(file: str) -> Answer:
    """Find the launch arguments; people get them as a line for a shell.

    Raises:
        DiagnosticError: the manifest is wrong, or no arguments follow from it.
    """
    document = load(file, Manifest)
    raise_errors(check_document(document.value, document.source))
    arguments: Sequence[Json] = launch_arguments(document.value, file)
    line = Text(shlex.join(str(one) for one in arguments), overflow="ignore", no_wrap=True)
    return Answer([line], {"arguments": list(arguments)})
