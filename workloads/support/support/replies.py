"""Replies: what the desk answers, and the record it keeps of the answer's check."""

import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

AUDIT_BYTES = 5_000_000  # then the file is turned over, once


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer as the client gets it."""

    answer: str
    intent: str
    sources: list[str]

    def to_json(self) -> str:
        """For the second level of the cache."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Reply":
        """What `to_json` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer, and its check where that is still to be made: awaiting it writes the verdict into the audit log."""

    reply: Reply
    check: Callable[[], Any] | None = None


class Audit:
    """Counts of intents, and a log of what validation said about each answer."""

    def __init__(self, state: Path) -> None:
        state.mkdir(parents=True, exist_ok=True)
        self.intents: Counter[str] = Counter()
        self._log = logging.getLogger("support.audit")
        self._log.setLevel(logging.INFO)
        self._log.propagate = False
        if not self._log.handlers:
            path = state / "audit.jsonl"
            self._log.addHandler(RotatingFileHandler(path, maxBytes=AUDIT_BYTES, backupCount=1, encoding="utf-8"))

    def record(self, question: str, reply: Reply, verdict: str) -> None:
        """Write one verdict."""
        self._log.info(json.dumps({"question": question, "intent": reply.intent, "verdict": verdict.strip()}))
