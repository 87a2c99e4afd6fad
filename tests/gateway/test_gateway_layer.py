"""The layer as a whole through real sockets: levels, directives, prompts, batches, priorities working together."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.gateway.builders import COMPLETION, EVENTS, JSON, PLAIN, SHARING, STREAM, Bench, bench
from tests.wire.builders import ok, run, until

from paceline.accelerate.batching.policy import BatchPolicy
from paceline.accelerate.cache import CachePolicy, HostPolicy, MemoryPolicy
from paceline.accelerate.policy import Policy
from paceline.accelerate.prompts.policy import PromptPolicy
from paceline.accelerate.routing.policy import Route, RoutingPolicy

OTHER = COMPLETION.replace(b"Hello there", b"Good bye")


def sent(b: Bench) -> list[dict[str, Any]]:
    """Bodies the provider got."""
    return [msgspec.json.decode(request.partition(b"\r\n\r\n")[2]) for request in b.upstream.requests]


def test_a_hit_says_level_age_and_what_it_saved() -> None:
    """Headers a person can debug with; a miss says what it cost."""

    async def main() -> None:
        async with bench(*PLAIN, policy=SHARING) as b:
            miss = await b.ask()
            await miss.read()
            hit = await b.ask()
            await hit.read()
            assert (miss.header(b"x-paceline-cost-usd"), miss.header(b"x-paceline-cache-level")) == (
                b"0.000450000",
                None,
            )
            assert hit.header(b"x-paceline-cache-level") == b"memory"
            assert hit.header(b"age") == b"0"
            assert (hit.header(b"x-paceline-cost-usd"), hit.header(b"x-paceline-saved-usd")) == (b"0", b"0.000450000")

    run(main())


def test_processes_of_a_host_share_answers_plain_and_streamed(tmp_path: Path) -> None:
    """What one engine kept in the folder, another one gives, event by event, without asking the provider."""
    pytest.importorskip("lmdb")
    policy = Policy(
        single_flight=True,
        cache=CachePolicy(
            enabled=True, memory=MemoryPolicy(enabled=False), host=HostPolicy(enabled=True, path=str(tmp_path / "c"))
        ),
    )

    async def main() -> None:
        async with bench(scripts=[PLAIN, STREAM], policy=policy) as first:
            assert (await first.say())[1] == "miss"
            assert (await first.say(stream=True))[1] == "miss"
        async with bench(scripts=[[ok(OTHER, JSON)]], policy=policy) as second:
            assert await second.say() == (200, "hit", COMPLETION)
            reply = await second.ask(stream=True)
            assert reply.header(b"x-paceline-cache-level") == b"host"
            assert await reply.read() == b"".join(EVENTS)
            assert second.upstream.requests == []

    run(main())


def test_a_stale_answer_is_given_at_once_and_made_anew_behind_it() -> None:
    """Stale-while-revalidate: one background call, however many ask; the next one gets the new answer."""
    cache = CachePolicy(enabled=True, stale_s=60)

    async def main() -> None:
        async with bench(scripts=[PLAIN, [ok(OTHER, JSON)]], policy=Policy(single_flight=True, cache=cache)) as b:
            await b.say(headers=((b"x-paceline-ttl-s", b"0.05"),))
            await asyncio.sleep(0.06)  # the cache has its own clock, and it is the wall's
            reply = await b.ask()
            assert (await reply.read(), reply.header(b"x-paceline-cache-stale")) == (COMPLETION, b"1")
            assert [(await b.say())[1] for _ in range(2)] == ["hit", "hit"]
            await b.settled()
            assert len(b.upstream.requests) == 2
            assert (await b.say())[2] == OTHER
            await b.settled()
            assert "refresh" in [span.cache for span in b.spans]

    run(main())


def test_a_call_names_its_own_time_to_live_and_tags() -> None:
    """`x-paceline-ttl-s` bounds its life; its tags take it out of the cache."""

    async def main() -> None:
        async with bench(*PLAIN, policy=SHARING) as b:
            await b.say("short", headers=((b"x-paceline-ttl-s", b"0.02"),))
            await b.say("tagged", headers=((b"x-paceline-tags", b"contract-7, other"),))
            await asyncio.sleep(0.03)
            assert (await b.say("short"))[1] == "miss"
            assert (await b.say("tagged"))[1] == "hit"
            assert b.engine.cache is not None
            await b.engine.cache.invalidate(tags=["contract-7"])
            assert (await b.say("tagged"))[1] == "miss"

    run(main())


def test_prompts_are_shortened_before_they_are_compared() -> None:
    """Calls that differ only in what is cut share an answer; the provider gets the short one, images and all else."""
    policy = Policy(single_flight=True, cache=CachePolicy(enabled=True), prompts=PromptPolicy(last_turns=0))

    async def main() -> None:
        async with bench(*PLAIN, policy=policy) as b:
            for greeting in ("hello", "good morning"):
                history = [{"role": "user", "content": greeting}, {"role": "assistant", "content": "Hi"}]
                await b.say(messages=[*history, {"role": "user", "content": "What is it?"}])
            assert [body["messages"] for body in sent(b)] == [[{"role": "user", "content": "What is it?"}]]
            assert [span.cache for span in b.spans] == ["miss", "hit"]

    run(main())


def test_a_route_by_size_sends_short_calls_to_the_small_model() -> None:
    """The rule looks at the call, not at who makes it."""
    policy = Policy(routing=RoutingPolicy(routes=[Route(max_input_tokens=20, model="gpt-4o-mini")]))

    async def main() -> None:
        async with bench(*PLAIN, policy=policy) as b:
            await b.say("short", model="gpt-4o")
            await b.say("long " * 100, model="gpt-4o")
            assert [body["model"] for body in sent(b)] == ["gpt-4o-mini", "gpt-4o"]

    run(main())


def test_concurrent_embeddings_are_one_call_and_each_pays_its_part() -> None:
    """Three callers, one request to the provider, three answers with their own index and share of the tokens."""
    vectors = [{"object": "embedding", "index": i, "embedding": [float(i)]} for i in range(3)]
    body = {
        "object": "list",
        "data": vectors,
        "model": "text-embedding-3-small",
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
    }
    policy = Policy(batching=BatchPolicy(enabled=True, window_s=0.02))

    async def main() -> None:
        async with bench(ok(msgspec.json.encode(body), JSON), policy=policy) as b:

            async def embed(text: str) -> dict[str, Any]:
                call = msgspec.json.encode({"model": "text-embedding-3-small", "input": text})
                reply = await b.client.request("POST", "/v1/embeddings", [(b"content-type", b"application/json")], call)
                answer: dict[str, Any] = msgspec.json.decode(await reply.read())
                return answer

            answers = await asyncio.gather(*(embed(text) for text in ("one", "two", "six")))
            assert len(b.upstream.requests) == 1
            assert [answer["data"][0]["index"] for answer in answers] == [0, 0, 0]
            assert {answer["data"][0]["embedding"][0] for answer in answers} == {0.0, 1.0, 2.0}
            assert sum(answer["usage"]["prompt_tokens"] for answer in answers) == 9
            assert sum(span.input_tokens or 0 for span in b.spans) == 9
            await b.settled()

    run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_five_hundred_equal_calls_are_one(stream: bool) -> None:
    """Plain or streamed: one call to the provider, the same answer for all."""

    async def main() -> None:
        gate = asyncio.Event()
        async with bench(gate, *(STREAM if stream else PLAIN), policy=Policy(single_flight=True)) as b:
            asking = [asyncio.create_task(b.say(stream=stream)) for _ in range(500)]
            await until(lambda: b.server.busy == 500)
            gate.set()
            outcomes = await asyncio.gather(*asking)
            assert {(status, body) for status, _, body in outcomes} == {
                (200, b"".join(EVENTS) if stream else COMPLETION)
            }
            assert len(b.upstream.requests) == 1
            assert sorted(outcome for _, outcome, _ in outcomes) == ["join"] * 499 + ["miss"]
            await b.settled()

    run(main())
