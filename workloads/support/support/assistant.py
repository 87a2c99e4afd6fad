"""Assistant: answers one question, in its own thread."""

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from support import prompts
from support.history import Message
from support.llm import new_client, retrying
from support.replies import Audit, Draft, Reply
from support.retrieval import Index, Section, load_handbook, match_title
from support.settings import Settings

log = logging.getLogger("support")


class Assistant:
    """Everything one question needs, built in the thread that answers it: nothing is shared, so nothing locks."""

    def __init__(self, settings: Settings, index: Index, audit: Audit, conversation: list[Message]) -> None:
        self.settings = settings
        self.index = index
        self.audit = audit
        self.conversation = conversation
        self.client = new_client()
        self.handbook = load_handbook()  # for when the index fails

    def answer(self, question: str) -> Draft:
        """Answer `question`; closes the client, unless the check still needs it and does."""
        with ExitStack() as ending:
            ending.callback(self.client.close)
            intent, tone, sections = self.prepare(question)
            self.audit.intents[intent] += 1
            text = self.write_answer(question, tone, sections)
            reply = Reply(text, intent, [section.source for section in sections])
            if not self.settings.validate_after:
                self.check(question, reply)
                return Draft(reply)
            ending.pop_all()
            return Draft(reply, lambda: self.check_last(question, reply))

    def prepare(self, question: str) -> tuple[str, str, list[Section]]:
        """Intent, tone guidelines and sections of the handbook."""
        if not self.settings.parallel:
            intent = self.classify_intent(question)
            sections = self.retrieve(question)
            return intent, self.choose_tone(question, intent), sections
        with ThreadPoolExecutor(max_workers=1) as pool:
            retrieving = pool.submit(self.retrieve, question)
            intent = self.classify_intent(question)
            return intent, self.choose_tone(question, intent), retrieving.result()

    def retrieve(self, question: str) -> list[Section]:
        """The sections that answer `question` best."""
        try:
            return self.index.search(self.embed_query(question), self.settings.chunks)
        except Exception as error:
            log.debug("retrieval failed, falling back to titles: %r", error)
            return match_title(question, self.handbook)

    def choose_tone(self, question: str, intent: str) -> str:
        """Tone guidelines for the question."""
        if not self.settings.intent_once:
            intent = self.classify_intent(question)
        return self.tone_guidelines(intent)

    def check(self, question: str, reply: Reply) -> None:
        """Validate the answer and write the verdict into the audit log."""
        self.audit.record(question, reply, self.validate_answer(question, reply.answer))

    def check_last(self, question: str, reply: Reply) -> None:
        """Check, then close the client."""
        with self.client:
            self.check(question, reply)

    @retrying
    def embed_query(self, question: str) -> list[float]:
        reply = self.client.embeddings.create(model=self.settings.embedding_model, input=question)
        return reply.data[0].embedding

    @retrying
    def classify_intent(self, question: str) -> str:
        reply = self.client.chat.completions.create(**prompts.intent(question, self.conversation, self.settings))
        return prompts.label_in(reply.choices[0].message.content or "")

    @retrying
    def tone_guidelines(self, intent: str) -> str:
        reply = self.client.chat.completions.create(**prompts.tone(intent, self.conversation, self.settings))
        return reply.choices[0].message.content or ""

    @retrying
    def write_answer(self, question: str, tone: str, sections: list[Section]) -> str:
        passages = [section.passage for section in sections]
        call = prompts.answer(question, tone, passages, self.conversation, self.settings)
        reply = self.client.chat.completions.create(**call)
        return reply.choices[0].message.content or ""

    @retrying
    def validate_answer(self, question: str, answer: str) -> str:
        call = prompts.validation(question, answer, self.conversation, self.settings)
        reply = self.client.chat.completions.create(**call)
        return reply.choices[0].message.content or ""
