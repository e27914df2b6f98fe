"""Inert stand-ins for packages that an engine imports, but does not use to load a model."""

import importlib
import importlib.abc
import importlib.machinery
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence

from pydantic_core.core_schema import CoreSchema, any_schema


class Inert:
    """An object that can be called, subscripted and asked for attributes, and does nothing."""

    def __init__(self, name: str) -> None:
        self._inert_name = name

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Return the argument when used as a decorator, else another inert object."""
        if len(args) == 1 and not kwargs and isinstance(args[0], types.FunctionType | type):
            return args[0]
        return Inert(f"{self._inert_name}()")

    def __getattr__(self, name: str) -> "Inert":
        if name.startswith("__"):
            raise AttributeError(name)
        return Inert(f"{self._inert_name}.{name}")

    def __getitem__(self, key: object) -> "Inert":
        return self

    def __or__(self, other: object) -> "Inert":
        return self

    def __ror__(self, other: object) -> "Inert":
        return self

    def __iter__(self) -> Iterator[object]:
        return iter(())

    def __bool__(self) -> bool:
        return False

    def __mro_entries__(self, bases: tuple[type, ...]) -> tuple[type, ...]:
        return (object,)

    def __repr__(self) -> str:
        return f"<inert {self._inert_name}>"


class InertModule(types.ModuleType):
    """A module in which every name exists: capitalized names are classes, others are inert."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        value = (
            InertType(name, (InertBase,), {})
            if name[:1].isupper()
            else Inert(f"{self.__name__}.{name}")
        )
        setattr(self, name, value)
        return value


class InertType(type):
    """Type of stand-in classes: every class attribute exists and is inert."""

    def __getattr__(cls, name: str) -> Inert:
        if name.startswith("__"):
            raise AttributeError(name)
        return Inert(f"{cls.__name__}.{name}")


class InertBase(metaclass=InertType):
    """Base of stand-in classes: can be built, derived from and used as a pydantic field's type."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __init_subclass__(cls, **kwargs: object) -> None:
        pass

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> CoreSchema:
        return any_schema()


class InertFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an inert module for every import below the given top-level names."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Find an inert module for the names."""
        if fullname.partition(".")[0] not in self.names:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Make an inert module."""
        return InertModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Give the module a version: some packages ask for it."""
        vars(module)["__version__"] = "0"


def install(names: Iterable[str]) -> None:
    """Let imports of the packages `names` that are not installed succeed with inert modules.

    Transformers caches which optional packages exist; it is asked first, lest it take a stand-in
    for the package.
    """
    _let_transformers_look_around()
    sys.meta_path.append(InertFinder(names))


def _let_transformers_look_around() -> None:
    import_utils = importlib.import_module("transformers.utils.import_utils")
    probes: list[tuple[str, Callable[..., object]]] = inspect.getmembers(
        import_utils, inspect.isroutine
    )
    for name, probe in probes:
        if name.startswith("is_") and name.endswith("_available"):
            try:
                probe()
            except (ImportError, TypeError):  # a probe with arguments is not one of a package
                continue
