"""The snippets of docs/in-process.md, run against a local server."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from tests.accelerate.sdk_doors import DIRECT, SHARING, Doors

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning"),  # google-genai's, with aiohttp
]

PAGE = (Path(__file__).parents[2] / "docs" / "in-process.md").read_text(encoding="utf-8")
SNIPPETS = dict(re.findall(r"```python ([\w-]+)\n(.*?)```", PAGE, re.DOTALL))
NEEDS = {
    "openai": "openai",
    "anthropic": "anthropic",
    "google": "google.genai",
    "langchain-openai": "langchain_openai",
    "langchain-anthropic": "langchain_anthropic",
    "langchain-google": "langchain_google_genai",
    "pydantic-ai": "pydantic_ai",
    "httpx": "httpx",
    "settings": "httpx",
}
QUESTION: Any = [{"role": "user", "content": "hi"}]


async def use(name: str, made: dict[str, Any]) -> None:
    """Ask twice in each way the snippet offers."""
    client: Any = made.get("client")
    model: Any = made.get("model")
    sync: Any = made.get("sync_client")
    for _ in range(2):
        match name:
            case "openai":
                await client.chat.completions.create(model="m", messages=QUESTION)
                sync.chat.completions.create(model="m", messages=QUESTION)
            case "anthropic":
                await client.messages.create(model="m", messages=QUESTION, max_tokens=9)
                sync.messages.create(model="m", messages=QUESTION, max_tokens=9)
            case "google":
                await client.aio.models.generate_content(model="m", contents="hi")
                client.models.generate_content(model="m", contents="hi")
            case "pydantic-ai":
                from pydantic_ai import Agent

                await Agent(model).run("hi")
            case "httpx":
                await client.post("/chat/completions", json={"model": "m", "messages": QUESTION})
            case "settings":
                pass
            case _:
                await model.ainvoke("hi")
                model.invoke("hi")


async def close(made: dict[str, Any]) -> None:
    """Close every client the snippet made, and those inside what it made."""
    model = made.get("model")
    inside = [getattr(model, name, None) for name in ("_async_client", "_client", "http_async_client", "http_client")]
    options = made.get("options")
    inside += [getattr(options, name, None) for name in ("httpx_async_client", "httpx_client")]
    held = [made.get(name) for name in ("client", "sync_client", "http", "sync_http")]
    for client in [*inside, *held]:
        closer = getattr(client, "aclose", None) or getattr(client, "close", None)
        done = closer() if closer is not None else None
        if asyncio.iscoroutine(done):
            await done


def test_every_snippet_is_run() -> None:
    assert set(SNIPPETS) == set(NEEDS)


@pytest.mark.parametrize("name", list(NEEDS))
def test_the_snippet_works(name: str) -> None:
    """Each client asks twice; the second answer comes from memory."""
    pytest.importorskip(NEEDS[name])

    async def main(doors: Doors) -> None:
        takes_version = name in ("openai", "langchain-openai", "pydantic-ai", "httpx")
        made: dict[str, Any] = {"url": doors.url + "/v1" * takes_version, "key": "sk-1", "policy": SHARING}
        exec(SNIPPETS[name], made)  # noqa: S102 - the page is ours
        await use(name, made)
        await close(made)

    with Doors(DIRECT) as doors:
        asyncio.run(main(doors))
        asked_both_ways = name not in ("pydantic-ai", "httpx", "settings")
        assert doors.calls == (0 if name == "settings" else 2 if asked_both_ways else 1)
