"""Templates: `{{name}}` in bodies, paths and headers, compiled once and filled in for each request."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

_NAME = rb"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}"
# A JSON string that is nothing but a placeholder becomes the value itself, a number or an object too; not where it is
# the name of a field, and not behind a backslash, where the quotation mark belongs to the text.
_JSON = re.compile(rb'(?<!\\)"' + _NAME + rb'"(?!\s*:)|' + _NAME)
_TEXT = re.compile(_NAME)


class Template:
    """Bytes with holes. `names` are those of the holes; without any, `render` costs nothing."""

    def __init__(self, data: bytes, pattern: re.Pattern[bytes], whole: int | None) -> None:
        self._parts: list[bytes] = []  # between the holes
        self._holes: list[tuple[str, bool]] = []  # name, and whether the value stands for itself
        end = 0
        for found in pattern.finditer(data):
            self._parts.append(data[end : found.start()])
            is_whole = whole is not None and found[whole] is not None
            self._holes.append(((found[1] or found[found.lastindex or 1]).decode(), is_whole))
            end = found.end()
        self._last = data[end:]
        self.names = frozenset(name for name, _ in self._holes)

    def render(self, values: Mapping[str, Any]) -> bytes:
        """The bytes with the values of all `names` in the holes."""
        if not self._holes:
            return self._last
        pieces = []
        for part, (name, is_whole) in zip(self._parts, self._holes, strict=True):
            pieces.append(part)
            pieces.append(self._write(values[name], is_whole))
        pieces.append(self._last)
        return b"".join(pieces)

    def _write(self, value: Any, is_whole: bool) -> bytes:
        raise NotImplementedError


class JsonTemplate(Template):
    """A JSON body. Inside a longer string a value is its text, escaped; alone it is what it is."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, _JSON, 1)

    def _write(self, value: Any, is_whole: bool) -> bytes:
        return msgspec.json.encode(value) if is_whole else msgspec.json.encode(as_text(value))[1:-1]


class PathTemplate(Template):
    """A path and query; values are percent-encoded, slashes too."""

    def __init__(self, path: str) -> None:
        super().__init__(path.encode(), _TEXT, None)

    def _write(self, value: Any, is_whole: bool) -> bytes:
        del is_whole
        return quote(as_text(value), safe="").encode()


class HeaderTemplate(Template):
    """A header's value; line breaks in what is put in become spaces."""

    def __init__(self, value: str) -> None:
        super().__init__(value.encode(), _TEXT, None)

    def _write(self, value: Any, is_whole: bool) -> bytes:
        del is_whole
        return " ".join(as_text(value).split()).encode()


def as_text(value: Any) -> str:
    """A value inside a text: a string as it is, anything else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
