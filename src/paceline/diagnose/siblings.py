"""Cheaper siblings: for a strong model, the smaller one of the same family that handles labels and verdicts.

Source: the families as their providers name and price them (2026-11). That the small one is good enough for a label is
an assumption, which is why the finding asks for a check on a golden set. Prices are not kept here: they come from
genai-prices, so a sibling that is no longer cheaper is not proposed.
"""

import re

# A dated name ("gpt-4o-2024-11-20") is its family's.
_SIBLINGS = (
    ("gpt-5.1", "gpt-5-nano"),
    ("gpt-5", "gpt-5-nano"),
    ("gpt-4.1", "gpt-4.1-nano"),
    ("gpt-4o", "gpt-4o-mini"),
    ("gpt-4-turbo", "gpt-4o-mini"),
    ("gpt-4", "gpt-4o-mini"),
    ("o3", "o4-mini"),
    ("o1", "o4-mini"),
    ("claude-opus-4", "claude-haiku-4-5"),
    ("claude-sonnet-4", "claude-haiku-4-5"),
    ("claude-3-opus", "claude-3-haiku"),
    ("claude-3-7-sonnet", "claude-3-haiku"),
    ("claude-3-5-sonnet", "claude-3-haiku"),
    ("gemini-2.5-pro", "gemini-2.5-flash-lite"),
    ("gemini-1.5-pro", "gemini-1.5-flash"),
    ("mistral-large", "mistral-small-latest"),
    ("command-a", "command-r7b-12-2024"),
)
_SMALL = re.compile(r"mini|nano|haiku|flash|lite|small|micro|tiny")


def cheaper_sibling(model: str) -> str | None:
    """The small model to try instead, or None: the model is small itself, or its family is not known."""
    name = model.rsplit("/", 1)[-1].lower()
    if _SMALL.search(name):
        return None
    return next((small for family, small in _SIBLINGS if name == family or name.startswith(f"{family}-")), None)
