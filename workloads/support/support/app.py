"""The support desk over HTTP: POST /chat, GET /ready, and a page to chat on."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import openai
from fastapi import FastAPI, Request, Response
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.background import BackgroundTask
from starlette.types import Scope

from support.desk import Desk, Pending
from support.pieces import Pieces
from support.settings import from_env

STATIC = Path(__file__).parent / "static"
settings = from_env()


class Question(BaseModel):
    """One message of a session. `stream` asks for the answer piece by piece, if the desk can."""

    session: int
    message: str
    stream: bool = False


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.desk = Desk(settings)
    yield
    await app.state.desk.close()


app = FastAPI(title="Support desk", lifespan=lifespan)


@app.post("/chat")
async def chat(question: Question) -> Response:
    """Answer a question: JSON with answer, intent and sources, or server-sent events."""
    desk: Desk = app.state.desk
    if question.stream and settings.stream:
        pieces = Pieces()
        pending = await desk.ask(question.message, question.session, pieces.hear)
        pending.draft.add_done_callback(lambda _: pieces.end())
        headers = {"x-cache": pending.cache, "cache-control": "no-store"}
        events = _events(pending, pieces)
        return StreamingResponse(events, 200, headers, "text/event-stream", BackgroundTask(_check, pending))
    pending = await desk.ask(question.message, question.session)
    draft = await asyncio.shield(pending.draft)
    headers = {"x-cache": pending.cache}
    return JSONResponse(asdict(draft.reply), headers=headers, background=BackgroundTask(_check, pending))


@app.get("/ready")
def ready() -> Response:
    """200 when the desk can answer, else 503 with the reason."""
    if settings.ready_checks:
        try:
            size = app.state.desk.index.size()
        except Exception as error:
            return JSONResponse({"status": "down", "reason": f"collection {settings.collection!r}: {error}"}, 503)
        if not size:
            return JSONResponse({"status": "down", "reason": f"collection {settings.collection!r} is empty"}, 503)
    return JSONResponse({"status": "ok"})


@app.exception_handler(openai.OpenAIError)
async def provider_failed(_: Request, error: Exception) -> Response:
    """The model provider refused for good."""
    return JSONResponse({"detail": f"the model provider does not answer: {type(error).__name__}"}, 503)


async def _events(pending: Pending, pieces: Pieces) -> AsyncIterator[str]:
    """Pieces of the answer as they are written, then the whole reply."""
    async for text in pieces:
        yield _event("piece", {"text": text})
    try:
        draft = await asyncio.shield(pending.draft)
    except openai.OpenAIError as error:
        yield _event("error", {"detail": f"the model provider does not answer: {type(error).__name__}"})
    else:
        yield _event("reply", asdict(draft.reply))


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


async def _check(pending: Pending) -> None:
    """Validate what was answered, where that is still to be done; whoever waited for the same answer does not."""
    if pending.cache != "miss":
        return
    try:
        draft = await asyncio.shield(pending.draft)  # still on its way when the reader of a stream has left
    except openai.OpenAIError:
        return  # there is no answer to check, and who asked has been told
    if draft.check:
        await draft.check()


class Static(StaticFiles):
    """Static files that browsers may keep, when `web_cache` is set."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        if settings.web_cache:
            response.headers["cache-control"] = "public, max-age=86400"
        return response


if settings.web_cache:
    app.add_middleware(GZipMiddleware, minimum_size=1000)
app.mount("/static", Static(directory=STATIC))


@app.get("/")
def page() -> Response:
    """The chat page."""
    return FileResponse(STATIC / "index.html")
