"""Words as the simulated provider compares them: lower case, stemmed, common ones known. Pure."""

import re
from functools import lru_cache

# Writing without spaces (Chinese, Japanese, Korean) is taken character by character.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")
# Words that say little about what a text is about; a real corpus would give their document frequencies.
_COMMON = frozenset(
    """
    a an and are as at be been but by can could did do does done for from get had has have how i if in into is it its
    just may me more must my no not of on one only or other our out should so some such than that the their them then
    there these they this to too up us use was we were what when where which who whose why will with would you your
    about all also am any anything happen happens know like look need people really say tell thing things want way
    """.split()  # noqa: SIM905 - easier to read and to add to than a list
)
_SUFFIXES = ("ations", "ation", "ments", "ment", "ings", "ing", "ies", "ied", "ers", "ed", "es", "er", "ly", "s")


def words(text: str) -> list[str]:
    """Stemmed lower-case words in order."""
    return [_stem(w) for w in _WORD.findall(text.casefold())]


@lru_cache(maxsize=16_384)
def topics(text: str) -> frozenset[str]:
    """The stems a text is about: its words without the common ones. Remembered: passages come again and again."""
    return frozenset(words(text)) - COMMON


@lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    """A light suffix stripper; a doubled last consonant and a last e go too (planned, planning, plans: plan)."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            word = word[: -len(suffix)]
            if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiouls":
                word = word[:-1]
            break
    return word[:-1] if len(word) > 3 and word[-1] in "ey" else word


COMMON = frozenset(_stem(word) for word in _COMMON) | _COMMON
