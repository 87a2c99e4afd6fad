"""Conversations: what each session has said so far."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import TypedDict

SESSIONS = 5_000
MESSAGES = 8  # of one session; older ones are dropped


class Message(TypedDict):
    """One message in the provider's own shape."""

    role: str
    content: str


class History:
    """The conversations of all sessions, the least recently used dropped first."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[int, list[Message]] = OrderedDict()

    @classmethod
    def load(cls, path: Path) -> "History":
        """The conversations saved in a JSON-lines file of `{"session": 7, "messages": [...]}`."""
        history = cls()
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                saved = json.loads(line)
                history._sessions[saved["session"]] = saved["messages"]
        return history

    def of(self, session: int) -> list[Message]:
        """A copy of the session's messages, oldest first."""
        return [message.copy() for message in self._sessions.get(session, [])]

    def add(self, session: int, question: str, answer: str) -> None:
        """Append one turn."""
        messages = self._sessions.setdefault(session, [])
        messages += ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
        del messages[:-MESSAGES]
        self._sessions.move_to_end(session)
        if len(self._sessions) > SESSIONS:
            self._sessions.popitem(last=False)
