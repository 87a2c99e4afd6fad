"""The application's own frames below a call: cheap enough for every recorded call (about 3 us at 40 frames)."""

# Paths are handled as text here: this runs for every new code object of a service.
# ruff: noqa: PTH100, PTH118, PTH120, PTH206
import os
import sys
from contextvars import ContextVar
from types import CodeType, FrameType

from paceline.trace.callers import MAX_CALLERS

# Frames seen where work was handed over (executor, thread, coroutine made but not yet running), for work whose own
# stack holds no application frame.
handed_over: ContextVar[tuple[str, ...]] = ContextVar("paceline_callers", default=())

_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_FOREIGN = ("site-packages", "dist-packages", ".venv", "venv", "node_modules")
_NAMELESS = ("<lambda>", "<listcomp>", "<genexpr>", "<setcomp>", "<dictcomp>")
_MAX_KNOWN = 20_000  # code objects; a service that makes code at run time must not make us grow


class AppFrames:
    """Finds frames of files below `root` that are neither installed packages nor ours."""

    def __init__(self, root: str) -> None:
        self.root = os.path.join(os.path.abspath(root), "")
        self._known: dict[CodeType, tuple[str, str] | None] = {}

    def chain(self) -> tuple[str, ...]:
        """Up to four frames "path:line function", innermost first; what was handed over when there is none."""
        frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 the documented way to reach one's caller
        found: list[str] = []
        known = self._known
        while frame is not None:
            code = frame.f_code
            try:
                site = known[code]
            except KeyError:
                site = self._look_at(code)
            if site is not None:
                found.append(f"{site[0]}:{frame.f_lineno} {site[1]}")
                if len(found) == MAX_CALLERS:
                    break
            frame = frame.f_back
        return tuple(found) if found else handed_over.get()

    def _look_at(self, code: CodeType) -> tuple[str, str] | None:
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        site = self._site(code)
        self._known[code] = site
        return site

    def _site(self, code: CodeType) -> tuple[str, str] | None:
        if code.co_filename.startswith("<") or code.co_name in _NAMELESS:  # "<frozen runpy>", "<string>"
            return None
        path = os.path.abspath(code.co_filename)
        if not path.startswith(self.root) or path.startswith(_OWN):
            return None
        relative = path[len(self.root) :]
        parts = relative.split(os.sep)
        # The standard library of an interpreter kept inside the project.
        if any(part in _FOREIGN for part in parts) or any(part.startswith("python3.") for part in parts):
            return None
        return relative, code.co_name
