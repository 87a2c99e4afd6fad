"""Gateway keys: made once, kept as hashes, shown by any SDK, never sent on."""

import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.gateway.builders import CHAT, COMPLETION, PLAIN, SHARING
from tests.gateway.keyed import (
    ANTHROPIC_SECRET,
    CREDENTIALS,
    GEMINI_SECRET,
    OPENAI_SECRET,
    Header,
    bearer,
    door_for,
    keyed,
    make,
)
from tests.patience import PATIENCE_S
from tests.wire.builders import run

from paceline.errors import ConfigError
from paceline.gateway.keys.file import Key, add_key, new_key, read_keys, revoke_key
from paceline.wire.http import HttpRequest

BODY = msgspec.json.encode({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]})
MESSAGES = "/v1/messages"
GEMINI = "/v1beta/models/gemini-2.0-flash:generateContent"


def test_the_file_keeps_no_key_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    """What is given out cannot be read from what is kept, and is recognised by it."""
    file = tmp_path / "keys.toml"
    presented, key = new_key("alice", models=["gpt-4o*"], requests_per_min=2.5)
    add_key(file, key)
    text = file.read_text()
    assert presented.split("_", 2)[2] not in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_keys(file) == [key]
    assert read_keys(file)[0].matches(presented)
    assert not key.matches(presented[:-1] + ("A" if presented[-1] != "A" else "B"))
    assert key.hash not in repr(key)
    assert key.salt not in repr(key)


def test_adding_and_revoking_leave_the_rest_of_the_file_alone(tmp_path: Path) -> None:
    """Comments and hand-made changes of other keys survive."""
    file = tmp_path / "keys.toml"
    for name in ("alice", "bob", "carol"):
        add_key(file, new_key(name)[1])
    edited = file.read_text().replace('name = "carol"', 'name = "carol" # until June')
    file.write_text(edited)
    revoke_key(file, "bob")
    assert [key.name for key in read_keys(file)] == ["alice", "carol"]
    assert "# until June" in file.read_text()
    with pytest.raises(ConfigError, match="has no key 'bob'; it has alice, carol"):
        revoke_key(file, "bob")
    with pytest.raises(ConfigError, match="two keys have the name 'alice'"):
        add_key(file, new_key("alice")[1])


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (("requests_per_min = 5", "requests_per_min = -1"), "requests_per_min must be above 0; got -1"),
        (("requests_per_min = 5", 'requests_per_min = "x"'), r"`\$.keys\[0\].requests_per_min`"),
        (("requests_per_min", "request_per_min"), "request_per_min"),
        (('name = "alice"', 'name = "al ice"'), "letters, digits"),
        (('hash = "', 'hash = "g'), "as `paceline keys add` wrote them"),
        (("[[keys]]", "[[keys"), "keys.toml are wrong"),
    ],
)
def test_a_wrong_file_names_itself_and_the_field(tmp_path: Path, edit: tuple[str, str], words: str) -> None:
    file = tmp_path / "keys.toml"
    add_key(file, new_key("alice", requests_per_min=5)[1])
    file.write_text(file.read_text().replace("5.0", "5").replace(*edit))
    with pytest.raises(ConfigError, match=words) as failure:
        read_keys(file)
    assert str(file) in str(failure.value)


def ways(presented: str) -> dict[str, tuple[str, list[Header]]]:
    key = presented.encode()
    return {
        "OpenAI": (CHAT, [bearer(presented)]),
        "Azure": (CHAT, [(b"api-key", key)]),
        "Anthropic": (MESSAGES, [(b"x-api-key", key)]),
        "Anthropic token": (MESSAGES, [(b"authorization", b"bearer " + key)]),
        "Gemini": (GEMINI, [(b"x-goog-api-key", key)]),
        "Gemini query": (f"{GEMINI}?alt=json&key={presented}", []),
    }


@pytest.mark.parametrize("way", ["OpenAI", "Azure", "Anthropic", "Anthropic token", "Gemini", "Gemini query"])
def test_every_sdk_can_show_a_key_and_the_provider_sees_only_its_own(way: str) -> None:
    """The gateway's key is taken off wherever it was, and the provider's credential put where it belongs."""
    presented, key = make()
    target, headers = ways(presented)[way]
    secrets = {CHAT: OPENAI_SECRET, MESSAGES: ANTHROPIC_SECRET, GEMINI: GEMINI_SECRET}
    secret = secrets[target.partition("?")[0]]

    async def main() -> None:
        async with keyed([key], *PLAIN) as g:
            for _ in range(2):  # the second time the head is known
                status, _ = await g.send("POST", target, *headers, body=BODY)
                assert status == 200
            for sent in g.upstream.requests:
                assert presented.encode() not in sent
                assert secret in sent
                assert sum(other in sent for other in (OPENAI_SECRET, ANTHROPIC_SECRET, GEMINI_SECRET)) == 1
                assert sent.endswith(BODY)
            assert g.upstream.requests[0].startswith(f"POST {target.partition('&key')[0]} ".encode())
            assert [record.caller.name for record in g.records if record.caller] == ["alice", "alice"]

    run(main())


@pytest.mark.parametrize(
    ("target", "headers", "shape"),
    [
        (CHAT, [], b'"code":"invalid_api_key"'),
        (CHAT, [(b"authorization", b"Bearer pl_00000000_nobody")], b'"code":"invalid_api_key"'),
        (CHAT, [(b"authorization", b"Basic eDp5")], b'"code":"invalid_api_key"'),
        (CHAT, [(b"authorization", b"\xff\xfe")], b'"code":"invalid_api_key"'),
        (MESSAGES, [(b"x-api-key", b"sk-ant-own")], b'"type":"authentication_error"'),
        (GEMINI, [(b"x-goog-api-key", b"x")], b'"status":"UNAUTHENTICATED"'),
    ],
)
def test_without_a_known_key_nothing_is_sent(target: str, headers: list[Header], shape: bytes) -> None:
    """401 in the words of the caller's provider, also where the caller has a credential of the provider."""
    _, key = make()

    async def main() -> None:
        async with keyed([key], *PLAIN) as g:
            status, body = await g.send("POST", target, *headers, body=BODY)
            assert (status, shape in body) == (401, True)
            assert not g.upstream.requests
            assert not any(secret in body for _, secret in CREDENTIALS.values())

    run(main())


def test_a_key_is_bound_to_its_models() -> None:
    """By name or by its beginning, in every dialect, and not by two models in one body."""
    presented, key = make(models=["gpt-4o-mini", "claude-*"])
    openai, anthropic, gemini = (ways(presented)[way][1] for way in ("OpenAI", "Anthropic", "Gemini"))

    async def main() -> None:
        async with keyed([key], *PLAIN) as g:
            assert (await g.send("POST", CHAT, *openai, body=BODY))[0] == 200
            assert (await g.send("POST", MESSAGES, *anthropic, body=b'{"model": "claude-x"}'))[0] == 200
            sent = len(g.upstream.requests)
            for target, headers, body, status in (
                (CHAT, openai, b'{"model": "gpt-4o"}', 403),
                (MESSAGES, anthropic, b'{"model": "gpt-4o"}', 403),
                (GEMINI, gemini, b"{}", 403),
                (CHAT, openai, b'{"model": "gpt-4o-mini", "Model": "gpt-4o"}', 400),
                ("/openai/deployments/gpt-4o/chat/completions", openai, BODY, 403),  # Azure follows the path
                (CHAT, openai, b'{"messages": []}', 400),
                (CHAT, openai, b'{"model": 5}', 400),
                (CHAT, openai, b"not json", 400),
                ("/v1/files", openai, b"", 403),
            ):
                assert (await g.send("POST", target, *headers, body=body))[0] == status
            assert len(g.upstream.requests) == sent
            twice = b'{"model": "gpt-4o", "messages": [], "model": "gpt-4o-mini"}'
            assert (await g.send("POST", CHAT, *openai, body=twice))[0] == 200
            assert g.upstream.requests[-1].count(b'"gpt-4o"') == 0

    run(main())


def test_what_is_no_model_call_needs_a_key_for_it() -> None:
    """All keys share one account at the provider, so files and batches of one would be open to the others."""
    plain, plain_key = make("plain")
    wide, wide_key = make("wide", other_paths=True)
    monitor, monitor_key = make("monitor", role="monitor")

    async def main() -> None:
        async with keyed([plain_key, wide_key, monitor_key], *PLAIN) as g:
            statuses = [
                [(await g.send(method, path, bearer(key), body=b""))[0] for key in (plain, wide, monitor)]
                for method, path in (
                    ("GET", "/v1/models"),
                    ("GET", "/v1beta/models/gemini-x"),
                    ("GET", "/v1/files"),
                    ("DELETE", "/v1/models/ft:own"),
                    ("GET", "/metrics"),
                    ("GET", "/-/costs"),
                )
            ]
            assert statuses == [
                [200, 200, 403],
                [200, 200, 403],
                [403, 200, 403],
                [403, 200, 403],
                [403, 403, 200],
                [403, 403, 200],
            ]
            assert (await g.send("GET", "/-/health"))[0] == (await g.send("GET", "/-/ready"))[0] == 200

    run(main())


def test_tenants_share_answers_only_among_themselves() -> None:
    """Two keys of one tenant share the cache; a third of another tenant does not."""
    (ann, ann_key), (bob, bob_key), (eve, eve_key) = make("ann", tenant="acme"), make("bob", tenant="acme"), make("eve")

    async def main() -> None:
        async with keyed([ann_key, bob_key, eve_key], *PLAIN, policy=SHARING) as g:
            outcomes = [(await g.ask(presented))[:2] for presented in (ann, bob, eve, eve)]
            assert outcomes == [(200, "miss"), (200, "hit"), (200, "miss"), (200, "hit")]

    run(main())


def test_new_keys_hold_on_connections_that_are_open() -> None:
    """A revoked key is refused on the connection it was known on; a key given to another tenant asks anew.

    And nothing that holds a secret shows it.
    """
    presented, key = make()
    moved = msgspec.structs.replace(key, tenant="other")

    async def main() -> None:
        async with keyed([key], *PLAIN, policy=SHARING) as g:
            assert [(await g.ask(presented))[1] for _ in range(2)] == ["miss", "hit"]
            g.gateway.serve_with(g.gateway.engine, door_for([moved]))
            assert [(await g.ask(presented))[1] for _ in range(2)] == ["miss", "hit"]
            notes: dict[Any, Any] = {}
            request = HttpRequest("POST", CHAT, [bearer(presented)], BODY, notes=notes)
            shown = repr((g.gateway.door, g.gateway.door and g.gateway.door.admit(request), notes, g.records))
            assert not any(secret in shown for secret in (presented, key.hash, OPENAI_SECRET.decode()))
            g.gateway.serve_with(g.gateway.engine, door_for([]))
            assert (await g.ask(presented))[0] == 401

    run(main())


def test_a_credential_without_keys_replaces_the_callers_own() -> None:
    """On loopback nobody needs a key, and the application needs no secret."""

    async def main() -> None:
        async with keyed(None, *PLAIN, credentials={"openai": CREDENTIALS["openai"]}) as g:
            assert (await g.send("POST", CHAT, bearer("any"), body=BODY))[0] == 200
            assert (await g.send("POST", MESSAGES, (b"x-api-key", b"own"), body=BODY))[0] == 200
            first, second = g.upstream.requests
            assert OPENAI_SECRET in first
            assert b"Bearer any" not in first
            assert b"x-api-key: own" in second

    run(main())


def test_a_budget_wants_a_price() -> None:
    """A key with a budget may not spend what nobody can count, unless its owner named the model."""
    bounded, bounded_key = make("bounded", budget_usd_per_day=1.0)
    named, named_key = make("named", budget_usd_per_day=1.0, models=["house-model"])

    async def main() -> None:
        async with keyed([bounded_key, named_key], *PLAIN) as g:
            assert (await g.ask(bounded, model="house-model"))[0] == 403
            assert (await g.ask(named, model="house-model"))[0] == 200
            assert (await g.ask(bounded))[0] == 200

    run(main())


def test_limits_are_refused_as_the_provider_would() -> None:
    """429 with Retry-After for a rate; insufficient_quota, not worth trying again, for a budget."""
    slow, slow_key = make("slow", requests_per_min=1)
    broke, broke_key = make("broke", budget_usd_per_day=0.0001)
    wordy, wordy_key = make("wordy", tokens_per_min=1500)

    async def main() -> None:
        async with keyed([slow_key, broke_key, wordy_key], *PLAIN) as g:
            for presented in (slow, broke, wordy):
                assert (await g.ask(presented))[2] == COMPLETION
            refused: list[Any] = []
            for presented in (slow, broke, wordy):
                reply = await g.client.request("POST", CHAT, [bearer(presented)], BODY)
                error = msgspec.json.decode(await reply.read())["error"]
                again = reply.header(b"x-should-retry"), int(reply.header(b"retry-after") or b"0")
                refused.append((reply.status, error["code"], again[0], again[1] > 0))
            assert refused == [
                (429, "rate_limit_exceeded", None, True),
                (429, "insufficient_quota", b"false", True),
                (429, "rate_limit_exceeded", None, True),
            ]

    run(main())


@pytest.mark.slow
def test_keys_from_the_command_line(tmp_path: Path) -> None:
    """The key alone on standard output, once; everything else on standard error, and nothing secret there."""

    def keys(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "paceline", "keys", *arguments, "--file", str(tmp_path / "keys.toml")]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    made = keys("add", "alice", "--models", "gpt-4o*,claude-*", "--budget-usd-per-day", "5")
    presented = made.stdout.strip()
    (key,) = read_keys(tmp_path / "keys.toml")
    assert key.matches(presented)
    assert (key.models, key.budget_usd_per_day) == (["gpt-4o*", "claude-*"], 5.0)
    shown = keys("list").stdout + keys("list", "--json").stdout + made.stderr
    assert "alice" in shown
    assert not any(secret in shown for secret in (presented, key.hash, key.salt))
    assert keys("revoke", "bob").returncode == 2
    assert keys("revoke", "alice").returncode == 0
    assert read_keys(tmp_path / "keys.toml") == []


def test_every_field_of_a_key_survives_the_file(tmp_path: Path) -> None:
    """The writer knows every kind of value there is."""
    may: dict[str, Any] = {
        "tenant": "acme",
        "role": "monitor",
        "requests_per_min": 0.5,
        "tokens_per_min": 1e6,
        "budget_usd_per_day": 1.25,
        "budget_usd_per_month": 20.0,
        "models": ['odd"name\\', "é*"],
        "other_paths": True,
        "priority": -3,
        "created": "2026-01-01",
    }
    _, key = new_key("alice", **may)
    assert set(may) | {"name", "id", "salt", "hash"} == set(Key.__struct_fields__)
    add_key(tmp_path / "keys.toml", key)
    assert read_keys(tmp_path / "keys.toml") == [key]
