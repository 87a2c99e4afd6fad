"""The sentences of a context, and which of them answer a question. Pure."""

import math
import re
from functools import lru_cache
from typing import NamedTuple

from paceline.testing.words import topics

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[A-Z0-9\"'(\[*])")
_MARK = re.compile(r"[-*•]\s|\d{1,2}[.)]\s|#{1,6}\s")
_HEADING_CHARS = 160
_FULL_LINE = 0.6  # of the width; a shorter one was ended on purpose
_CARRY, _DECAY = 0.8, 0.95  # of a heading's fit to the sentences under it


class _Sentence(NamedTuple):
    text: str
    about: frozenset[str]
    heading: bool


def ranked_sentences(context: str, question: str) -> list[str]:
    """The sentences of `context`, word for word (white space aside), those that fit `question` best first.

    A sentence fits by the words it shares with the question, rare ones counting more, and by those that the heading
    above it shares. Headings and questions in the context are no answers; they come only when there is nothing else.
    """
    sentences = [s for paragraph in re.split(r"\n\s*\n", context) for s in _sentences(paragraph)]
    asked = topics(question)
    weights = {}
    for word in asked:
        having = sum(word in s.about for s in sentences)
        weights[word] = math.log(1 + len(sentences) / having) if having else 0.0
    ranked: list[tuple[float, int, str]] = []
    carried = 0.0
    for place, sentence in enumerate(sentences):
        fit = sum(weights[word] for word in asked & sentence.about)
        if sentence.heading:
            carried = _CARRY * fit
        else:
            ranked.append((-(fit + carried), place, sentence.text))
            carried *= _DECAY
    return [text for _, _, text in sorted(ranked)] or [s.text for s in sentences]


@lru_cache(maxsize=8192)
def _sentences(paragraph: str) -> tuple[_Sentence, ...]:
    """One paragraph's sentences; remembered, because passages of a knowledge base come again and again."""
    lines = [line.strip() for line in paragraph.splitlines() if line.strip()]
    heading = [lines.pop(0)] if len(lines) > 1 and _heads(lines) else []
    found = [_Sentence(text, topics(text), heading=True) for text in heading]
    for block in _unwrapped(lines):
        found += [
            _Sentence(text, topics(text), heading=text.startswith("#") or text.endswith("?"))
            for text in _SENTENCE_END.split(block)
        ]
    return tuple(found)


def _heads(lines: list[str]) -> bool:
    """Whether the first line is a heading: no end of a sentence, and cut off on purpose or before a fresh start."""
    first, second = lines[0], lines[1]
    if first[-1] in ".!:;," or len(first) > _HEADING_CHARS or _MARK.match(first):
        return first.startswith("#")
    next_fits = len(first) + 1 + len(second.split(None, 1)[0]) <= max(map(len, lines))
    return next_fits or second[0].isupper() or not second[0].isalnum()


def _unwrapped(lines: list[str]) -> list[str]:
    """Lines that were broken only to fit a width, joined again. A short line, or one before a list mark, ends."""
    width = min(90, max(map(len, lines), default=0))
    blocks: list[str] = []
    for index, line in enumerate(lines):
        before = lines[index - 1] if index else ""
        if before and len(before) >= _FULL_LINE * width and not _MARK.match(line) and not before.startswith("#"):
            blocks[-1] += " " + line
        else:
            blocks.append(line)
    return blocks
