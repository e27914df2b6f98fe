"""What a configuration makes impossible, gathered as diagnostics."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pydantic import ValidationError

from tranship.models.language import LanguageError, NotDivisibleError
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Location


class ImpossibleError(ValueError):
    """Something that cannot be declared: a code, what is wrong, and what to do."""

    def __init__(self, code: str, message: str, hint: str | None = None) -> None:
        self.code = code
        self.message = message
        self.hint = hint
        super().__init__(message)


@dataclass
class Problems:
    """Diagnostics in the order found, each once."""

    found: list[Diagnostic] = field(default_factory=list[Diagnostic])

    def add(self, diagnostic: Diagnostic) -> None:
        """Keep a diagnostic unless it is there already."""
        if diagnostic not in self.found:
            self.found.append(diagnostic)

    @contextmanager
    def gather(
        self, file: str, pointer: str, what: str = "", hint: str | None = None
    ) -> Generator[None]:
        """Keep what goes wrong inside as a diagnostic.

        Args:
            file: The data file that is read inside.
            pointer: The place in it.
            what: What could not be declared.
            hint: What users can do about it.
        """
        try:
            yield
        except ImpossibleError as error:
            self.add(Diagnostic(error.code, error.message, help=hint or error.hint))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            message = f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
            self.add(Diagnostic("TS759", message, Location(file, pointer)))
        except NotDivisibleError as error:
            own = str(error).startswith(("rows = ", "columns = "))
            message = f"{error}, of {what}" if own and what else str(error)
            self.add(Diagnostic("TS755", message, help=hint))
        except LanguageError as error:
            self.add(Diagnostic("TS759", str(error), Location(file, pointer)))

    def check(self) -> None:
        """Stop if anything was found.

        Raises:
            DiagnosticError: all that was found.
        """
        if self.found:
            raise DiagnosticError(self.found)
