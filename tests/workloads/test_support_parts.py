"""The parts of the support desk, one by one."""

import asyncio
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.load.scenario import plain_text

SUPPORT = Path(__file__).parents[2] / "workloads" / "support"
sys.path.insert(0, str(SUPPORT))

cache: Any = importlib.import_module("support.cache")
history: Any = importlib.import_module("support.history")
llm: Any = importlib.import_module("support.llm")
pieces: Any = importlib.import_module("support.pieces")
prompts: Any = importlib.import_module("support.prompts")
replies: Any = importlib.import_module("support.replies")
settings: Any = importlib.import_module("support.settings")

Settings = settings.Settings


def reply(text: str) -> Any:
    return replies.Reply(text, "other", [])


# -- settings ---------------------------------------------------------------------------------------------------------


def test_settings_follow_the_environment() -> None:
    """Each variable sets the field of its name, in the field's type."""
    given = settings.from_env(
        {"SUPPORT_CHUNKS": "3", "SUPPORT_PARALLEL": "1", "SUPPORT_TIME_SCALE": "0.2", "PATH": "x"}
    )
    assert (given.chunks, given.parallel, given.time_scale) == (3, True, 0.2)
    assert not settings.from_env({"SUPPORT_PARALLEL": "0"}).parallel


def test_a_setting_of_the_wrong_type_is_named() -> None:
    """The message says which variable and what it was."""
    with pytest.raises(ValueError, match=r"SUPPORT_CHUNKS must be of type int; got 'few'"):
        settings.from_env({"SUPPORT_CHUNKS": "few"})


# -- caches -----------------------------------------------------------------------------------------------------------


@given(st.text(max_size=60))
def test_text_key_is_the_one_the_load_generator_counts_by(text: str) -> None:
    """What a projection replays as the same question is the same question to the desk."""
    assert cache.text_key(text) == plain_text(text)


def test_answers_leave_least_recently_used_first() -> None:
    """A full cache drops what was not asked for longest."""
    kept = cache.AnswerCache(Settings(cache_entries=2))
    kept.put("a", reply("A"))
    kept.put("b", reply("B"))
    assert kept.get("a") == reply("A")
    kept.put("c", reply("C"))
    assert [kept.get(key) is not None for key in "abc"] == [True, False, True]


def test_answers_expire_at_the_providers_pace() -> None:
    """The time to live shrinks with the time scale, as the provider's own times do."""
    now = [0.0]
    kept = cache.AnswerCache(Settings(cache_ttl_s=100.0, time_scale=0.1), clock=lambda: now[0])
    kept.put("a", reply("A"))
    now[0] = 9.9
    assert kept.get("a") == reply("A")
    now[0] = 10.1
    assert kept.get("a") is None


def test_memo_makes_a_value_once_for_all_who_ask_meanwhile() -> None:
    """Later askers wait for the first one's work, and it outlives an asker who gives up."""
    made: list[str] = []

    async def scenario() -> list[str]:
        memo = cache.Memo(10)

        async def make() -> str:
            made.append("x")
            await asyncio.sleep(0)
            return "value"

        first = asyncio.create_task(memo.get("key", make))
        await asyncio.sleep(0)
        first.cancel()
        both = await asyncio.gather(memo.get("key", make), memo.get("key", make))
        return [*both, await memo.get("key", make)]

    assert asyncio.run(scenario()) == ["value"] * 3
    assert made == ["x"]


def test_memo_of_no_entries_keeps_nothing() -> None:
    """Switched off, every call is made."""
    made: list[int] = []

    async def make() -> int:
        made.append(1)
        return len(made)

    async def scenario() -> list[int]:
        memo = cache.Memo(0)
        return [await memo.get("key", make), await memo.get("key", make)]

    assert asyncio.run(scenario()) == [1, 2]


def test_a_failed_flight_is_not_kept() -> None:
    """The next one who asks starts anew."""

    async def scenario() -> bool:
        flights = cache.Flights()

        async def fail() -> None:
            raise ConnectionError

        task = flights.start("key", fail())
        with pytest.raises(ConnectionError):
            await asyncio.shield(task)
        await asyncio.sleep(0)
        return flights.of("key") is None

    assert asyncio.run(scenario())


def test_without_redis_the_second_level_holds_nothing_and_never_fails(tmp_path: Path) -> None:
    """Slower, not broken."""

    async def scenario() -> tuple[Any, Any]:
        level = cache.RedisLevel(f"unix://{tmp_path}/nobody.sock", ttl_s=10.0)
        await level.put("key", reply("A"))
        found = await level.get("key")
        await level.close()
        return found, level._down_until

    found, down_until = asyncio.run(scenario())
    assert found is None
    assert down_until > 0


@pytest.mark.slow
def test_the_second_level_gives_back_what_was_put() -> None:
    """Through a real Redis, which ends with its context."""
    redis_server = importlib.import_module("support.redis_server")

    async def scenario(url: str) -> tuple[Any, Any]:
        level = cache.RedisLevel(url, ttl_s=10.0)
        await level.put("key", reply("Schöne Grüße"))
        found = await level.get("key"), await level.get("other")
        await level.close()
        return found

    with redis_server.LocalRedis() as redis:
        assert asyncio.run(scenario(redis.url)) == (reply("Schöne Grüße"), None)
        folder = redis._folder
    assert not folder.exists()
    assert redis._process.poll() is not None


# -- calls ------------------------------------------------------------------------------------------------------------


class Refusing:
    """Something with settings whose calls are refused a number of times."""

    def __init__(self, times: int) -> None:
        self.settings = Settings(time_scale=0.0)
        self.left = times
        self.calls = 0

    def _answer(self) -> str:
        self.calls += 1
        if self.calls <= self.left:
            raise llm.openai.APIConnectionError(request=None)
        return "done"

    @llm.retrying  # type: ignore[untyped-decorator]
    def plain(self) -> str:
        return self._answer()

    @llm.retrying  # type: ignore[untyped-decorator]
    async def waiting(self) -> str:
        return self._answer()


@pytest.mark.parametrize("form", ["plain", "waiting"])
def test_a_refused_call_is_tried_seven_times(form: str) -> None:
    """Six refusals are survived, the seventh is the caller's."""

    def call(desk: Refusing) -> Any:
        return desk.plain() if form == "plain" else asyncio.run(desk.waiting())

    assert call(Refusing(6)) == "done"
    hopeless = Refusing(7)
    with pytest.raises(llm.openai.APIConnectionError):
        call(hopeless)
    assert hopeless.calls == 7


# -- prompts and conversations ----------------------------------------------------------------------------------------

TALK = [{"role": role, "content": f"{role} {i}"} for i in range(4) for role in ("user", "assistant")]


def test_before_every_step_gets_policy_and_conversation() -> None:
    """That is what makes the desk's prompts long."""
    for call in (
        prompts.intent("q", TALK, Settings()),
        prompts.tone("travel", TALK, Settings()),
        prompts.answer("q", "calm", ["source\ntext"], TALK, Settings()),
        prompts.validation("q", "a", TALK, Settings()),
    ):
        assert call["messages"][0]["content"] == prompts.POLICIES
        assert call["messages"][1:-1] == TALK
        assert call["model"] == "gpt-4o"
        assert "max_tokens" not in call


def test_short_prompts_hold_what_the_step_needs() -> None:
    """Only the answer gets rules and messages, the last three; and every reply is bounded."""
    short = Settings(short_prompts=True, history_messages=3, limit_replies=True, small_model="gpt-4o-mini")
    answer = prompts.answer("q", "calm", [], TALK, short)
    assert [m["role"] for m in answer["messages"]] == ["system", "assistant", "user", "assistant", "user"]
    assert answer["messages"][1:-1] == TALK[-3:]
    assert (answer["model"], answer["max_tokens"]) == ("gpt-4o", prompts.ANSWER_TOKENS)
    intent = prompts.intent("q", TALK, short)
    assert [m["role"] for m in intent["messages"]] == ["user"]
    assert (intent["model"], intent["max_tokens"]) == ("gpt-4o-mini", prompts.INTENT_TOKENS)


@pytest.mark.parametrize(
    ("said", "label"),
    [("travel", "travel"), (" Travel.\n", "travel"), ("no idea", "other")],
    ids=["as is", "dressed", "none"],
)
def test_a_label_is_read_from_a_reply(said: str, label: str) -> None:
    """What is no label counts as other."""
    assert prompts.label_in(said) == label


def test_conversations_are_bounded_and_copied() -> None:
    """A session that talks for ever does not grow for ever, and who reads one cannot change it."""
    talks = history.History()
    for i in range(20):
        talks.add(7, f"q{i}", f"a{i}")
    messages = talks.of(7)
    assert len(messages) == history.MESSAGES
    assert messages[-1] == {"role": "assistant", "content": "a19"}
    messages[-1]["content"] = "changed"
    assert talks.of(7)[-1]["content"] == "a19"
    assert talks.of(8) == []


def test_pieces_come_out_in_order_and_whole() -> None:
    """Also those that came before anybody listened, or after the last look."""

    async def scenario() -> list[str]:
        heard = pieces.Pieces()
        heard.hear("a")
        heard.hear("b")
        asyncio.get_running_loop().call_soon(lambda: (heard.hear("c"), heard.end()))
        return [text async for text in heard]

    assert asyncio.run(scenario()) == ["ab", "c"]


def test_the_title_fallback_finds_only_a_page_named_by_the_question() -> None:
    """Nearly every question finds nothing, which is why answers are vague when retrieval fails."""
    retrieval: Any = importlib.import_module("support.retrieval")
    handbook = retrieval.load_handbook()
    found = retrieval.match_title("Tock?", handbook)
    assert [section.source.split(":")[0] for section in found] == ["Tock"]
    assert retrieval.match_title("What is Tock, and why do we use it?", handbook) == []
