"""Pieces: an answer on its way from whoever writes it to whoever sends it on."""

import asyncio
from collections.abc import AsyncIterator


class Pieces:
    """Hears text and gives it out again; what comes while the last piece is being sent goes out as one."""

    def __init__(self) -> None:
        self._waiting: list[str] = []
        self._news = asyncio.Event()
        self._ended = False

    def hear(self, text: str) -> None:
        """Take the next piece."""
        self._waiting.append(text)
        self._news.set()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[str]:
        while not self._ended or self._waiting:
            await self._news.wait()
            self._news.clear()
            if self._waiting:
                text = "".join(self._waiting)
                self._waiting.clear()
                yield text
