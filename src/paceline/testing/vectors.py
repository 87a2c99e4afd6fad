"""Embeddings whose cosine follows shared words: deterministic, and good enough that retrieval really works."""

import hashlib
import math
import re
from functools import lru_cache

_WORD = re.compile(r"[a-z0-9]+")
# Words that say little about what a text is about weigh little; a real corpus would give their document frequencies.
_COMMON = frozenset(
    """
    a an and are as at be been but by can could did do does for from get had has have how i if in into is it its just
    may me more my no not of on one only or other our out should so some such that the their them then there these
    they this to up us use was we were what when where which who why will with would you your about all also any
    """.split()  # noqa: SIM905 - easier to read and to add to than a list
)
_SUFFIXES = ("ations", "ation", "ments", "ment", "ings", "ing", "ies", "ied", "ers", "ed", "es", "er", "ly", "s")


def words(text: str) -> list[str]:
    """Stemmed lower-case words in order."""
    return [_stem(w) for w in _WORD.findall(text.casefold())]


@lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word[: -len(suffix)]
    return word


@lru_cache(maxsize=65_536)
def _places(word: str, dimensions: int) -> tuple[tuple[int, float], ...]:
    digest = hashlib.blake2b(word.encode(), digest_size=16).digest()
    return tuple(
        (int.from_bytes(digest[i : i + 4], "little") % dimensions, 1.0 if digest[i + 3] & 0x80 else -1.0)
        for i in (0, 4, 8)
    )


def embed(text: str, dimensions: int = 384) -> list[float]:
    """A unit vector; texts with the same words have the same one, whatever their order. Empty text: the first axis."""
    counts: dict[str, int] = {}
    for word in words(text):
        counts[word] = counts.get(word, 0) + 1
    vector = [0.0] * dimensions
    for word, count in counts.items():
        weight = (0.1 if word in _COMMON else 1.0) * (1 + math.log(count))
        for place, sign in _places(word, dimensions):
            vector[place] += sign * weight
    norm = math.sqrt(sum(x * x for x in vector))
    if norm == 0:
        vector[0] = norm = 1.0
    return [x / norm for x in vector]
