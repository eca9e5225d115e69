"""Find plug-ins: in every module of a package and every entry point of a group, once, on first use."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import entry_points
from typing import Generic, Protocol, TypeVar

from quantbench.core.errors import UsageError, unknown_name
from quantbench.core.text import shortened


class Named(Protocol):
    """What a registry holds: anything with a name."""

    @property
    def name(self) -> str:
        """The name people use for it."""


T = TypeVar("T", bound=Named)


class Registry(Generic[T]):
    """Plug-ins of one kind: the module-level objects of that kind in the modules of ``package`` and in entry points.

    Modules whose name starts with an underscore are helpers and are not scanned. An entry point names an object of that kind,
    or a module that holds some; its group is named like the package by default. An entry point that cannot be imported is
    reported in a warning and left out, and the others still work.
    """

    def __init__(self, package: str, kind: type[T], noun: str, group: str = "") -> None:
        """``noun`` is the word for one plug-in in error messages."""
        self._package = package
        self._group = group or package
        self._kind = kind
        self._noun = noun

    def __getitem__(self, name: str) -> T:
        """The plug-in with that name; UsageError with the nearest names if there is none."""
        try:
            return self._found[name]
        except KeyError:
            raise unknown_name(self._noun, name, self._found) from None

    def __contains__(self, name: object) -> bool:
        """Whether there is a plug-in with that name."""
        return name in self._found

    def __iter__(self) -> Iterator[T]:
        """All plug-ins, by name."""
        return iter(self._found[name] for name in sorted(self._found))

    def import_own(self) -> None:
        """Import the package's modules, but no entry points, so that processes forked from this one have them loaded."""
        for name in self._own():
            importlib.import_module(name)

    def _own(self) -> list[str]:
        """The modules of the package that are scanned."""
        package = importlib.import_module(self._package)
        found = (info.name for info in pkgutil.iter_modules(package.__path__))
        return [f"{self._package}.{name}" for name in found if not name.startswith("_")]

    @cached_property
    def _scanned(self) -> tuple[dict[str, T], dict[str, str], dict[str, str]]:
        """Plug-ins by name, broken entry points with the reason, and the distributions of the other entry points."""
        found: dict[str, T] = {}
        sources: dict[str, str] = {}
        broken: dict[str, str] = {}
        for name in self._own():
            self._collect(importlib.import_module(name), found)
        for point in entry_points(group=self._group):
            try:
                source = point.load()
            except (Exception, SystemExit) as error:  # noqa: BLE001 - third-party code, which may fail in any way
                said = shortened(" ".join(str(error).split()))
                broken[f"{point.name} = {point.value}"] = type(error).__name__ + (f": {said}" if said else "")
            else:
                before = set(found)
                self._collect(source, found)
                if point.dist:
                    sources |= dict.fromkeys(found.keys() - before, point.dist.name)
        for point_text, reason in broken.items():
            warnings.warn(
                f"the {self._noun} plug-in {point_text!r} (group {self._group}) cannot be imported and is left out ({reason}); "
                "fix or uninstall the package it came with",
                stacklevel=2,
            )
        return found, broken, sources

    @property
    def broken(self) -> Mapping[str, str]:
        """Entry points that were left out, as ``name = module:object``, each with the reason why it cannot be imported."""
        return self._scanned[1]

    @property
    def distributions(self) -> Mapping[str, str]:
        """The distribution of each plug-in from an entry point, by the plug-in's name."""
        return self._scanned[2]

    @property
    def _found(self) -> dict[str, T]:
        return self._scanned[0]

    def _collect(self, source: object, found: dict[str, T]) -> None:
        candidates = [source] if isinstance(source, self._kind) else list(vars(source).values())
        for candidate in candidates:
            if isinstance(candidate, self._kind):
                other = found.setdefault(candidate.name, candidate)
                if other is not candidate:
                    raise UsageError(f"two {self._noun}s are named {candidate.name!r}; rename or uninstall one of them")
