"""Where two prompts of one template part, and what the piece is that parts them. Pure.

What is kept of a prompt are hashes of its words (Python's own, keyed anew in each process) and no text; what is shown
of the piece that varies is a kind ("timestamp") and a pattern in which every letter and digit is masked.
"""

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from paceline.accelerate.prompts.segments import Segment
from paceline.wire.tokens import BYTES_PER_TOKEN

_MOST_WORDS = 4_096  # of a prompt; what comes later breaks nothing early
_WINDOW = 64  # words a varying piece may have and the rest still be found again
_IN_STEP = 3  # equal words that show two texts are in step again
_PATTERN_CHARS = 40
_SHOWN = frozenset("-:/.,+@_ aA0")

TEXT = "text"  # a piece of free words: a question, a document
_KINDS = (
    ("timestamp", re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d.*")),
    ("date", re.compile(r"\d{4}-\d\d-\d\d|\d{1,2}[./]\d{1,2}[./]\d{2,4}|(?:\w+,? )?\w+ \d{1,2},? \d{4}", re.ASCII)),
    ("time", re.compile(r"\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?(?: ?[AaPp]\.?[Mm]\.?)?Z?")),
    (
        "id",
        re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|(?=\D*\d)(?=[^A-Za-z]*[A-Za-z])[\w-]{6,}"),
    ),
    ("e-mail address", re.compile(r"[^@\s]+@[^@\s]+\.\w+")),
    ("address", re.compile(r"https?://\S+")),
    ("number", re.compile(r"[-+]?\d[\d.,]*")),
)
_EDGES = ".,;:!?()[]{}<>\"'`*"
_MOST_NAME_WORDS = 3


class Words(NamedTuple):
    """One segment of a prompt that is kept to compare others with."""

    field: str
    digest: int  # of its text
    words: "array[int]"


@dataclass(frozen=True, slots=True)
class Break:
    """Where a prompt parts from the one before. Tokens are estimates."""

    field: str | None  # None: the prompts are equal as far as they go
    kind: str  # timestamp, date, time, id, number, e-mail address, address, name, text
    pattern: str  # of the varying piece, masked
    stable_tokens: int  # before it
    movable_tokens: int  # after it that are equal again, and could be cached if the piece stood at the end


def words_of(segments: Sequence[Segment]) -> list[Words]:
    """What to keep of a prompt: at most 4,096 words, about 35 KB. Costs about 10 us a KB."""
    kept = []
    left = _MOST_WORDS
    for field, text in segments:
        words = array("q", map(hash, text.split()[:left]))
        kept.append(Words(field, hash(text), words))
        left -= len(words)
        if left <= 0:
            break
    return kept


def compare(kept: Sequence[Words], segments: Sequence[Segment]) -> Break:
    """Find the first piece of a prompt that differs from the one kept. Costs about 15 us a KB."""
    stable = movable = 0
    first: tuple[str, str] | None = None
    free = False  # behind a piece of free text only whole segments can still be equal
    for old, (field, text) in zip(kept, segments, strict=False):
        if old.digest == hash(text):
            if first is None:
                stable += len(text)
            else:
                movable += len(text)
            continue
        if free:
            continue
        before, after, piece, free = _part(old.words, text)
        if first is None:
            first, stable, movable = (field, piece), stable + before, after
        else:
            movable += after
    if first is None:
        return Break(None, "", "", stable // BYTES_PER_TOKEN, 0)
    field, piece = first
    return Break(field, kind_of(piece), masked(piece), stable // BYTES_PER_TOKEN, movable // BYTES_PER_TOKEN)


def _part(old: "array[int]", text: str) -> tuple[int, int, str, bool]:
    """Chars before the first varying piece, equal chars after it, the piece, and whether the end was free text."""
    words = text.split()
    new = array("q", map(hash, words[: len(old) + 4 * _WINDOW]))
    at = _same(old, new, 0, 0)
    before = sum(map(len, words[:at])) + at
    after, piece = 0, ""
    i = j = at
    while i < len(old) and j < len(new):
        step = _in_step(old, new, i, j)
        if step is None:
            tail = _same_tail(old, new, i, j)
            piece = piece or " ".join(words[j : len(words) - tail])
            return before, after + sum(map(len, words[len(words) - tail :])) + tail, piece, tail == 0
        piece = piece or " ".join(words[j : step[1]])
        i, j = step
        run = _same(old, new, i, j)
        after += sum(map(len, words[j : j + run])) + run
        i, j = i + run, j + run
    return before, after, piece or " ".join(words[j:]), after == 0


def _same(old: "array[int]", new: "array[int]", i: int, j: int) -> int:
    """How many words from here on are equal."""
    run = 0
    for a, b in zip(old[i:], new[j:], strict=False):
        if a != b:
            break
        run += 1
    return run


def _same_tail(old: "array[int]", new: "array[int]", i: int, j: int) -> int:
    run = 0
    for a, b in zip(reversed(old[i:]), reversed(new[j:]), strict=False):
        if a != b:
            break
        run += 1
    return run


def _in_step(old: "array[int]", new: "array[int]", i: int, j: int) -> tuple[int, int] | None:
    """The nearest places behind here from which a few words are equal."""
    places: dict[tuple[int, ...], int] = {}
    for k in range(i, min(i + _WINDOW, len(old) - _IN_STEP + 1)):
        places.setdefault(tuple(old[k : k + _IN_STEP]), k)
    for k in range(j, min(j + _WINDOW, len(new) - _IN_STEP + 1)):
        place = places.get(tuple(new[k : k + _IN_STEP]))
        if place is not None:
            return place, k
    return None


def kind_of(piece: str) -> str:
    """What a varying piece looks like; "name" for up to three words, "text" for more."""
    bare = piece.strip(_EDGES + " ")
    for kind, form in _KINDS:
        if form.fullmatch(bare):
            return kind
    return "name" if len(bare.split()) <= _MOST_NAME_WORDS else TEXT


def masked(piece: str) -> str:
    """The shape of a piece: words as "a", numbers as "0", a few signs as they are, all else as "?"."""
    shape = re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", piece[: 4 * _PATTERN_CHARS]))
    shape = "".join(char if char in _SHOWN else "?" for char in shape)
    shape = re.sub(r"(a )\1{2,}", "a .. ", re.sub(r"\?+", "?", shape))
    return shape if len(shape) <= _PATTERN_CHARS else shape[: _PATTERN_CHARS - 2] + ".."
