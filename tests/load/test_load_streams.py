"""Streams of the simulated provider through the driver: first tokens, gaps and counts are those of the stream."""

import asyncio
import json
from pathlib import Path

import pytest
from tests.gateway.builders import CHAT

from paceline.load.driver import drive
from paceline.load.scenario import Scenario
from paceline.model.request import Request
from paceline.store.folder import create_run
from paceline.testing.provider import SimulatedProvider
from paceline.trace.figures import figures_of
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.server import serve

ASKED = {"role": "user", "content": "Where is my card? It should have come last week, and nobody answers."}
DIALECTS: dict[str, tuple[str, dict[str, object]]] = {
    "openai": (CHAT, {"model": "gpt-4o-mini", "messages": [ASKED], "stream_options": {"include_usage": True}}),
    "anthropic": ("/v1/messages", {"model": "claude-haiku-4-5", "messages": [ASKED], "max_tokens": 200}),
    "gemini": (
        "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
        {"contents": [{"role": "user", "parts": [{"text": ASKED["content"]}]}]},
    ),
}


def driven(folder: Path, base: str, path: str, body: object, requests: int = 3) -> list[Request]:
    bodies = folder / "bodies.jsonl"
    bodies.write_text(json.dumps(body) + "\n")
    headers = {"authorization": "Bearer x", "x-api-key": "x", "x-goog-api-key": "x", "anthropic-version": "2023-06-01"}
    scenario = Scenario(name="s", users=1, requests=requests, path=path, bodies=str(bodies), headers=headers)

    async def main() -> list[Request]:
        run = create_run(folder, "run")
        await drive(scenario, base, run)
        return run.requests()

    return asyncio.run(main())


@pytest.mark.parametrize("dialect", DIALECTS)
def test_tokens_of_a_stream_are_counted_as_the_provider_did(tmp_path: Path, dialect: str) -> None:
    path, body = DIALECTS[dialect]
    with SimulatedProvider(speed=200) as provider:
        found = driven(tmp_path, provider.url, path, body if dialect == "gemini" else {**body, "stream": True})
        calls = provider.calls
    assert [r.output_tokens for r in found] == [call.output_tokens for call in calls]
    for request in found:
        assert request.first_token_s is not None
        assert request.first_byte_s is not None
        assert request.first_byte_s <= request.first_token_s <= request.ended_s
        assert request.first_token_s + sum(request.gaps_s) <= request.ended_s + 1e-9
        assert request.output_tokens is not None
        assert len(request.gaps_s) < request.output_tokens
    figures = figures_of(found, [], [])
    assert figures.time_per_token_p50_s is not None
    assert figures.tokens_per_s is not None


def test_the_cost_an_answer_states_is_recorded(tmp_path: Path) -> None:
    """Whether or not its head was seen before."""

    async def main() -> list[Request]:
        def handler(_: HttpRequest) -> Reply:
            return Reply(200, [(b"x-paceline-cost-usd", b"0.00125"), (b"x-paceline-cache", b"miss")], b"{}")

        server = await serve(handler, "127.0.0.1", 0)
        run = create_run(tmp_path, "run")
        await drive(Scenario(name="s", users=1, requests=4, path="/"), f"http://127.0.0.1:{server.port}", run)
        await server.close()
        return run.requests()

    found = asyncio.run(main())
    assert [r.cost_usd for r in found] == [0.00125] * 4
    assert figures_of(found, [], []).cost_per_1000_usd == pytest.approx(1.25)
