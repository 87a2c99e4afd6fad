"""What a prompt is answered with. Pure rules, so that a test can check quality instead of assuming it.

In this order: a validation gets a verdict, a classification the best label, a request for tone a guideline, a question
with context sentences quoted from it, a question without context a vaguer and longer answer.
docs/simulated-provider.md says how each is recognised.
"""

import json
import re
from dataclasses import dataclass

from paceline.testing.vectors import words

_VALIDATE = re.compile(r"\b(validat\w*|verif\w*|fact.?check\w*|check (whether|if|that))\b", re.IGNORECASE)
_CLASSIFY = re.compile(r"\b(classif\w*|categori[sz]e\w*|intents?|label)\b", re.IGNORECASE)
_TONE = re.compile(r"\b(tone|style|voice)\b[^.\n]{0,40}\b(guid\w*|advice|rules?)\b", re.IGNORECASE)
_LABELS = re.compile(r"\b(?:intents|labels|categories|classes|one of|options)\b[^:\n]*:[ \t]*([^\n]+)", re.IGNORECASE)
_BULLETS = re.compile(r"(?:^|\n)[-*] ([\w /-]{2,40})(?=\n|$)")
_CONTEXT = re.compile(
    r"(?:^|\n)[^\n:.?!]{0,40}\b(?:context|documents?|passages|sources|excerpts|knowledge)\b[^\n:.?!]{0,20}:[ \t]*\n?"
    r"(.*?)(?=\n\n[A-Z][^\n]{0,60}(?:question|answer the)|\nQuestion:|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_TAGGED = re.compile(r"<(context|documents?|passages)>(.*?)</\1>", re.IGNORECASE | re.DOTALL)
_ASKED = re.compile(r"\b(?:question|message|query|user asks)\b\s*:\s*(.+)", re.IGNORECASE | re.DOTALL)
_GIVEN = re.compile(r"(?:^|\n)[ \t]*(?:answer|reply|response)[ \t]*:(.+)", re.IGNORECASE | re.DOTALL)
_NOTHING = frozenset(("", "none", "no context", "n/a", "empty"))
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n{2,}|\n(?=[-*] )")

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
_FILLER = (
    "This is what the passage says about it.",
    "If your case differs, the same section explains the exceptions.",
    "Let me know if you would like the details of a single step.",
    "The section named above has the rest.",
)
_TONES = (
    "Be friendly and to the point, name the next step first, and avoid jargon.",
    "Stay calm and factual, acknowledge the effort, and say plainly what will happen next.",
    "Be warm and brief; lead with the answer and offer one way to get more help.",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """`text` is whole when `fixed`; otherwise it is cut or filled to the drawn number of tokens."""

    kind: str  # "verdict", "label", "tone", "quoted", "vague"
    text: str
    fixed: bool
    filler: tuple[str, ...] = ()


def answer(turns: list[tuple[str, str]], *, wants_json: bool = False) -> Answer:
    """The answer to a conversation of (role, text) turns, oldest first."""
    last = next((text for role, text in reversed(turns) if role == "user"), "")
    # Only the last user turn, or the system prompt when the turn is bare, says what is asked: histories and policies
    # mention every one of these words.
    system = "\n".join(text for role, text in turns if role in ("system", "developer"))
    task = last if _instructs(last) else f"{system}\n{last}" if len(system) < 1500 and _instructs(system) else last
    if _VALIDATE.search(task) and _GIVEN.search(task):
        return _verdict(task, wants_json=wants_json or "json" in task.casefold())
    if _CLASSIFY.search(task) and (labels := labels_in(task)):
        return Answer("label", best_label(labels, _question(task, last)), fixed=True)
    if _TONE.search(task):
        return Answer("tone", _TONES[len(words(task)) % len(_TONES)], fixed=True)
    context = context_in(task)
    question = _question(task, last)
    if context:
        return Answer("quoted", " ".join(best_sentences(context, question)), fixed=False, filler=_FILLER)
    return Answer("vague", f"Thank you for asking about {_subject(question)}.", fixed=False, filler=_VAGUE)


def labels_in(task: str) -> list[str]:
    """Labels offered in a list after a colon, or as bullets."""
    found = _LABELS.search(task)
    if found:
        line = re.split(r"\.\s", found.group(1) + " ")[0]
        labels = [x.strip(" .\"'`") for x in re.split(r",|;|\bor\b|\|", line)]
        labels = [x for x in labels if x]
        if len(labels) > 1:
            return labels
    return [x.strip() for x in _BULLETS.findall(task)]


def best_label(labels: list[str], question: str) -> str:
    """The label that shares most word beginnings with the question; the first of equals, else "other" or the last."""
    asked = {w[:5] for w in words(question)}
    scores = [len(asked & {w[:5] for w in words(label)}) for label in labels]
    if max(scores) > 0:
        return labels[scores.index(max(scores))]
    return next((x for x in labels if x.casefold() in ("other", "unknown", "none")), labels[-1])


def context_in(task: str) -> str:
    """The context a prompt gives, "" when it gives none or an empty one."""
    found = _TAGGED.search(task)
    text = found.group(2) if found else (m.group(1) if (m := _CONTEXT.search(task)) else "")
    text = text.strip()
    return "" if text.strip("()[]-. ").casefold() in _NOTHING else text


def best_sentences(context: str, question: str, count: int = 3) -> list[str]:
    """The sentences of the context that share most words with the question, word for word, in the context's order.

    A passage's heading counts for its sentences, as it does for a reader.
    """
    asked = set(words(question))
    ranked = []
    for passage_rank, passage in enumerate(re.split(r"\n\n(?=[^\n]{1,120}\n)", context)):
        heading, _, body = passage.partition("\n")
        head_score = len(asked & set(words(heading)))
        for place, sentence in enumerate(s.strip() for s in _SENTENCE.split(body or heading)):
            if len(sentence) > 15:
                score = 2 * len(asked & set(words(sentence))) + 3 * head_score
                ranked.append((-score, passage_rank, place, sentence))
    best = sorted(ranked)[:count]
    return [sentence for _, _, _, sentence in sorted(best, key=lambda r: (r[1], r[2]))] or [context[:200]]


def _verdict(task: str, *, wants_json: bool) -> Answer:
    given = _GIVEN.search(task)
    said = set(words(given.group(1))) if given else set()
    context = context_in(task[: given.start()] if given else task)
    asked = set(words(_question(task[: given.start()] if given else task, "")))
    grounds = set(words(context)) | asked
    share = len(said & grounds) / len(said) if said else 0.0
    valid = share >= 0.5 if context else bool(said & asked)
    reason = "" if valid else "the answer is not supported by what was given"
    if wants_json:
        return Answer("verdict", json.dumps({"valid": valid, "reason": reason}), fixed=True)
    return Answer("verdict", "valid" if valid else f"invalid: {reason}", fixed=True)


def _instructs(text: str) -> bool:
    return bool(_VALIDATE.search(text) or (_CLASSIFY.search(text) and labels_in(text)) or _TONE.search(text))


def _question(task: str, last: str) -> str:
    found = _ASKED.search(task)
    text = found.group(1) if found else last
    return _GIVEN.split(text)[0].strip()[:2000]


def _subject(question: str) -> str:
    return " ".join(question.split()[:12]).rstrip("?!. ") or "this"
