"""Desk: from a message to its answer, through the caches."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import Any, TypeVar

from support.assistant import Assistant
from support.async_assistant import AsyncAssistant, Listener
from support.cache import AnswerCache, Flights, RedisLevel
from support.history import History, Message
from support.redis_server import LocalRedis
from support.replies import Audit, Draft, Reply
from support.retrieval import Index
from support.settings import DATA, Settings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pending:
    """An answer on its way. `cache`: "hit" it was known, "join" somebody else asked for it, "miss" it is made."""

    cache: str
    draft: asyncio.Future[Draft]


class Desk:
    """The parts of the application. `close` ends what they hold."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.index = Index(settings)
        self.audit = Audit(settings.state)
        self.history = History.load(DATA / "history.jsonl")
        self.cache = AnswerCache(settings)
        self.flights: Flights[Draft] = Flights()
        self._running: set[asyncio.Task[Any]] = set()
        self._ending = contextlib.AsyncExitStack()
        self.assistant: AsyncAssistant | None = None
        if settings.async_calls:
            self.assistant = AsyncAssistant(settings, self.index, self.audit)
            self._ending.push_async_callback(self.assistant.close)
        self.second: RedisLevel | None = None
        if settings.redis:
            local = settings.redis == "local"
            url = self._ending.enter_context(LocalRedis()).url if local else settings.redis
            self.second = RedisLevel(url, settings.cache_ttl_s * settings.time_scale)
            self._ending.push_async_callback(self.second.close)

    async def ask(self, message: str, session: int, listener: Listener | None = None) -> Pending:
        """Begin to answer. `listener` hears the text while it is written, if it has to be."""
        key = self.cache.key(message)
        if known := self.cache.get(key):
            return self._known(known, message, session)
        if self.second and not self.flights.of(key) and (known := await self.second.get(key)):
            self.cache.put(key, known)
            return self._known(known, message, session)
        flight = self.flights.of(key) if self.settings.single_flight else None
        if flight:
            flight.add_done_callback(partial(self._joined, message, session))
            return Pending("join", flight)
        work = self._work(key, message, session, listener)
        if self.settings.single_flight:
            return Pending("miss", self.flights.start(key, work))
        return Pending("miss", self._keep(asyncio.create_task(work)))

    async def close(self) -> None:
        """End connections, and Redis where it is ours."""
        await self._ending.aclose()

    def _keep(self, task: asyncio.Task[T]) -> asyncio.Task[T]:
        """Hold a task until it is done: the event loop itself does not."""
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def _known(self, reply: Reply, message: str, session: int) -> Pending:
        self.history.add(session, message, reply.answer)
        draft: asyncio.Future[Draft] = asyncio.get_running_loop().create_future()
        draft.set_result(Draft(reply))
        return Pending("hit", draft)

    def _joined(self, message: str, session: int, flight: asyncio.Task[Draft]) -> None:
        """The answer somebody else waited for is a turn of this session, too."""
        if not flight.cancelled() and not flight.exception():
            self.history.add(session, message, flight.result().reply.answer)

    async def _work(self, key: str, message: str, session: int, listener: Listener | None) -> Draft:
        conversation = self.history.of(session)
        if self.assistant:
            draft = await self.assistant.answer(message, conversation, listener)
        else:
            draft = await in_own_thread(partial(self._answer_in_thread, message, conversation))
        self.history.add(session, message, draft.reply.answer)
        self.cache.put(key, draft.reply)
        if self.second:
            self._keep(asyncio.create_task(self.second.put(key, draft.reply)))  # the answer does not wait for it
        return draft

    def _answer_in_thread(self, message: str, conversation: list[Message]) -> Draft:
        draft = Assistant(self.settings, self.index, self.audit, conversation).answer(message)
        return Draft(draft.reply, partial(in_own_thread, draft.check)) if draft.check else draft


async def in_own_thread(work: Callable[[], T]) -> T:
    """Do blocking work in a thread of its own: the framework's pool has 40, and at peak hours questions queued."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    Thread(target=run, name="answer", daemon=True).start()
    return await asyncio.wrap_future(done)
