"""`tranship demo`: a small transfer from its manifests to replayed weights."""

from tranship.cli.output import Answer
from tranship.schema.diagnostics import Diagnostic

_EXTRA = frozenset({"torch", "triton"})


def run() -> Answer:
    """Run the demonstration, which prints what happens as it happens."""
    try:
        from tranship.demo import main
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA:
            raise
        return Answer(diagnostics=(_missing(package),))
    return Answer(status=main())


def _missing(package: str) -> Diagnostic:
    return Diagnostic(
        "TS901",
        f"{package} is not installed, and replaying a plan needs it",
        help="install tranship with its runtime extra",
        suggestion="pip install 'tranship[runtime]'",
    )
