"""Texts with expressions in braces: messages for people, and names of buffers."""

import re
from collections.abc import Iterable, Iterator, Mapping

from tranship.models.language import LanguageError, Scope, Value, evaluate
from tranship.schema.expression import Expression, to_text

_HOLE = re.compile(r"\{([^{}]*)\}")
_WORD = re.compile(r"<([a-z0-9_]+)>")


def fill_words(text: str, scope: Scope) -> str:
    """Evaluate what stands in braces; what depends on an index or axis keeps its braces.

    Raises:
        LanguageError: an expression has no value.
    """
    return _HOLE.sub(lambda hole: _written(evaluate(hole[1], scope)), text)


def _written(value: Value) -> str:
    return f"{{{to_text(value)}}}" if isinstance(value, Expression) else str(value)


def tensor_words(name: str) -> Mapping[str, str]:
    """Return what the words stand for: `<own>` is the last part of the module's name."""
    module, _, leaf = name.rpartition(".")
    parent, _, own = module.rpartition(".")
    return {
        "name": name,
        "module": module,
        "own": own,
        "parent": parent,
        "grandparent": parent.rpartition(".")[0],
        "leaf": leaf,
    }


def name_of(template: str, tensor: str, scope: Scope) -> str:
    """Write the name of a buffer that holds the tensors named `tensor`.

    Raises:
        LanguageError: a word or an expression has no value.
    """
    words = tensor_words(tensor)

    def word(found: re.Match[str]) -> str:
        key = found[1]
        value = words[key] if key in words else scope.names.get(key)
        if not isinstance(value, str):
            raise LanguageError(f"<{key}> in {template!r} is no text")
        return value

    return fill_words(_WORD.sub(word, template), scope)


def further_names(modules: Iterable[str], buffer: str, tensor: str, scope: Scope) -> Iterator[str]:
    """Write the names of a buffer in other modules.

    Raises:
        LanguageError: a word or an expression has no value.
    """
    leaf = buffer.rpartition(".")[2]
    for template in modules:
        yield f"{name_of(template, tensor, scope)}.{leaf}"
