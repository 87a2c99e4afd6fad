"""Data flow between the calls of one request, seen without storing any text.

From each call's output a few excerpts are kept in memory; a later call "uses" it when they appear in its input. Words
the user wrote are first taken out of the input, so a label that the question itself contains is no evidence.

When this is wrong: a use through anything but text (a score, a boolean, control flow) is not seen; a short output
that the later prompt's own fixed wording contains is seen as a use although it is none. Rules that advise to run calls
side by side must treat "not seen" as likely, not certain.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import parse_qsl

EXCERPT_CHARS = 40
MAX_EXCERPTS = 6  # a call
MAX_OUTPUTS = 64  # a trace; the oldest go first
MAX_TEXT = 200_000  # characters of an input that are searched
SHORT_CHARS = 80  # up to here an output is looked for whole
_MIN_CHARS = 3
_MIN_KNOWN_CHARS = 8  # shorter words of the user's are not taken out of prompts
_MAX_KNOWN = 50
_TRIM = " \t\r\n\"'`.,;:!?*#()[]{}"


class Flow:
    """Outputs seen so far in one trace, and what the user sent."""

    __slots__ = ("_known", "outputs", "request_body", "request_query")

    def __init__(self) -> None:
        self.outputs: list[tuple[str, tuple[str, ...]]] = []  # (span id, excerpts)
        self.request_body = b""
        self.request_query = b""
        self._known: list[str] | None = None

    def remember(self, span_id: str, texts: Iterable[str]) -> None:
        """Keep excerpts of what a call gave back."""
        found = tuple(e for text in texts for e in excerpts(text))[: MAX_EXCERPTS * 4]
        if found:
            self.outputs.append((span_id, found))
            del self.outputs[:-MAX_OUTPUTS]

    def uses(self, text: str) -> list[str]:
        """Ids of the spans whose output appears in `text`."""
        if not self.outputs:
            return []
        full = text[:MAX_TEXT].casefold()
        words = self._user_words()
        rest = full
        for said in words:
            rest = rest.replace(said, "\n")
        # An output that repeats a whole text of the user's (a rewritten question, say) cannot be told from it: a use.
        return [
            span_id
            for span_id, found in self.outputs
            if any(_stands_in(e, full if e in words else rest) for e in found)
        ]

    def _user_words(self) -> list[str]:
        if self._known is None:
            texts = [*json_strings(self.request_body), *(v for _, v in parse_qsl(self.request_query.decode("latin-1")))]
            kept = {t.strip().casefold() for t in texts if len(t.strip()) >= _MIN_KNOWN_CHARS}
            self._known = sorted(kept, key=len, reverse=True)[:_MAX_KNOWN]
            self.request_body = b""
        return self._known


def excerpts(text: str) -> list[str]:
    """What to look for, case-folded: a short text whole, the string values of a JSON answer, or 40-character pieces.

    Pieces come from the starts of lines spread over the text, so that joining or re-wrapping paragraphs keeps them.
    """
    text = text.strip().casefold()
    if text[:1] in ("{", "["):
        values = [v for v in json_strings(text.encode()) if v != text]
        if values:
            return [e for value in values[:MAX_EXCERPTS] for e in excerpts(value)][:MAX_EXCERPTS]
    if len(text) <= SHORT_CHARS:
        short = text.strip(_TRIM)
        return [short] if len(short) >= _MIN_CHARS else []
    lines = [line.strip() for line in text.splitlines() if len(line.strip()) >= EXCERPT_CHARS]
    if len(lines) < 2:
        longest = lines[0] if lines else text
        step = max(1, (len(longest) - EXCERPT_CHARS) // (MAX_EXCERPTS - 1))
        pieces = [longest[at : at + EXCERPT_CHARS] for at in range(0, len(longest) - EXCERPT_CHARS + 1, step)]
        return pieces[:MAX_EXCERPTS]
    return [line[:EXCERPT_CHARS] for line in lines[:: -(-len(lines) // MAX_EXCERPTS)]]


def vector_excerpt(vector: Sequence[Any]) -> str:
    """A stand-in for an embedding, so that a query made with it is seen to use it."""
    return "vector " + " ".join(f"{float(x):.5g}" for x in vector[:4])


def json_strings(data: bytes) -> list[str]:
    """All string values of a JSON text, or the text itself when it is not JSON; nothing for empty data."""
    if not data:
        return []
    try:
        return list(_strings(json.loads(data)))
    except (ValueError, RecursionError):
        return [data.decode("utf-8", "replace")]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _stands_in(excerpt: str, text: str) -> bool:
    """True when the excerpt is in the text; a short one only as whole words."""
    at = text.find(excerpt)
    if len(excerpt) >= EXCERPT_CHARS:
        return at >= 0
    while at >= 0:
        end = at + len(excerpt)
        if not (_joined(text[at - 1 : at], excerpt[0]) or _joined(excerpt[-1], text[end : end + 1])):
            return True
        at = text.find(excerpt, at + 1)
    return False


def _joined(left: str, right: str) -> bool:
    """True when two neighbouring characters belong to one word. Scripts without spaces have no such words."""
    return left.isascii() and right.isascii() and left.isalnum() and right.isalnum()
