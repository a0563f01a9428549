"""Run a registration when, and only when, the module that it extends is imported.

verl loads its plugins in every process, many of which never train, score or roll out. Importing verl's registries there
would cost seconds a process (agent loops 1.2 s, reward managers 1.4 s, the V1 trainer 1.5 s on two cores). So each
registration waits for the module whose registry it fills: Python asks the finders on `sys.meta_path` for a module, ours
hands the search on and, once the module has executed, imports the registration.

An error in a registration is raised out of the import that triggered it, so it cannot be overlooked.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

__all__ = ["pending", "when_imported"]


class _NotifyingLoader(importlib.abc.Loader):
    """Executes a module by its own loader, then imports what waited for it."""

    def __init__(self, loader: importlib.abc.Loader, finder: _Finder) -> None:
        self._loader, self._finder = loader, finder

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module must look as if nobody had stood in between: inspect and pickle read these two.
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._finder.notify(module.__name__)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self) -> None:
        self.waiting: dict[str, list[str]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.waiting:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _NotifyingLoader(spec.loader, self)
                return spec
        return None

    def notify(self, name: str) -> None:
        for registration in self.waiting.pop(name, []):
            importlib.import_module(registration)


_finder = _Finder()


def when_imported(name: str, registration: str) -> None:
    """Import the module `registration` right after the module `name` has been executed, or now if it already was.

    Args:
        name: Full name of the module that is waited for, for example `verl.trainer.ppo.v1`.
        registration: Full name of a module whose import registers something there.
    """
    if name in sys.modules and not getattr(sys.modules[name].__spec__, "_initializing", False):
        importlib.import_module(registration)
        return
    if registration not in _finder.waiting.setdefault(name, []):
        _finder.waiting[name].append(registration)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def pending() -> dict[str, list[str]]:
    """Return what still waits: module name -> registrations."""
    return {name: list(registrations) for name, registrations in _finder.waiting.items()}
