"""The assistant on one event loop: one pooled client, no threads, the answer passed on while it is written."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from support import prompts
from support.cache import Memo
from support.history import Message
from support.llm import retrying, shared_client
from support.replies import Audit, Draft, Reply
from support.retrieval import Index, Section, match_title, shared_handbook
from support.settings import Settings

log = logging.getLogger("support")

Listener = Callable[[str], None]  # is told each piece of the answer as it comes
KEPT_EMBEDDINGS = 5_000


class AsyncAssistant:
    """Answers any number of questions at once. `close` frees the connections."""

    def __init__(self, settings: Settings, index: Index, audit: Audit) -> None:
        self.settings = settings
        self.index = index
        self.audit = audit
        self.client = shared_client()
        self.handbook = shared_handbook()
        keep = KEPT_EMBEDDINGS if settings.reuse_steps else 0
        self.vectors: Memo[list[float]] = Memo(keep)
        self.tones: Memo[str] = Memo(keep)

    async def answer(self, question: str, conversation: list[Message], listener: Listener | None = None) -> Draft:
        """Answer `question`; `listener` hears the text while it is written."""
        (intent, tone), sections = await self.prepare(question, conversation)
        self.audit.intents[intent] += 1
        text = await self.write_answer(question, tone, sections, conversation, listener)
        reply = Reply(text, intent, [section.source for section in sections])
        check = partial(self.check, question, reply, conversation)
        if self.settings.validate_after:
            return Draft(reply, check)
        await check()
        return Draft(reply)

    async def prepare(self, question: str, conversation: list[Message]) -> tuple[tuple[str, str], list[Section]]:
        """Intent and tone guidelines, and sections of the handbook."""
        if self.settings.parallel:
            return await asyncio.gather(self.judge(question, conversation), self.retrieve(question))
        judged = await self.judge(question, conversation)
        return judged, await self.retrieve(question)

    async def judge(self, question: str, conversation: list[Message]) -> tuple[str, str]:
        """Intent of the question and tone guidelines for it."""
        intent = await self.classify_intent(question, conversation)
        if not self.settings.intent_once:
            intent = await self.classify_intent(question, conversation)
        return intent, await self.tones.get(intent, lambda: self.tone_guidelines(intent, conversation))

    async def retrieve(self, question: str) -> list[Section]:
        """The sections that answer `question` best."""
        try:
            vector = await self.vectors.get(question, lambda: self.embed_query(question))
            return await asyncio.to_thread(self.index.search, vector, self.settings.chunks)
        except Exception as error:
            log.warning("retrieval failed, falling back to titles: %r", error)
            return match_title(question, self.handbook)

    async def check(self, question: str, reply: Reply, conversation: list[Message]) -> None:
        """Validate the answer and write the verdict into the audit log."""
        self.audit.record(question, reply, await self.validate_answer(question, reply.answer, conversation))

    async def close(self) -> None:
        """Close the client's connections."""
        await self.client.close()

    @retrying
    async def embed_query(self, question: str) -> list[float]:
        reply = await self.client.embeddings.create(model=self.settings.embedding_model, input=question)
        return reply.data[0].embedding

    @retrying
    async def classify_intent(self, question: str, conversation: list[Message]) -> str:
        reply = await self.client.chat.completions.create(**prompts.intent(question, conversation, self.settings))
        return prompts.label_in(reply.choices[0].message.content or "")

    @retrying
    async def tone_guidelines(self, intent: str, conversation: list[Message]) -> str:
        reply = await self.client.chat.completions.create(**prompts.tone(intent, conversation, self.settings))
        return reply.choices[0].message.content or ""

    @retrying
    async def write_answer(
        self,
        question: str,
        tone: str,
        sections: list[Section],
        conversation: list[Message],
        listener: Listener | None,
    ) -> str:
        passages = [section.passage for section in sections]
        call = prompts.answer(question, tone, passages, conversation, self.settings)
        if listener is None:
            reply = await self.client.chat.completions.create(**call)
            return reply.choices[0].message.content or ""
        pieces: list[str] = []
        chunks = await self.client.chat.completions.create(**call, stream=True, stream_options={"include_usage": True})
        async for chunk in chunks:
            for choice in chunk.choices:
                if choice.delta.content:
                    pieces.append(choice.delta.content)
                    listener(choice.delta.content)
        return "".join(pieces)

    @retrying
    async def validate_answer(self, question: str, answer: str, conversation: list[Message]) -> str:
        call = prompts.validation(question, answer, conversation, self.settings)
        reply = await self.client.chat.completions.create(**call)
        return reply.choices[0].message.content or ""
