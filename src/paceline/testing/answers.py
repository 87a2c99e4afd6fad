"""What a prompt is answered with. Pure rules, so that a test can check quality instead of assuming it.

In this order: a validation gets a verdict, a classification the best label, a question with context the sentences of it
that fit best, a request for tone a guideline, a question without context a vaguer and longer answer, anything else a
helpful one. docs/simulated-provider.md says how each is recognised.
"""

import re
import zlib
from dataclasses import dataclass

from paceline.testing.passages import ranked_sentences
from paceline.testing.prompt import Prompt, read_prompt
from paceline.testing.words import topics
from paceline.wire.tokens import BYTES_PER_TOKEN

VERDICT, LABEL, TONE, QUOTED, VAGUE, GENERIC = "verdict", "label", "tone", "quoted", "vague", "generic"

_VALIDATE = re.compile(r"\b(validat\w*|verif\w*|fact.?check\w*|check (?:whether|if|that))\b", re.IGNORECASE)
_VALIDATE_THIS = re.compile(
    r"(?:please )?(?:validate|verify|fact.?check|check (?:whether|if|that))\b[^?]*$", re.IGNORECASE
)
_CLASSIFY = re.compile(r"\b(classif\w*|categori[sz]\w*|category|intents?|labels?|sentiment)\b", re.IGNORECASE)
_TONE = re.compile(
    r"\b(?:tone|style|voice)\b[^.\n]{0,40}\b(?:guid\w*|advice|rules?)\b|\bguid\w*[^.\n]{0,30}\b(?:tone|style|voice)\b",
    re.IGNORECASE,
)
_DIGEST = re.compile(r"\b(summari[sz]e|summary|condense|key points|extract|rephrase|translate)\b", re.IGNORECASE)
_ASKS = re.compile(
    r"\?|^\W*(how|what|when|where|who|why|which|can|could|do|does|did|is|are|am|may|should|will)\b", re.IGNORECASE
)
_SPOKEN_OF = re.compile(r"\b(context|documents|passages|sources|excerpts|knowledge base)\b", re.IGNORECASE)
_LISTED = re.compile(
    r"\b(?:intents|labels|categories|classes|options|one of)\b[^:.\n]{0,40}:[ \t]*([^\n]+)"  # Labels: a, b, c
    r"|\b(?:as|into|either|one of)\b[ \t]+([^\n:]+)",  # as a, b or c
    re.IGNORECASE,
)
_BULLET = re.compile(r"^[ \t]*(?:[-*•]|\d{1,2}[.)])[ \t]+(.+)$", re.MULTILINE)
_VERDICTS = re.compile(
    r"\b(valid|yes|pass|true|supported|correct|approved?|ok)\b[\"'`]*(?:,? or |/|, | \| )[\"'`]*"
    r"(invalid|no|fail|false|unsupported|not supported|incorrect|rejected|reject|not ok)\b",
    re.IGNORECASE,
)
_BARE = re.compile(r"\b(only|one word|single word|nothing else)\b", re.IGNORECASE)
_OTHER = ("other", "others", "unknown", "none", "general", "misc")
_SUPPORTED = 0.6  # share of an answer's words that its context must have

_VAGUE = (
    "It depends on the situation, and there may be several things to consider here.",
    "In general it is a good idea to look at the relevant guidance and to speak with the people responsible.",
    "Different teams handle this differently, so the exact steps can vary.",
    "You may want to check whether any exceptions apply in your case before you go on.",
    "If you are not sure, asking a colleague who has done it before often helps.",
    "Please also keep in mind that policies change from time to time.",
    "It can be useful to write down what you need and by when, so that others can help you quickly.",
    "Where a form or an approval is needed, allow for some extra time.",
)
_HELPFUL = (
    "Start with the part that matters most and keep the rest for later.",
    "One step at a time makes it easier to see what works.",
    "Write down what you decide, so that others can follow it.",
    "Try it on a small example first, then on the whole.",
    "Ask for a second opinion where much depends on it.",
)
_CLOSING = (
    "This is what the passage says about it.",
    "If your case differs, the same section explains the exceptions.",
    "Let me know if you would like the details of a single step.",
    "The section named above has the rest.",
)
_CLOSING_TOPICS = frozenset().union(*map(topics, _CLOSING))
_TONES = (
    "Be friendly and to the point, name the next step first, and avoid jargon.",
    "Stay calm and factual, acknowledge the effort, and say plainly what will happen next.",
    "Be warm and brief; lead with the answer and offer one way to get more help.",
)
_CORE = 3  # sentences that are quoted whatever the drawn length, so that quality does not hang on a draw


@dataclass(frozen=True, slots=True)
class Answer:
    """What to say. `sentences` come in order of importance; `filler` follows, in turn, up to the drawn length."""

    kind: str  # VERDICT, LABEL, ...
    sentences: tuple[str, ...]
    filler: tuple[str, ...] = ()
    question: str = ""
    task: str = ""  # the instructions it follows
    valid: bool | None = None  # of a verdict
    reason: str = ""

    @property
    def fixed(self) -> bool:
        """Verdicts, labels and guidelines are as long as they are; other answers have the drawn length."""
        return not self.filler

    @property
    def wants_json(self) -> bool:
        """Whether the instructions of a verdict or a label ask for JSON."""
        return self.kind in (VERDICT, LABEL) and "json" in self.task.casefold()

    def text(self, tokens: int) -> str:
        """The answer in about `tokens` tokens (within three), longer when its most important sentences are."""
        if self.fixed:
            return " ".join(self.sentences)
        parts, room = [], tokens * BYTES_PER_TOKEN
        for index, sentence in enumerate(self.sentences):
            size = len(sentence.encode("utf-8", "surrogatepass")) + 1
            if size > room and index >= _CORE:
                break
            parts.append(sentence)
            room -= size
        at = zlib.crc32(self.question.encode("utf-8", "surrogatepass"))
        while room > _SHORTEST:
            at += 1
            parts.append(_shortened(self.filler[at % len(self.filler)], room))
            room -= len(parts[-1]) + 1
        return " ".join(parts)


_SHORTEST = 12


def answer(turns: list[tuple[str, str]]) -> Answer:
    """The answer to a conversation of (role, text) turns, oldest first. The same conversation has the same answer."""
    prompt = read_prompt(turns)
    for task in (prompt.task, prompt.system):
        if (_VALIDATE.search(task) and prompt.given is not None) or _VALIDATE_THIS.match(task):
            return _verdict(prompt, task)
        if _CLASSIFY.search(task) and (labels := labels_in(prompt.labels) or labels_in(task)):
            label = best_label(labels, _without_lists(prompt.question, labels))
            return Answer(LABEL, (label,), question=prompt.question, task=task)
    return _free(prompt)


def _free(prompt: Prompt) -> Answer:
    """An answer of free length, or a guideline of tone."""
    question = prompt.question
    if prompt.context:
        return Answer(QUOTED, tuple(ranked_sentences(prompt.context, question)), _CLOSING, question=question)
    instructions = f"{prompt.task}\n{prompt.system}"
    if prompt.context is None and _TONE.search(instructions):
        chosen = zlib.crc32(instructions.encode("utf-8", "surrogatepass")) % len(_TONES)
        return Answer(TONE, (_TONES[chosen],), question=question)
    if question is not prompt.task and _DIGEST.search(instructions):
        return Answer(QUOTED, tuple(ranked_sentences(question, "")), _CLOSING, question=question)
    if prompt.context == "" or _ASKS.search(question) or _SPOKEN_OF.search(instructions):
        return Answer(VAGUE, (f"Thank you for asking about {_subject(question)}.",), _VAGUE, question=question)
    return Answer(GENERIC, (f"Here is a way to go about {_subject(question)}.",), _HELPFUL, question=question)


def labels_in(text: str) -> dict[str, str]:
    """Labels on offer, each with what is said about it: bullets (`- billing: charges`), else a list on one line."""
    bullets = [re.split(r"[:(]| [-–—] ", line, maxsplit=1) for line in _BULLET.findall(text)]
    if len(bullets) > 1:
        return {_bare(name): " ".join(about) for name, *about in bullets if _bare(name)}
    for line in [*(listed or inline for listed, inline in _LISTED.findall(text)), text.partition("\n")[0]]:
        names = [_bare(x) for x in re.split(r",|;|\||\bor\b|\band\b", re.split(r"[.?!](?:\s|$)|[\])]", line)[0])]
        names = [name for name in names if name]
        if len(names) > 1 and all(len(name.split()) <= 4 for name in names):
            return dict.fromkeys(names, "")
    return {}


def best_label(labels: dict[str, str], question: str) -> str:
    """The label that shares most words with the question, its description counting half; the first of equals.

    None shared: "other" or the like when it is offered, else the last.
    """
    asked = _beginnings(question)
    scores = {
        label: len(asked & _beginnings(label)) + len(asked & _beginnings(about)) / 2 for label, about in labels.items()
    }
    best = max(scores, key=lambda label: scores[label])
    if scores[best] > 0:
        return best
    return next((label for label in labels if label.casefold() in _OTHER), list(labels)[-1])


def _without_lists(question: str, labels: dict[str, str]) -> str:
    """What is to be classified, where it stands beside the labels: the sentences that do not list them."""
    sentences = re.split(r"(?<=[.?!:])\s|\n", question)
    return " ".join(s for s in sentences if sum(label.casefold() in s.casefold() for label in labels) < 2)


def supported(given: str, context: str | None, question: str) -> bool:
    """Whether an answer stands in its context; without one, whether it speaks of what was asked."""
    said, asked = topics(given) - _CLOSING_TOPICS, topics(question)
    if context:
        return bool(said) and len(said & (topics(context) | asked)) >= _SUPPORTED * len(said)
    return bool(given.strip()) and (not asked or bool(said & asked))


def _verdict(prompt: Prompt, task: str) -> Answer:
    given = prompt.question if prompt.given is None else prompt.given
    valid = supported(given, prompt.context, prompt.question)
    missed = "the answer is not supported by the context" if prompt.context else "it does not answer the question"
    reason = "" if valid else missed
    offered = _VERDICTS.search(task)
    good, bad = offered.groups() if offered else ("valid", "invalid")
    text = good if valid else bad
    if reason and not _BARE.search(task):
        text += f": {reason}"
    return Answer(VERDICT, (text,), question=prompt.question, task=task, valid=valid, reason=reason)


def _bare(label: str) -> str:
    label = re.sub(r"^\s*(?:or|and)\s", " ", label)
    return label.strip(" \t.:\"'`*[](){}")


def _beginnings(text: str) -> set[str]:
    """Topics by their first five letters: billing, billed and bill-to are near enough."""
    return {word[:5] for word in topics(text)}


def _subject(question: str) -> str:
    return " ".join(question.split()[:12]).rstrip("?!.:, ") or "this"


def _shortened(sentence: str, room: int) -> str:
    """The sentence, or as many of its words as have room."""
    if len(sentence) <= room:
        return sentence
    return sentence[:room].rpartition(" ")[0].rstrip(",;") + "."
