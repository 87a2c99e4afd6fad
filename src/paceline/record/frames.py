"""The application's own frames below a call: cheap enough for every recorded call (about 3 us at 40 frames)."""

# Paths are handled as text here: this runs for every new code object of a service.
# ruff: noqa: PTH100, PTH118, PTH120, PTH206
import os
import sys
import threading
from contextvars import ContextVar
from types import CodeType, FrameType

from paceline.trace.callers import MAX_CALLERS

# Frames seen where work was handed over, for work whose own stack holds no application frame: a coroutine that was
# made but not yet running, and a call given to a thread (which may enter a context of its own, so not a ContextVar).
handed_over: ContextVar[tuple[str, ...]] = ContextVar("paceline_callers", default=())


class _HandedToThread(threading.local):
    callers: tuple[str, ...] = ()


handed_to_thread = _HandedToThread()

_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_FOREIGN = ("site-packages", "dist-packages", ".venv", "venv", "node_modules")
# A coroutine's caller is whoever awaits it, not whoever runs the event loop below its task.
_LOOP_FILES = tuple(os.path.join("asyncio", name) for name in ("events.py", "base_events.py", "runners.py"))
_LOOP_NAMES = ("_run", "_run_once", "run", "run_forever", "run_until_complete")
_NAMELESS = ("<lambda>", "<listcomp>", "<genexpr>", "<setcomp>", "<dictcomp>")
_BOUNDARY: dict[int, str] = {}
_MAX_KNOWN = 20_000  # code objects; a service that makes code at run time must not make us grow


class AppFrames:
    """Finds frames of files below `root` that are neither installed packages nor ours."""

    def __init__(self, root: str) -> None:
        self.root = os.path.join(os.path.abspath(root), "")
        # By id, as hashing a code object reads all of it; the entry keeps the object, so no id is used twice.
        # The second part maps an instruction to its frame text, and is None for foreign code.
        self._known: dict[int, tuple[CodeType, dict[int, str] | None]] = {}

    def chain(self) -> tuple[str, ...]:
        """Up to four frames "path:line function", innermost first; what was handed over when there is none."""
        frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 the documented way to reach one's caller
        found: list[str] = []
        known = self._known
        while frame is not None:
            code = frame.f_code
            entry = known.get(id(code)) or self._look_at(code)
            texts = entry[1]
            if texts is _BOUNDARY:
                break
            if texts is not None:
                text = texts.get(frame.f_lasti)
                if text is None:
                    text = texts[frame.f_lasti] = f"{texts[-1]}:{frame.f_lineno} {code.co_name}"
                found.append(text)
                if len(found) == MAX_CALLERS:
                    break
            frame = frame.f_back
        return tuple(found) if found else handed_over.get() or handed_to_thread.callers

    def _look_at(self, code: CodeType) -> tuple[CodeType, dict[int, str] | None]:
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        if code.co_name in _LOOP_NAMES and code.co_filename.endswith(_LOOP_FILES):
            texts: dict[int, str] | None = _BOUNDARY
        else:
            path = self._path(code)
            texts = None if path is None else {-1: path}
        entry = self._known[id(code)] = (code, texts)
        return entry

    def _path(self, code: CodeType) -> str | None:
        """Path below the root for the application's own code, else None."""
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
        return relative
