"""Where the retrieved chunks stand in a message. Pure.

A chunk begins with a mark; it ends where the next begins. Where the last one ends nobody says, and the question often
follows it: it is taken to end at the first empty line, heading or tag, and when there is none, with its first line.
Whatever is wrong about that leaves a piece of a chunk in the prompt, never takes a piece of the question out.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

from paceline.accelerate.prompts.policy import BRACKET, LABEL, NUMBERED, RULE, TAG

_TAGS = re.compile(
    r"<(doc|document|chunk|passage|source|excerpt|snippet|article|result|search_result)(?:[ \t][^>\n]*)?>(.*?)</\1>",
    re.DOTALL | re.IGNORECASE,
)
# Patterns begin with a line feed, and are asked of a text with one put before it: a search for a fixed first character
# is several times faster than one for a line's start.
_LINE_START = r"\n[ \t]*"
_MARKS = {
    BRACKET: re.compile(rf"{_LINE_START}\[(\d{{1,3}})\]"),
    LABEL: re.compile(
        rf"{_LINE_START}(?:#{{1,6}} |\*\*|[-*] )?\[?"
        r"(?i:document|doc|passage|chunk|source|excerpt|snippet|article|result)[ ]?#?(\d{1,3})\b\]?(?=[^\w,]|$)"
    ),
    NUMBERED: re.compile(rf"{_LINE_START}(\d{{1,3}})[.)](?=[ \t])"),
}
_RULES = re.compile(r"\n(?:-{3,}|={3,}|\*{3,})[ \t\r]*(?=\n)")
# An empty line, a heading ("Question:", "## Question", "**Question**"), an opening or closing tag, another rule.
_ENDS = re.compile(
    r"\n(?=[ \t\r]*\n|[ \t]*(?:#{1,6} |\*\*|</?[A-Za-z]|[-=*]{3,}[ \t\r]*$|[A-Z][A-Za-z' ]{0,40}:))", re.MULTILINE
)
_AFTER_MARK = re.compile(r"[\s:.)\]*-]*")
_FENCE = re.compile(r"\n[ \t]*(```|~~~).*?(?:\n[ \t]*\1|\Z)", re.DOTALL)
_EMPTY_LINES = re.compile(r"\n[ \t\r]*\n\s*")


class Piece(NamedTuple):
    """A stretch of a text; `body` is where its words begin, after the mark."""

    start: int
    end: int
    body: int


_Find = Callable[[str], list[list[Piece]]]


class Pieces:
    """What a text consists of: chunks, paragraphs. Remembers the texts it was asked about, so make one for a prompt."""

    def __init__(self, forms: tuple[str, ...], pattern: str | None) -> None:
        self._finders = _finders(forms, pattern)
        self._chunks: dict[str, list[list[Piece]]] = {}
        self._bodies: dict[str, list[tuple[Piece, str]]] = {}

    def chunks(self, text: str) -> list[list[Piece]]:
        """Lists of chunks, two or more each, by the first form that finds any; none in a JSON text."""
        found = self._chunks.get(text)
        if found is None:
            found = self._chunks[text] = [] if is_json(text) else self._find(text)
        return found

    def bodies(self, text: str, least_chars: int) -> list[tuple[Piece, str]]:
        """Chunks and the paragraphs around them, in order, with their words; none in code fences or a JSON text."""
        found = self._bodies.get(text)
        if found is None:
            pieces = [chunk for group in self.chunks(text) for chunk in group]
            pieces = sorted(pieces + _paragraphs(text, pieces)) if not is_json(text) else []
            found = [
                (piece, text[piece[2] : piece[1]].strip()) for piece in pieces if piece[1] - piece[2] >= least_chars
            ]
            found = self._bodies[text] = [(piece, body) for piece, body in found if len(body) >= least_chars]
        return found

    def _find(self, text: str) -> list[list[Piece]]:
        if "\n" not in text and "</" not in text:
            return []
        framed = "\n" + text
        for find in self._finders:
            found = find(framed)
            if found:
                return [[Piece(a - 1, b - 1, c - 1) for a, b, c in group] for group in found if len(group) >= 2]
        return []


def _overlap(piece: Piece, others: Sequence[Piece]) -> bool:
    return any(other[0] < piece[1] and piece[0] < other[1] for other in others)


def is_json(text: str) -> bool:
    """True for what looks like a JSON value as a whole."""
    bare = text.strip()
    return bare[:1] + bare[-1:] in ("{}", "[]", '""') and len(bare) > 1


@lru_cache(maxsize=256)
def _finders(forms: tuple[str, ...], pattern: str | None) -> list[_Find]:
    finders: list[_Find] = []
    if pattern is not None:
        finders.append(partial(_marked, re.compile(rf"{_LINE_START}(?:{pattern})"), False))
    if TAG in forms:
        finders.append(_tagged)
    finders += [partial(_marked, _MARKS[form], True) for form in (BRACKET, LABEL, NUMBERED) if form in forms]
    if RULE in forms:
        finders.append(_ruled)
    return finders


def _paragraphs(text: str, chunks: list[Piece]) -> list[Piece]:
    """Stretches between empty lines, but for those in code fences and those that chunks reach into."""
    taken = [*(Piece(start, end, start) for start, end in fences(text)), *chunks]
    found = []
    start = 0
    for gap in _EMPTY_LINES.finditer(text):
        found.append(Piece(start, gap.start(), start))
        start = gap.end()
    found.append(Piece(start, len(text), start))
    if taken:
        found = [piece for piece in found if not _overlap(piece, taken)]
    return found


def fences(text: str) -> list[tuple[int, int]]:
    """Where code stands between ``` or ~~~; an open fence goes to the end."""
    if "```" not in text and "~~~" not in text:
        return []
    return [(match.start(), match.end() - 1) for match in _FENCE.finditer("\n" + text)]


def cut(text: str, pieces: Sequence[Piece]) -> str:
    """The text without these pieces (one at least, in order, apart); of the gaps around each the longer one stays."""
    kept, at = text[: pieces[0].start], pieces[0].end
    for piece in pieces[1:]:
        if text[at : piece.start].strip():
            kept = _joined(kept, text[at : piece.start])
        at = piece.end
    return _joined(kept, text[at:])


_GAP = re.compile(r"[ \t\r]*\n(?:[ \t\r]*\n)*|[ \t]+")


def _joined(before: str, after: str) -> str:
    bare = before.rstrip()
    if not after.strip():
        return bare + after
    gap = _GAP.match(after)
    if gap is None:
        return before + after
    if bare and gap[0].count("\n") > before.count("\n", len(bare)):
        return bare + after
    return before + after[gap.end() :]


def _tagged(text: str) -> list[list[Piece]]:
    if "</" not in text:
        return []
    groups: dict[str, list[Piece]] = {}
    for match in _TAGS.finditer(text):
        groups.setdefault(match[1].casefold(), []).append(Piece(match.start(), match.end(), match.start(2)))
    return list(groups.values())


def _marked(mark: re.Pattern[str], numbered: bool, text: str) -> list[list[Piece]]:
    """Chunks that begin with a mark. A number not above the one before begins another list."""
    marks = list(mark.finditer(text))
    if marks and (closed := fences(text[1:])):
        marks = [m for m in marks if not any(a < m.start() < b for a, b in closed)]
    groups: list[list[re.Match[str]]] = []
    last = -1
    for match in marks:
        number = int(match[1]) if numbered else last + 1
        if not groups or number <= last:
            groups.append([])
        groups[-1].append(match)
        last = number
    starts = [match.start() + 1 for match in marks] + [len(text)]
    found = []
    at = 0
    for group in groups:
        ends = starts[at + 1 : at + len(group)]
        at += len(group)
        ends.append(_end(text, group[-1].end(), starts[at]))
        found.append([Piece(m.start() + 1, end, m.end()) for m, end in zip(group, ends, strict=True)])
    return found


def _end(text: str, start: int, limit: int) -> int:
    """Where the last chunk of a list ends; an empty line between its mark and its words is not the end."""
    skipped = _AFTER_MARK.match(text, start, limit)
    start = skipped.end() if skipped else start
    sure = _ENDS.search(text, start, limit)
    if sure is not None:
        return sure.start()
    line = text.find("\n", start, limit)
    return limit if line < 0 else line


def _ruled(text: str) -> list[list[Piece]]:
    """What stands between two rules, the second one included."""
    rules = list(_RULES.finditer(text))
    return [[Piece(a.end() + 1, b.end(), a.end() + 1) for a, b in itertools.pairwise(rules)]]
