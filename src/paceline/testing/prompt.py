"""What a prompt is made of: instructions, and parts under a heading or in tags (context, question, answer, labels).

Recognition looks at the instructions alone: policies, histories, documents and the questions themselves mention every
word there is, so what stands in a part never decides what is asked. Pure.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

CONTEXT, QUESTION, ANSWER, LABELS, OTHER = "context", "question", "answer", "labels", "other"
_KEYWORDS = {
    CONTEXT: "context document passage source excerpt article section snippet knowledge evidence background fact",
    QUESTION: "question query message ticket request input text email utterance complaint",
    ANSWER: "answer reply response draft output claim",
    LABELS: "intent label category categorie class classe option",
    OTHER: "tone style voice guideline history conversation example rule format schema instruction",
}
_PART_OF = {word: part for part, words in _KEYWORDS.items() for word in words.split()}
_KEYWORD = re.compile(rf"\b({'|'.join(_PART_OF)})s?\b|\b(search results?|knowledge base)\b", re.IGNORECASE)
# "Handbook passages:", "## Question", "**Context**"; and "Question:" after a sentence on the same line.
_AT_START = re.compile(
    r"[ \t]*(?:#{1,6}[ \t]+|\*\*)([A-Za-z][^:.?!<>*]{0,79}+)(?:\*\*)?:?(?:\*\*)?[ \t]*$"
    r"|[ \t]*(?:#{1,6}[ \t]+|\*\*)?([A-Za-z][^:.?!<>*]{0,79}+)(?:\*\*)?:(?:\*\*)?"
)
_AFTER_SENTENCE = re.compile(r"(?<=[.?!] )([A-Z][a-z]{3,12}):")
_TAGS = re.compile(rf"<({'|'.join(_PART_OF)})(s?)(?:\s[^>\n]*)?>(.*?)</\1\2>", re.IGNORECASE | re.DOTALL)
_MARKUP = re.compile(r"</?[a-zA-Z_]+(?:\s[^>\n]*)?>")
_FENCE = re.compile(r'^(?:"""|```\w*)\s*$', re.MULTILINE)
_COMMAND = re.compile(
    r"(?:now |please |then )?"
    r"(?:answer|reply|respond|use|using|write|based|given|return|output|classify|validate|verify)\b",
    re.IGNORECASE,
)
_EDGE = r"[\s()\[\]{}<>.\"'-]*"
_NOTHING = re.compile(
    rf"{_EDGE}(?:none|null|n/?a|empty|nothing|not available|(?:there (?:is|are) |sorry, )?no (?:\w+ ){{0,3}}"
    rf"(?:context|documents?|passages?|sources?|results?|matches)(?: (?:was|were))?(?: (?:found|available|given))?)?"
    rf"{_EDGE}",
    re.IGNORECASE,
)
# Documents have lines like "Text:" or "Rules:" of their own; inside a context only these end it.
_ENDS_CONTEXT = re.compile(
    r"\b(question|query|message|ticket|answer|reply|response|tone|instructions|labels|intents|categories)",
    re.IGNORECASE,
)
_PLURAL = re.compile(r"\b(questions|queries|answers|messages|tickets)$", re.IGNORECASE)
_HEADING_WORDS = 4
_SYSTEM_CHARS = 1500


@dataclass(frozen=True, slots=True)
class _Heading:
    text: str
    start: int
    end: int
    inline: bool = False  # after a sentence on the same line


@dataclass(frozen=True, slots=True)
class Prompt:
    """One conversation, taken apart."""

    task: str  # what the last user turn says outside its parts
    system: str  # the same of the system prompt; "" of a long one, which is a policy: it mentions all and asks nothing
    question: str
    context: str | None  # None: no such part; "": there is one, and it is empty
    given: str | None  # an answer to be judged
    labels: str  # the part that lists labels


def read_prompt(turns: list[tuple[str, str]]) -> Prompt:
    """Take a conversation of (role, text) turns, oldest first, apart."""
    since = max((i for i, (role, _) in enumerate(turns) if role == "assistant"), default=-1) + 1
    last = "\n\n".join(text for role, text in turns[since:] if role == "user")
    if not last:  # tools have answered since
        last = next((text for role, text in reversed(turns) if role == "user"), "")
    user = parts_of(last)
    policy = "\n".join(text for role, text in turns if role in ("system", "developer"))
    system = _system_parts(policy)
    instructs = len(policy) - len(system.get(CONTEXT, "")) < _SYSTEM_CHARS
    contexts = [p[CONTEXT] for p in (user, system) if CONTEXT in p][:1]
    contexts += [text for role, text in turns[since:] if role == "tool"]
    return Prompt(
        task=user[""],
        system=system[""] if instructs else "",
        question=user.get(QUESTION) or user[""],
        context=_something("\n\n".join(contexts)) if contexts else None,
        given=user.get(ANSWER),
        labels=user.get(LABELS) or (system.get(LABELS, "") if instructs else ""),
    )


def parts_of(text: str) -> dict[str, str]:
    """The parts of one text by name; "" is what stands outside of them, the words of longer headings included."""
    parts: dict[str, str] = {"": ""}

    def take_tagged(match: re.Match[str]) -> str:
        _take(parts, _PART_OF[match.group(1).casefold()], _MARKUP.sub("\n", match.group(3)))
        return "\n"

    if "</" in text:
        text = _TAGS.sub(take_tagged, text)
    opened: list[tuple[str, str, int, int]] = [("", "", 0, 0)]  # part, its heading, where heading and text begin
    for heading in _headings(text):
        part = _named(heading.text)
        if part is not None and _opens(heading, opened[-1][0], text[opened[-1][3] : heading.start]):
            opened.append((part, heading.text, heading.start, heading.end))
    for index, (part, said, _, began) in enumerate(opened):
        until = opened[index + 1][2] if index + 1 < len(opened) else len(text)
        instructs = len(said.split()) > 1  # "Classify this message"
        if instructs:
            _take(parts, "", said)
        again = any(later == part for later, *_ in opened[index + 1 :])
        # "Validate the answer: is it polite?" with the answer itself further down is an instruction too.
        _take(parts, "" if instructs and again and part != CONTEXT else part, text[began:until])
    if opened[-1][0] == CONTEXT and QUESTION not in parts:
        body, _, last = parts[CONTEXT].rpartition("\n\n")
        if body and last.endswith("?"):
            parts[CONTEXT], parts[QUESTION] = body, last
    return parts


_system_parts = lru_cache(maxsize=64)(parts_of)  # the same long policy comes with every call


def _headings(text: str) -> Iterator[_Heading]:
    """What may be a heading, in order. Line by line: one expression over a long context takes a millisecond."""
    start = 0
    for line in text.splitlines(keepends=True):
        body = line.rstrip()
        if ":" in body or body.lstrip().startswith(("#", "**")):
            rest = 0
            if match := _AT_START.match(body):
                rest = match.end()
                yield _Heading(match.group(1) or match.group(2), start, start + rest)
            for match in _AFTER_SENTENCE.finditer(body, rest):
                yield _Heading(match.group(1), start + match.start(), start + match.end(), inline=True)
        start += len(line)


def _named(heading: str) -> str | None:
    """Which part a heading opens: its last keyword decides ("Answer from these documents")."""
    keywords = _KEYWORD.findall(heading)
    if not keywords:
        return None
    word, phrase = keywords[-1]
    return CONTEXT if phrase else _PART_OF[word.casefold()]


def _opens(heading: _Heading, open_part: str, before: str) -> bool:
    """Whether a heading really opens a part here, after the text `before` of the part that is open."""
    if heading.inline and "\n" in before.lstrip():
        return False
    if open_part != CONTEXT:
        return True
    if not _ENDS_CONTEXT.search(heading.text) or _PLURAL.search(heading.text):  # documents have "Questions:" too
        return False
    if before.endswith("\n\n"):
        return True
    return len(heading.text.split()) <= _HEADING_WORDS and _named(heading.text) in (QUESTION, ANSWER)


def _take(parts: dict[str, str], part: str, said: str) -> None:
    """Add text to a part. Several contexts are one; of several questions the last counts, examples come first."""
    said = _FENCE.sub("", said).strip()
    if part == CONTEXT:
        body, _, last = said.rpartition("\n\n")
        if body and len(last) < 400 and _COMMAND.match(last):  # "Answer the question." below the documents
            said = body.rstrip()
            _take(parts, "", last)
    joined = part in ("", CONTEXT) and parts.get(part)
    parts[part] = f"{parts[part]}\n\n{said}" if joined and said else said or parts.get(part, "")


def _something(context: str) -> str:
    """The context, or "" when it only says that there is none."""
    return "" if len(context) < 80 and _NOTHING.fullmatch(context) else context
