"""HTTP servers and upstream clients to build the gateway on, without the gateway: CPU of one request.

    python -m benchmarks.servers --json [--quick]

hit    a stored answer to a call of 1 KB, found by its body: our server, uvicorn with an ASGI application, and uvicorn
       with a subclass of its httptools protocol that answers hits before the application is called
pass   the call sent on to nginx and the answer sent back: our server with our client, aiohttp, httpx and pyreqwest,
       and the uvicorn subclass with our client
corpus malformed and ambiguous requests (of tests/wire/test_wire_server_smuggling.py) that a server answers as if they
       were fine, or leaves waiting
User + system CPU of the server process over N requests on 32 kept-alive connections, median of alternating rounds.
Peers are optional: what is not installed is reported under `skipped`.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import json
import socket
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

from benchmarks._rig import (
    CHAT,
    REPLY,
    Target,
    alternate,
    announced,
    call,
    cores,
    cpu_us_per_request,
    machine,
    nginx,
    nginx_path,
    pin,
    python_upstream,
)
from paceline.wire.client import HttpClient
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.server import serve

JSON = [(b"content-type", b"application/json")]
SERVERS = {"ours": None, "uvicorn": "uvicorn", "uvicorn-protocol": "uvicorn"}
CLIENTS = {"ours": None, "aiohttp": "aiohttp", "httpx": "httpx", "pyreqwest": "pyreqwest"}
HEAVY = 10  # httpx needs milliseconds for a request and gets this many times fewer
NOTHING = Reply(200, JSON, b"{}")
Post = Callable[[bytes], Awaitable[bytes]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object (also the default)")
    parser.add_argument("--quick", action="store_true", help="fewer requests and rounds")
    parser.add_argument("--serve", nargs=3, metavar=("SERVER", "CLIENT", "UPSTREAM"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        uvloop.run(be_server(args.serve[0], args.serve[1], int(args.serve[2])))
        return
    print(json.dumps(measure(*((4000, 3) if args.quick else (10_000, 7)))))


def measure(count: int, rounds: int) -> dict[str, Any]:
    load, _ = cores()
    pin(load)
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        targets, skipped = start_all(Path(temporary), stack)
        corpus = {name: accepted(targets[name][1]) for name in ("hit.ours", "hit.uvicorn") if name in targets}

        def measured(name: str) -> Callable[[int], float]:
            some = count // HEAVY if name.endswith("httpx") else count
            return lambda turn: cpu_us_per_request(targets[name], [call(None)] * (some if turn >= 0 else 200))

        figures = alternate({name: measured(name) for name in targets}, rounds)
    result: dict[str, Any] = {"hit": {}, "pass": {}}
    for name, values in figures.items():
        kind, _, who = name.partition(".")
        result[kind][who] = {"cpu_us_per_request": round(statistics.median(values), 1), "rounds": values}
    return {"machine": machine(), "requests_per_round": count, **result, "corpus": corpus, "skipped": skipped}


def start_all(folder: Path, stack: contextlib.ExitStack) -> tuple[dict[str, Target], dict[str, str]]:
    """Everything that can be measured here, and why the rest cannot."""
    load, tested = cores()
    targets: dict[str, Target] = {}
    skipped: dict[str, str] = {}
    if nginx_path():
        _, upstream = stack.enter_context(nginx(folder / "upstream", load))
        targets["hit.nginx_static"] = stack.enter_context(nginx(folder / "static", tested))
        targets["pass.nginx_proxy"] = stack.enter_context(nginx(folder / "proxy", tested, upstream=upstream))
    else:
        _, upstream = stack.enter_context(python_upstream(load))
        skipped["nginx"] = "not installed; the upstream is our own server"
    pairs = [(server, "none") for server in SERVERS] + [("ours", client) for client in CLIENTS]
    for server, client in [*pairs, ("uvicorn-protocol", "ours")]:
        name = f"hit.{server}" if client == "none" else f"pass.{server}+{client}"
        missing = [m for m in (SERVERS[server], CLIENTS.get(client)) if m and importlib.util.find_spec(m) is None]
        if missing:
            skipped[name] = f"{missing[0]} is not installed"
        else:
            command = [sys.executable, "-m", "benchmarks.servers", "--serve", server, client, str(upstream)]
            targets[name] = stack.enter_context(announced(command, tested))
    return targets, skipped


def accepted(port: int) -> dict[str, Any]:
    """Which requests of the corpus are not refused. Those about bounds are left out: each server has its own."""
    try:
        from tests.wire.test_wire_server_smuggling import REFUSED
    except ImportError as error:
        return {"skipped": str(error)}
    cases = {
        name: data
        for name, (data, status) in REFUSED.items()
        if status not in (413, 431) and "bomb" not in name and "many" not in name
    }
    found: dict[str, list[str]] = {"answered": [], "left_waiting": []}
    for name, data in cases.items():
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(data)
            client.settimeout(0.3)
            try:
                answer = client.recv(65536)
            except TimeoutError:
                found["left_waiting"].append(name)
            except ConnectionError:
                continue
            else:
                if answer and not answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 50")):
                    found["answered"].append(name)
    return {"cases": len(cases), **found}


# --- what is measured --------------------------------------------------------------------------------------------


async def be_server(server: str, client: str, upstream: int) -> None:
    post = None if client == "none" else await CLIENT_STARTERS[client](f"http://127.0.0.1:{upstream}")
    stored = {_body(call(None)): Reply(200, JSON, REPLY).encoded()}
    if server == "ours":
        port = (await serve(our_handler(stored, post), "127.0.0.1", 0)).port
    else:
        port = await start_uvicorn(stored if server == "uvicorn-protocol" and post is None else {}, stored, post)
    print(json.dumps({"port": port}), flush=True)
    await asyncio.Event().wait()


def _body(request: bytes) -> bytes:
    return request.partition(b"\r\n\r\n")[2]


def our_handler(stored: dict[bytes, Reply], post: Post | None) -> Callable[[HttpRequest], Reply | Awaitable[Reply]]:
    async def pass_on(body: bytes) -> Reply:
        assert post is not None
        return Reply(200, JSON, await post(body))

    if post is None:
        return lambda request: stored.get(request.body, NOTHING)
    return lambda request: pass_on(request.body)


async def start_uvicorn(early: dict[bytes, Reply], stored: dict[bytes, Reply], post: Post | None) -> int:
    """uvicorn with an application that knows `stored`; what is in `early` its protocol answers by itself."""
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class EarlyProtocol(HttpToolsProtocol):
        """Holds a POST back until its body is whole; a hit is written at once, anything else goes the usual way.

        uvicorn makes the ASGI scope in `on_message_begin`, and the task of a request in `on_headers_complete`: the
        second is put off here until the body is known.
        """

        def on_headers_complete(self) -> None:
            self.held: list[bytes] | None = None
            if self.parser.get_method() != b"POST" or (self.cycle is not None and not self.cycle.response_complete):
                super().on_headers_complete()
            else:
                self.held = []

        def on_body(self, body: bytes) -> None:
            if self.held is None:
                super().on_body(body)
            else:
                self.held.append(body)

        def on_message_complete(self) -> None:
            if self.held is None:
                super().on_message_complete()
                return
            body = b"".join(self.held)
            found = early.get(body)
            if found is not None and found.wire is not None and self.parser.should_keep_alive():
                self.transport.write(found.wire)
                return
            super().on_headers_complete()
            super().on_body(body)
            super().on_message_complete()

    head = {"type": "http.response.start", "status": 200}

    async def application(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        body = message.get("body", b"")
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
        found = stored.get(body, NOTHING).body if post is None else await post(body)
        assert isinstance(found, bytes)
        await send({**head, "headers": [*JSON, (b"content-length", b"%d" % len(found))]})
        await send({"type": "http.response.body", "body": found})

    protocol: Any = EarlyProtocol if early or post is not None else HttpToolsProtocol
    config = uvicorn.Config(application, "127.0.0.1", 0, http=protocol, log_level="error", access_log=False)
    config.lifespan = "off"
    running = uvicorn.Server(config)
    task = asyncio.get_running_loop().create_task(running.serve())
    while not running.started:
        await asyncio.sleep(0.01)
        assert not task.done()
    return int(running.servers[0].sockets[0].getsockname()[1])


async def start_ours(url: str) -> Post:
    client = HttpClient(url)

    async def post(body: bytes) -> bytes:
        return await (await client.request("POST", CHAT, JSON, body)).read()

    return post


async def start_aiohttp(url: str) -> Post:
    import aiohttp

    connector = aiohttp.TCPConnector(limit=256, keepalive_timeout=300)
    session = aiohttp.ClientSession(connector=connector, auto_decompress=False)

    async def post(body: bytes) -> bytes:
        async with session.post(url + CHAT, data=body, headers={"content-type": "application/json"}) as reply:
            return await reply.read()

    return post


async def start_httpx(url: str) -> Post:
    import httpx

    limits = httpx.Limits(max_connections=256, max_keepalive_connections=256)
    client = httpx.AsyncClient(limits=limits, timeout=30, trust_env=False)

    async def post(body: bytes) -> bytes:
        return (await client.post(url + CHAT, content=body, headers={"content-type": "application/json"})).content

    return post


async def start_pyreqwest(url: str) -> Post:
    client = importlib.import_module("pyreqwest.client").ClientBuilder().build()

    async def post(body: bytes) -> bytes:
        asked = client.post(url + CHAT).headers({"content-type": "application/json"}).body_bytes(body)
        return bytes(await (await asked.build().send()).bytes())

    return post


CLIENT_STARTERS: dict[str, Callable[[str], Awaitable[Post]]] = {
    "ours": start_ours,
    "aiohttp": start_aiohttp,
    "httpx": start_httpx,
    "pyreqwest": start_pyreqwest,
}


if __name__ == "__main__":
    main()
