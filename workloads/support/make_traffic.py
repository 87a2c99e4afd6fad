"""Make the support desk's traffic: `python make_traffic.py`, which writes requests, cache, streamed and history files.

Topics are questions that stand as headings in the handbook. Their popularity follows Zipf-Mandelbrot, the usual law of
what people ask: here ten topics of 115 make up 70 % of the traffic. People type the same question in different
ways (case, question mark, spaces), and a few ask it in other words, which is a topic of its own.
"""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SECTIONS = HERE / "data" / "handbook18f_sections.jsonl"
SEED = 18

ZIPF_S, ZIPF_Q = 1.8, 3.0  # the k-th topic is asked 1 / (k + q)**s as often as the first
VARIANTS = 30  # requests on one line: a typed form and a session each
SESSIONS = 150
RETURNING = 90  # of them have talked to the desk before
TURNS = (1, 4)  # questions a returning session has asked
CACHE_TOPICS, CACHE_ROUNDS = 15, 12  # of the cold-against-warm test
STREAMED = 40  # questions of the chat page

# Headings that mean nothing without the page they stand on.
VAGUE = {
    "What process do I need to follow?",
    "What does this mean in practice?",
    "Interested but unsure?",
    "Why partnership?",
    "Who makes the decision?",
    "How to pivot?",
    "How does this help our partners?",
    "How do I get help?",
    "How do I share feedback?",
    "What's the process?",
    "Overcoming the fear of “can we talk?”",
    "What advice do your distributed colleagues have?",
    "Find out everything I need to know about working in SF?",
    "What to cover during the “future” part of the agenda?",
    "What should I say or do during “their part”?",
    "What should I say during “my portion” of the meeting?",
}
OFFICES = ("Chicago", "New York City", "San Francisco")
ASKING = ("how", "what", "who", "why", "when", "where", "which", "can", "do", "is", "are", "am", "should", "as", "i’m")

# The same thing in other words. A key of the text cannot know that; the desk answers them anew.
REWORDED = {
    "What is Tock, and why do we use it?": "why do we have to use tock",
    "How do I access Slack?": "how can i log in to slack",
    "Is Slack content a federal record?": "do slack messages count as federal records",
    "What is a COR?": "what does COR stand for",
    "How do I complete a micropurchase?": "steps for a micropurchase",
    "What is an incident?": "what counts as a security incident",
    "What happens if my flight gets cancelled?": "my flight was cancelled, what now",
    "Which receipts must I keep?": "what receipts do i need to keep from my trip",
    "How can I manage my notifications?": "slack notifications are too much, how do i change them",
    "What is PII?": "what is personally identifiable information",
    "How do I get access to New Relic?": "who gives me access to New Relic",
    "How do I change a reporting period I already filled out?": "i made a mistake in tock last week, can i fix it",
}


def forms(question: str) -> list[tuple[str, float]]:
    """Ways to type a question, with how usual each is. All have the same words."""
    bare = question.rstrip("?!. ")
    lower = bare.lower()
    return [
        (lower, 3.0),
        (question, 2.5),
        (lower + "?", 2.5),
        (bare, 2.0),
        (lower + " ?", 1.0),
        (lower + "??", 1.0),
        (lower.capitalize() + "?", 1.5),
        (lower.capitalize(), 1.5),
        (question + " ", 1.0),
        (lower + " ", 1.0),
        (" " + lower, 0.5),
        (lower + ".", 0.7),
        (lower + "...", 0.5),
        (lower + "!", 0.3),
        (lower.replace(" ", "  ", 1), 0.5),
        (bare.title() + "?", 0.3),
        (bare.upper() + "?", 0.3),
    ]


def sections() -> list[dict[str, str]]:
    """The handbook's sections, in the file's order."""
    with SECTIONS.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def question_of(section: dict[str, str]) -> str | None:
    """The section's heading as a person would ask it; None when it is no question that stands alone."""
    heading = re.sub(r"\s*\{.*\}$", "", section["heading"]).strip().replace(" ?", "?")
    if "?" not in heading or section["heading"] in VAGUE:
        return None
    place = section["title"] if section["title"] in OFFICES else None
    asked = heading.rstrip("?")
    if not asked.lower().startswith(ASKING):
        asked = f"How do I {asked[0].lower()}{asked[1:]}"
        place = place or "from home"
        return f"{asked} in {place}?" if place in OFFICES else f"{asked} when I work {place}?"
    return f"{asked} in {place}?" if place and place not in asked else heading


def topics() -> list[str]:
    """All questions, the most popular first. The order is drawn: the handbook does not say what is asked most."""
    asked = list(dict.fromkeys(q for s in sections() if (q := question_of(s))))
    asked += REWORDED.values()
    random.Random(SEED).shuffle(asked)
    return asked


def popularity(count: int) -> list[float]:
    """Shares of the traffic, the most popular first."""
    weights = [1 / (rank + ZIPF_Q) ** ZIPF_S for rank in range(1, count + 1)]
    return [weight / sum(weights) for weight in weights]


def requests() -> Iterator[dict[str, Any]]:
    """One line a topic: its weight, and requests that ask it."""
    rng = random.Random(SEED + 1)
    asked = topics()
    for question, weight in zip(asked, popularity(len(asked)), strict=True):
        typed, usual = zip(*forms(question), strict=True)
        bodies = [
            {"session": rng.randint(1, SESSIONS), "message": message}
            for message in rng.choices(typed, usual, k=VARIANTS)
        ]
        yield {"weight": round(weight, 6), "variants": bodies}


def about(count: int, skip: int = 0) -> list[str]:
    """Questions that nobody asks in `requests`, so that no cache can know them: about headings that are statements."""
    plain = [s["heading"] for s in sections() if re.fullmatch(r"[A-Z][\w ,-]{12,60}", s["heading"])]
    headings = list(dict.fromkeys(plain))
    random.Random(SEED + 3).shuffle(headings)
    return [f"What does the handbook say about {h[0].lower()}{h[1:]}?" for h in headings[skip : skip + count]]


def cold_then_warm() -> Iterator[dict[str, Any]]:
    """A few questions in rounds: the first round is cold, the others are warm. Typed the same way throughout."""
    for _ in range(CACHE_ROUNDS):
        for session, question in enumerate(about(CACHE_TOPICS), start=1):
            yield {"session": session, "message": question}


def streamed() -> Iterator[dict[str, Any]]:
    """What the chat page sends: it asks for the answer piece by piece. Each question is new."""
    for session, question in enumerate(about(STREAMED, skip=CACHE_TOPICS), start=1):
        yield {"session": session, "message": question, "stream": True}


def conversations() -> Iterator[dict[str, Any]]:
    """What returning sessions have asked before, answered with the opening of the section."""
    rng = random.Random(SEED + 2)
    known = [(question, s["text"]) for s in sections() if (question := question_of(s))]
    for session in sorted(rng.sample(range(1, SESSIONS + 1), RETURNING)):
        messages: list[dict[str, str]] = []
        for question, text in rng.sample(known, rng.randint(*TURNS)):
            opening = text[: rng.randint(700, 1800)].rsplit(" ", 1)[0]
            messages += ({"role": "user", "content": question}, {"role": "assistant", "content": opening})
        yield {"session": session, "messages": messages}


def write(name: str, rows: Iterator[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (HERE / name).write_text("".join(lines), encoding="utf-8")
    print(f"{name}: {len(lines)} lines")


if __name__ == "__main__":
    write("requests.jsonl", requests())
    write("cache.jsonl", cold_then_warm())
    write("streamed.jsonl", streamed())
    write("data/history.jsonl", conversations())
