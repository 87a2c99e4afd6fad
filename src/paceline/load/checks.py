"""Checks: is an answer what it should be, and which values does it hold for later requests?"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from paceline.load.parts import Capture, Checks, JsonCheck

STATUS, CHECK = "status", "check"  # errors of a Request
Headers = Sequence[tuple[bytes, bytes]]
_ABSENT: Any = object()


class Verdict(NamedTuple):
    """How an answer was judged: `error` as in a Request, and the name of the check that failed."""

    error: str | None = None
    check: str | None = None


FINE = Verdict()
_NOT_JSON = Verdict(CHECK, "the answer is JSON")


class Checker:
    """Judges answers by what a scenario asks of them, and takes captures from those that pass."""

    def __init__(self, checks: Checks, captures: Mapping[str, Capture] | None = None) -> None:
        self._checks, self._captures = checks, dict(captures or {})
        self._contains = [text.encode() for text in checks.contains]
        self._lacks = [text.encode() for text in checks.lacks]
        self._matches = [re.compile(pattern) for pattern in checks.matches]
        self._regexes = {name: re.compile(c.regex) for name, c in self._captures.items() if c.regex is not None}
        self._reads_json = bool(checks.json) or any(c.json is not None for c in self._captures.values())
        self.needed = checks != Checks() or bool(captures)  # False: the status says it all

    def judge(self, status: int, headers: Headers, body: bytes) -> tuple[Verdict, dict[str, Any]]:
        """The first check that fails, and what was captured (nothing unless all passed). `headers` in lower case."""
        allowed = self._checks.status
        if status >= 400 and status not in allowed:
            return Verdict(STATUS), {}
        if allowed and status not in allowed:
            return Verdict(CHECK, "status " + " or ".join(map(str, allowed))), {}
        failed = self._check_text(body)
        if failed is not None:
            return Verdict(CHECK, failed), {}
        answer: Any = None
        if self._reads_json:
            try:
                answer = msgspec.json.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError):
                return _NOT_JSON, {}
        for check in self._checks.json:
            if (failed := _check_json(check, answer)) is not None:
                return Verdict(CHECK, failed), {}
        return self._capture(headers, body, answer)

    def _check_text(self, body: bytes) -> str | None:
        for wanted, written in zip(self._contains, self._checks.contains, strict=True):
            if wanted not in body:
                return f'contains "{written}"'
        for unwanted, written in zip(self._lacks, self._checks.lacks, strict=True):
            if unwanted in body:
                return f'lacks "{written}"'
        if self._matches:
            text = body.decode("utf-8", "replace")
            for pattern in self._matches:
                if pattern.search(text) is None:
                    return f"matches /{pattern.pattern}/"
        return None

    def _capture(self, headers: Headers, body: bytes, answer: object) -> tuple[Verdict, dict[str, Any]]:
        values = {}
        for name, capture in self._captures.items():
            value = _ABSENT
            if capture.json is not None:
                value = at_pointer(answer, capture.json, _ABSENT)
            elif capture.header is not None:
                wanted = capture.header.lower().encode()
                value = next((v.decode("latin-1") for n, v in headers if n == wanted), _ABSENT)
            elif (found := self._regexes[name].search(body.decode("utf-8", "replace"))) is not None:
                value = found[1] if found.re.groups else found[0]
            if value is _ABSENT:
                value = capture.default
            if value is msgspec.UNSET:
                return Verdict(CHECK, f"captures {name}"), {}
            values[name] = value
        return FINE, values


def _check_json(check: JsonCheck, answer: object) -> str | None:
    value = at_pointer(answer, check.pointer, _ABSENT)
    if not check.exists:
        return None if value is _ABSENT else f"{check.pointer or 'the answer'} is absent"
    if check.equals is msgspec.UNSET:
        return None if value is not _ABSENT else f"{check.pointer} exists"
    fits = value == check.equals and isinstance(value, bool) == isinstance(check.equals, bool)  # 1 is not true
    return None if fits else f"{check.pointer or 'the answer'} equals {msgspec.json.encode(check.equals).decode()}"


def at_pointer(value: Any, pointer: str, default: Any = None) -> Any:
    """What a JSON pointer (RFC 6901) refers to in a decoded JSON value, or the default."""
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and re.fullmatch(r"0|[1-9]\d*", name) and int(name) < len(value):
            value = value[int(name)]
        else:
            return default
    return value
