"""Meeting notes: a title, the action items and a summary of a transcript, each asked of a model."""

import asyncio
import os

from fastapi import FastAPI
from openai import AsyncOpenAI
from pydantic import BaseModel

app = FastAPI()
model = AsyncOpenAI()
parallel = os.environ.get("NOTES_PARALLEL") == "1"


class Transcript(BaseModel):
    """What was said."""

    text: str


async def write_title(text: str) -> str:
    """A few words."""
    system = "Give this meeting a title of at most four words. Answer with the title only."
    reply = await model.chat.completions.create(
        model="gpt-4o",
        max_tokens=12,
        messages=[{"role": "system", "content": system}, {"role": "user", "content": text}],
    )
    return reply.choices[0].message.content or ""


async def list_actions(text: str) -> str:
    """Who does what."""
    system = "List the action items of this meeting, one a line, each with its owner."
    reply = await model.chat.completions.create(
        model="gpt-4o", messages=[{"role": "system", "content": system}, {"role": "user", "content": text}]
    )
    return reply.choices[0].message.content or ""


async def summarise(text: str) -> str:
    """A paragraph."""
    system = "Summarise this meeting in one paragraph for people who were not there."
    reply = await model.chat.completions.create(
        model="gpt-4o", messages=[{"role": "system", "content": system}, {"role": "user", "content": text}]
    )
    return reply.choices[0].message.content or ""


@app.get("/health")
async def health() -> dict[str, str]:
    """Ready as soon as it answers."""
    return {"status": "ok"}


@app.post("/notes")
async def notes(transcript: Transcript) -> dict[str, str]:
    """All three, one after the other, or together when told so."""
    text = transcript.text
    if parallel:
        title, actions, summary = await asyncio.gather(write_title(text), list_actions(text), summarise(text))
    else:
        title = await write_title(text)
        actions = await list_actions(text)
        summary = await summarise(text)
    return {"title": title, "actions": actions, "summary": summary}
