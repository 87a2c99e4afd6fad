"""The report of a load: everything a run holds is on the page, at any size, and plots can be zoomed."""

import base64
import hashlib
import html
import json
import random
import re
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.report.test_report_page import CHROMIUM, HOSTILE, read

from paceline.cli import main
from paceline.load.gates import parse_objective
from paceline.model.request import Request, ResourceSample
from paceline.model.run import ScenarioInfo
from paceline.report.content import content_of
from paceline.report.html import render
from paceline.report.measured import measure_run, parts_of
from paceline.report.table import Table
from paceline.store.folder import RunFolder, create_run
from paceline.store.rows import _FIELDS, Naming, RowsHeader
from paceline.trace.figures import figures_of
from paceline.trace.streaming import parse_bound

pytestmark = pytest.mark.slow  # each writes a run and reads it with DuckDB
STREAM = {"first_token_s": 0.03, "gaps_s": [0.01, 0.02], "output_tokens": 3}


def request(index: int, **changes: object) -> Request:
    """A request every 0.1 s that takes 50 ms."""
    at_s = 1.0 + index * 0.1
    kept = {name: at_s + value if name == "first_token_s" else value for name, value in changes.items()}  # type: ignore[operator]
    return Request(
        **{  # type: ignore[arg-type]
            "index": index,
            "scenario": "load",
            "endpoint": "GET /a" if index % 2 else "POST /b",
            "trace_id": f"{index:032x}",
            "intended_s": at_s,
            "started_s": at_s + 0.001,
            "first_byte_s": at_s + 0.02,
            "ended_s": at_s + 0.05 + index % 10 * 0.01,
            "status": 200,
            **kept,
        }
    )


def sample(at_s: float) -> ResourceSample:
    return ResourceSample(
        at_s=at_s,
        service="app",
        processes=1,
        threads=5,
        cpu_s=at_s / 4,
        rss_bytes=int(1e8 + at_s * 1e6),
        descriptors=9,
        sockets=3,
        disk_read_bytes=0,
        disk_write_bytes=int(at_s * 1e6),
        received_bytes=int(at_s * 1e5),
        sent_bytes=0,
    )


def saved(root: Path, requests: list[Request], *, resources: bool = False, finish: bool = True) -> RunFolder:
    run = create_run(root, "load", folder="run")
    spool = run.spool("requests", "test")
    for one in requests:
        spool.append(one)
    spool.close()
    if resources:
        spool = run.spool("resources", "test")
        for quarter in range(4, 240):
            spool.append(sample(quarter / 4))
        spool.close()
    if finish:
        names = list(dict.fromkeys(r.scenario for r in requests))
        infos = [
            ScenarioInfo(name=n, model="open", rate_per_s=10.0, requests=len(requests), lag_p99_s=0.002) for n in names
        ]
        run.update(scenarios=infos)
        run.finish()
    return run


def page_of(run: RunFolder) -> str:
    return render(content_of(run.path))


def text_of(page: str) -> str:
    return " ".join(" ".join(read(page).text).split())


def test_the_page_of_a_load_holds_everything(tmp_path: Path) -> None:
    requests = [request(i, **STREAM, cache="hit" if i % 3 == 0 else "miss") for i in range(400)]
    requests += [request(400 + i, status=503, error="status") for i in range(4)]
    requests += [request(410, status=200, error="check", failed_check='contains "ok"')]
    run = saved(tmp_path, requests, resources=True)
    objectives = [parse_objective(text) for text in ("p95_s<2", "should success_ratio>=99.9%", "p50_s<0.001")]
    run.update(objectives=objectives, goodput=["first_token_s<0.5"])
    page = page_of(run)
    text = text_of(page)
    titles = re.findall(r'<figure class="plot"[^>]*aria-label="([^"]*)"', page)
    assert titles == [
        "Latency",
        "Requests and errors a second",
        "Requests in flight",
        "Time to first token",
        "Tokens a second",
        "Sent late by",
        "Memory",
        "Threads and descriptors",
        "CPU, of a core",
        "Disk, a second",
        "Network, a second",
        "Requests by latency",
        "Latency by quantile",
    ]
    for said in (
        "load: 10 requests/s asked, constant, 405 requests",
        "status 503 POST /b 2 0.5 % 40.0 s",
        'check contains "ok"',
        f"trace {400:032x}",
        "p95_s < 2 must load 140 ms",
        "p50_s < 0.001 must load 90 ms 90 ms to 100 ms missed",
        "goodput 98.8 % of requests",
        "first_token_s <= 0.5",
        "answered from the cache 134",
        "not the bottleneck",
        "cached 134 30 ms 30 ms 30 ms",
        "Memory, ",
        "service was not recorded",
    ):
        assert said in text, (said, text)
    assert page.count('data-group="time"') == 11
    assert all(len(curve) > 10 for curve in re.findall(r'<path class="line [^"]*" d="([^"]*)"', page))


def test_only_our_script_can_run_and_nothing_is_fetched(tmp_path: Path) -> None:
    requests = [
        request(i, endpoint=f"GET /{HOSTILE}", scenario=HOSTILE, error="check", failed_check=HOSTILE, trace_id=HOSTILE)
        for i in range(30)
    ]
    run = saved(tmp_path, requests)
    run.update(name=HOSTILE, state="partial", reason=HOSTILE)
    page = page_of(run)
    tags = read(page)
    assert (tags.scripts, tags.loads) == (1, [])
    assert "&lt;script&gt;" in page
    script = page.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    assert "http" not in page.replace("http-equiv", "").partition("<body")[0]


def test_scenarios_are_marked_where_they_begin(tmp_path: Path) -> None:
    requests = [request(i, scenario="cold" if i < 50 else "warm") for i in range(100)]
    page = page_of(saved(tmp_path, requests))
    assert page.count('<div class="mark v" data-at="5"') == 2  # on latency and on rates
    assert "cold: 10 requests/s asked" in text_of(page)


def test_a_killed_run_has_its_page(tmp_path: Path) -> None:
    """No scenario in run.json, nothing sealed, no end."""
    text = text_of(page_of(saved(tmp_path, [request(i) for i in range(40)], finish=False)))
    assert "This run has no end: it was killed" in text
    assert "Latency" in text


@pytest.mark.parametrize("count", [1, 2])
def test_a_request_or_two_have_their_page(tmp_path: Path, count: int) -> None:
    page = page_of(saved(tmp_path, [request(i) for i in range(count)]))
    assert '<figure class="plot"' in page
    assert "nan" not in page.partition("<script>")[0].lower().replace("naming", "")


def test_a_run_in_which_everything_failed_has_its_page(tmp_path: Path) -> None:
    text = text_of(page_of(saved(tmp_path, [request(i, status=None, error="connection") for i in range(30)])))
    assert "connection GET /a 15 50 %" in text
    assert "answered 0 %" in text


def test_markdown_and_json_tell_of_errors_and_objectives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = saved(tmp_path, [request(i, **({"error": "timeout"} if i == 7 else {})) for i in range(40)])
    run.update(objectives=[parse_objective("success_ratio>=99%")])
    assert main(["report", str(run.path), "--markdown"]) == 0
    said = capsys.readouterr().out
    assert "| success_ratio >= 99% | must | load | 97.5 % | missed |" in said
    assert f"| timeout | GET /a | 1 | 0.8 s | 0.8 s | {7:032x} |" in said
    assert main(["report", str(run.path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [e["kind"] for e in record["errors"]] == ["timeout"]
    assert [g["outcome"] for g in record["objectives"]] == ["missed"]


def test_a_large_run_has_a_small_page(tmp_path: Path) -> None:
    """110,000 requests are summed up as columns, and the page does not grow with them."""
    count = 110_000
    rows = np.zeros(count, dtype=np.dtype(_FIELDS))
    rng = np.random.default_rng(1)
    rows["intended_s"] = rows["started_s"] = np.sort(rng.uniform(0, 600, count))
    rows["ended_s"] = rows["first_byte_s"] = rows["intended_s"] + rng.lognormal(-3, 0.5, count)
    rows["index"], rows["user"], rows["status"] = np.arange(count), -1, 200
    rows["error"][:90] = 3
    rows["status"][:90] = 503
    run = create_run(tmp_path, "large", folder="run")
    spool = run.row_spool("test", RowsHeader(scenario="load", zero_s=0.0, trace_high="ab" * 8, trace_base="1" * 16))
    spool.name(Naming(endpoint="GET /"))
    spool.append(rows.tobytes())
    spool.close()
    run.update(scenarios=[ScenarioInfo(name="load", model="open", rate_per_s=500.0, requests=count)])
    run.finish()
    measured = measure_run(run)
    assert not measured.data.requests  # no records
    assert measured.scenarios["load"].errors == {"status 503": 90}
    assert parts_of(measured, "load") == {}
    page = page_of(run)
    assert len(page) < 200_000
    assert "status 503 GET / 90" in text_of(page)


def test_columns_come_to_the_same_figures_as_records(tmp_path: Path) -> None:
    rng = random.Random(5)
    requests = [
        request(
            index,
            error=rng.choice([None, None, "timeout", "status", "connection"]),
            status=rng.choice([200, 503]),
            cache=rng.choice([None, "hit", "join", "miss"]),
            first_byte_s=rng.choice([None, 60.0]),
            cost_usd=0.001 * index,
        )
        for index in range(200)
    ]
    run = saved(tmp_path, requests)
    table = Table.of(run)
    for name in ("GET /a", "POST /b"):
        bounds = [parse_bound("latency_s<0.1"), parse_bound("max_gap_s<1")]
        expected = figures_of([r for r in requests if r.endpoint == name], [], [], bounds=bounds)
        found = table.endpoint(name).figures((), expected.errors, bounds)
        assert found.mean_s == pytest.approx(expected.mean_s)
        assert msgspec.structs.replace(found, mean_s=None) == msgspec.structs.replace(expected, mean_s=None)


# --- in a browser ----------------------------------------------------------------------------------------------------


def dom(folder: Path, page: Path, fragment: str = "") -> str:
    """The document as headless Chromium has it in the end."""
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}"]
    flags += ["--virtual-time-budget=2000", "--dump-dom"]
    seen = subprocess.run(
        [CHROMIUM, *flags, page.as_uri() + fragment], capture_output=True, text=True, timeout=60, check=True
    )
    return seen.stdout


def figures(document: str) -> dict[str, str]:
    """Every plot's markup by its title."""
    parts = re.findall(r'<figure class="plot.*?</figure>', document, re.DOTALL)
    return {html.unescape(re.findall(r'aria-label="([^"]*)"', part)[0]): part for part in parts}


@pytest.mark.system
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_zooms_all_plots_over_time_together(tmp_path: Path) -> None:
    """A shared address opens zoomed under the page's own policy; then drag, read by key, double-click."""
    page = tmp_path / "report.html"
    page.write_text(page_of(saved(tmp_path, [request(i, **STREAM) for i in range(400)], resources=True)))
    opened = figures(dom(tmp_path, page, "#time=10,20"))
    assert all('class="plot zoomed"' in opened[name] for name in ("Latency", "Memory", "Tokens a second"))
    assert 'class="plot zoomed"' not in opened["Requests by latency"]
    assert "12 s" in opened["Latency"]
    assert "35 s" not in re.sub(r'data-\w+="[^"]*"', "", opened["Latency"])

    acted = tmp_path / "acted.html"
    acts = """
    const plot = document.querySelector("figure.plot"), area = plot.querySelector(".area");
    const box = area.getBoundingClientRect();
    const at = (share) => ({clientX: box.left + share * box.width, clientY: box.top + 5, button: 0, bubbles: true});
    const send = (kind, share) => area.dispatchEvent(new PointerEvent(kind, at(share)));
    area.setPointerCapture = () => {};
    send("pointerdown", 0.25); send("pointermove", 0.4); send("pointerup", 0.5);
    document.body.dataset.dragged = document.querySelectorAll(".zoomed").length;
    plot.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
    document.body.dataset.tip = plot.querySelector(".tip").textContent;
    document.body.dataset.others = document.querySelectorAll('[data-group="time"] .tip:not([hidden])').length;
    plot.dispatchEvent(new KeyboardEvent("keydown", {key: "+", bubbles: true}));
    document.body.dataset.closer = plot.querySelector("svg").getAttribute("viewBox");
    area.dispatchEvent(new MouseEvent("dblclick", {bubbles: true}));
    document.body.dataset.reset = document.querySelectorAll(".zoomed").length;
    """
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    acted.write_text(policy.sub("", page.read_text()).replace("</body>", f"<script>{acts}</script></body>"))
    document = dom(tmp_path, acted)
    said = dict(re.findall(r'data-(dragged|tip|others|closer|reset)="([^"]*)"', document.partition("<main")[0]))
    over_time = page.read_text().count('data-group="time"')
    assert (int(said["dragged"]), int(said["others"]), int(said["reset"])) == (over_time, over_time, 0)
    assert re.search(r"P50 \d+", said["tip"])
    left, _, width, _ = map(float, said["closer"].split())
    assert left > 250
    assert width == pytest.approx(125, abs=2)
