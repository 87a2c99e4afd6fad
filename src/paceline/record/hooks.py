"""Import hook: patches a library right after the service imported it; never imports one itself."""

import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

from paceline.record.warn import warn_once

Patch = Callable[[ModuleType], None]


class ImportHook(MetaPathFinder):
    """Calls `patches[name](module)` once each named module has been executed."""

    def __init__(self, patches: dict[str, Patch]) -> None:
        self._patches = patches

    def install(self) -> None:
        """Go first in line; modules that are already there are patched now."""
        sys.meta_path.insert(0, self)
        for name in list(self._patches):
            module = sys.modules.get(name)
            if module is not None:
                self._apply(name, module)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec the other finders give, with one step added to its loader."""
        if fullname not in self._patches:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is self or find is None:
                continue
            spec: importlib.machinery.ModuleSpec | None = find(fullname, path, target)
            if spec is not None:
                self._extend(fullname, spec)
                return spec
        return None

    def _extend(self, name: str, spec: importlib.machinery.ModuleSpec) -> None:
        loader = spec.loader
        original = getattr(loader, "exec_module", None)
        if original is None:
            return

        def exec_module(module: ModuleType) -> None:
            original(module)
            self._apply(name, module)

        try:
            # On the instance: the loader stays what it is for everybody who looks at its type.
            loader.exec_module = exec_module  # type: ignore[union-attr, method-assign]
        except AttributeError:
            warn_once(f"{name} is not recorded: its loader cannot be extended")

    def _apply(self, name: str, module: ModuleType) -> None:
        patch = self._patches.pop(name, None)
        if patch is None:
            return
        try:
            patch(module)
        except Exception as error:  # noqa: BLE001 an unknown version of the library must still work
            warn_once(f"{name} is not recorded", error)
