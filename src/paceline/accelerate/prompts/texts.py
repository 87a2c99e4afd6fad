"""What can go from one text without a word being lost: blanks, and what it says twice. Pure.

Code between fences and texts that are JSON are left as they are: there a blank may mean something.
"""

import re

from paceline.accelerate.prompts.chunks import Pieces, cut, fences, is_json

_RUN = re.compile(r"(\S) {2,}(?=\S)")
_MAY_BE_DATA = re.compile(r"[\"`|\t\\]")
_SENTENCE_ENDS = ".,;:!?"


def without_blanks(text: str) -> str:
    """The text without blanks at line ends, more than one empty line in a row, and double blanks in prose.

    Double blanks stay where they may be columns or data: several in a line that do not follow a sentence, lines with
    quotes, backticks, pipes, tabs or backslashes. So does indentation. Applying it twice changes nothing more. About
    1 us for 4 KB without such blanks, 30 us with.
    """
    if not (" \n" in text or "\n\n\n" in text or "  " in text or "\r\n" in text or "\t\n" in text) or is_json(text):
        return text
    parts = []
    at = 0
    for start, end in fences(text):
        parts += [_prose(text[at:start]), text[start:end]]
        at = end
    return "".join([*parts, _prose(text[at:])])


def _prose(text: str) -> str:
    *lines, last = text.split("\n")
    kept: list[str] = []
    for line in lines:
        bare = line.rstrip(" \t\r")
        if bare or not kept or kept[-1] or len(kept) == 1:
            kept.append(_single(bare) if "  " in bare else bare)
    return "\n".join([*kept, _single(last) if "  " in last else last])


def _single(line: str) -> str:
    """The line with single blanks between its words, where they can be nothing else."""
    runs = _RUN.findall(line)
    if not runs or _MAY_BE_DATA.search(line) or (len(runs) > 1 and any(c not in _SENTENCE_ENDS for c in runs)):
        return line
    return _RUN.sub(r"\1 ", line)


def without_repeats(text: str, pieces: Pieces, seen: set[str], *, least_chars: int) -> str:
    """The text without pieces that stand in `seen` or earlier in itself; adds its own to `seen`. Never empties it."""
    repeats = []
    if len(text) >= least_chars:
        for piece, body in pieces.bodies(text, least_chars):
            if body in seen:
                repeats.append(piece)
            seen.add(body)
    shorter = cut(text, repeats) if repeats else text
    return shorter if shorter.strip() else text


def with_chunks(text: str, pieces: Pieces, most: int) -> str:
    """The text with the first `most` chunks of each list in it."""
    while spare := [chunk for group in pieces.chunks(text) for chunk in group[most:]]:
        text = cut(text, sorted(spare))  # which may show a list that stood inside the last chunk
    return text
