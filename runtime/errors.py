"""What binding and sessions raise, besides plain `DiagnosticError`."""

from tranship.schema.diagnostics import DiagnosticError


class StalePlanError(DiagnosticError):
    """The plan was compiled from another manifest than the one at hand (TS811)."""


class DistributedError(DiagnosticError):
    """A step failed. Every rank raises it, with the findings of all ranks; `at` names the rank."""
