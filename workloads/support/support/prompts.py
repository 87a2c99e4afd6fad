"""Prompts: what each step of an answer asks of which model. Pure: settings and texts in, arguments of a call out."""

from pathlib import Path
from typing import Any

from support.history import Message
from support.settings import Settings

POLICIES = (Path(__file__).parent / "policies.md").read_text(encoding="utf-8")

SHORT_RULES = """You are the support assistant of the agency and answer employees from its handbook.
Answer in at most three plain sentences, the part that answers the question first, with amounts, dates and names copied
exactly. Rely on the handbook passages only; if they do not answer the question, say so and name the operations team.
Never ask for or repeat personal data. A security incident is reported within one hour: say so first."""

INTENTS = (
    "access",
    "collaboration",
    "devices",
    "hiring",
    "performance",
    "projects",
    "purchasing",
    "records",
    "research",
    "security",
    "time tracking",
    "travel",
    "writing",
    "other",
)

_CLASSIFY = "Classify the intent of the employee's message. Intents: {intents}. Reply with the label only."
_TONE = (
    "Give tone guidelines, in one or two short sentences, for answering an employee whose message "
    "has the intent: {intent}."
)
_ANSWER = "Tone: {tone}\n\nHandbook passages:\n{context}\n\nAnswer the employee's question.\nQuestion: {question}"
_VALIDATE = (
    "Validate the answer: is it polite, does it answer the question and keep to the rules? "
    "Reply with valid or invalid only.\n\nQuestion: {question}\n\nAnswer: {answer}"
)


# Longest reply of each step in tokens, when `limit_replies` is set.
INTENT_TOKENS, TONE_TOKENS, ANSWER_TOKENS, VERDICT_TOKENS = 8, 40, 120, 16

Call = dict[str, Any]  # arguments of chat.completions.create


def intent(question: str, conversation: list[Message], settings: Settings) -> Call:
    """Ask for one label out of INTENTS."""
    task = f"{_CLASSIFY.format(intents=', '.join(INTENTS))}\n\nMessage: {question}"
    return _call(task, settings.small_model, INTENT_TOKENS, conversation, settings)


def tone(label: str, conversation: list[Message], settings: Settings) -> Call:
    """Ask how to sound for this intent."""
    return _call(_TONE.format(intent=label), settings.strong_model, TONE_TOKENS, conversation, settings)


def answer(
    question: str, tone_guidelines: str, passages: list[str], conversation: list[Message], settings: Settings
) -> Call:
    """Ask for the answer itself."""
    context = "\n\n".join(passages) or "(none)"
    task = _ANSWER.format(tone=tone_guidelines, context=context, question=question)
    call = _call(task, settings.strong_model, ANSWER_TOKENS, conversation, settings)
    if settings.short_prompts:
        call["messages"] = [
            {"role": "system", "content": SHORT_RULES},
            *_recent(conversation, settings),
            *call["messages"],
        ]
    return call


def validation(question: str, text: str, conversation: list[Message], settings: Settings) -> Call:
    """Ask whether the answer keeps to the rules."""
    task = _VALIDATE.format(question=question, answer=text)
    return _call(task, settings.small_model, VERDICT_TOKENS, conversation, settings)


def label_in(reply: str) -> str:
    """The intent a model's reply names; "other" when it names none."""
    said = reply.strip(" .\n\"'").casefold()
    return next((label for label in INTENTS if label == said), "other")


def _call(task: str, model: str, max_tokens: int, conversation: list[Message], settings: Settings) -> Call:
    messages: list[Message] = [{"role": "user", "content": task}]
    if not settings.short_prompts:
        # Policy and conversation go with every step, so that none can miss a thing.
        messages = [{"role": "system", "content": POLICIES}, *_recent(conversation, settings), *messages]
    call: Call = {"model": model, "messages": messages}
    if settings.limit_replies:
        call["max_tokens"] = max_tokens
    return call


def _recent(conversation: list[Message], settings: Settings) -> list[Message]:
    return conversation[-settings.history_messages :] if settings.history_messages else []
