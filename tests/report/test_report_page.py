"""Reports: everything that was found is on the page, nothing from a run can run, and it opens offline."""

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import msgspec
import pytest
from tests.diagnose.builders import RULES, desk_run
from tests.patience import PATIENCE_S

from paceline.cli import main
from paceline.diagnose import diagnose
from paceline.model.change import Defer
from paceline.model.estimate import Estimate
from paceline.model.figures import Objective, ProjectedFigures
from paceline.model.projection import Projection
from paceline.model.tuning import ObjectiveResult, PhaseError, PhaseResult, ProjectionError, TuneResult
from paceline.report.content import content_of
from paceline.report.html import render
from paceline.store.folder import RunFolder, create_run
from paceline.store.tuning import save_result
from paceline.trace.data import RunData
from paceline.trace.figures import figures_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<script>alert(1)</script>"


def saved(root: Path, data: RunData, folder: str = "run") -> RunFolder:
    """The data as a run folder on disk."""
    run = create_run(root, "desk", folder=folder)
    run.update(start_ns=data.info.start_ns, scenarios=data.info.scenarios)
    for table, records in (("requests", data.requests), ("spans", data.spans), ("resources", data.resources)):
        spool = run.spool(table, "test")
        for record in records:
            spool.append(record)
        spool.close()
    run.finish()
    return run


def around(value: float) -> Estimate:
    return Estimate(value=value, low=value * 0.9, high=value * 1.1)


def tuning(root: Path, *, name: str = "desk") -> Path:
    """A tune folder of a baseline with all eight causes and one healthy phase."""
    before, after = desk_run(*RULES), desk_run()
    saved(root, before, "baseline")
    saved(root, after, "phase-1-all")
    figures = ProjectedFigures(
        p50_s=around(4), p95_s=around(5), mean_s=around(4), requests_per_s=around(9), success_ratio=around(1)
    )
    phases = [
        PhaseResult(
            name="before",
            run="baseline",
            figures={"concurrent": figures_of(before.requests, before.spans, before.resources)},
            scenarios=before.info.scenarios,
        ),
        PhaseResult(
            name="all",
            run="phase-1-all",
            changes=[Defer(step="validate")],
            projection=Projection(changes=[Defer(step="validate")], figures=figures, assumptions=["assumed: nothing"]),
            figures={"concurrent": figures_of(after.requests, after.spans, after.resources)},
            scenarios=after.info.scenarios,
        ),
        PhaseResult(
            name="never", projection=Projection(changes=[], refusal="the step never_was is not in the baseline")
        ),
    ]
    objective = Objective(name="P95 under 8 s", metric="p95_s", op="<", target=8.0)
    result = TuneResult(
        name=name,
        target="desk/paceline.toml",
        paceline="0",
        started_at="2026-01-01T00:00:00+00:00",
        projected_at="2026-01-01T00:01:00+00:00",
        state="complete",
        speed=5.0,
        scenario="concurrent",
        phases=phases,
        findings=diagnose(before),
        objectives=[
            ObjectiveResult(
                objective=objective, scenario="concurrent", before=9.0, after=5.1, met_before=False, met=True
            )
        ],
        projection_error=ProjectionError(
            p50=0.02, p95=0.04, requests_per_s=0.01, phases=[PhaseError(name="all", p95=0.04, held={"p95": True})]
        ),
    )
    save_result(result, root)
    return root


class Tags(html.parser.HTMLParser):
    """Collects what the page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts = 0
        self.loads: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.loads += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "onload", "onclick")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags


def test_a_tuning_report_holds_everything_and_loads_nothing(tmp_path: Path) -> None:
    """Eight findings with their waterfalls, the projected interval beside the measured figure, the refusal."""
    page = render(content_of(tuning(tmp_path)))
    tags = read(page)
    text = " ".join(" ".join(tags.text).split())
    assert (tags.scripts, tags.loads) == (1, [])
    assert page.count('<article class="finding">') >= len(RULES)
    assert all(rule in text for rule in RULES)
    assert "5.00 s" in text
    assert "4.50 s to 5.50 s" in text
    assert "+4 %" in text
    assert "the step never_was is not in the baseline" in text
    assert "gone in the last phase" in text
    assert "5 times faster than real" in text
    assert page.count('aria-label="one request over time"') >= len(RULES) - 1


def test_text_from_a_run_is_never_markup(tmp_path: Path) -> None:
    """Names of steps, models and errors come from the application and its users."""
    data = desk_run(*RULES)
    spans = [
        msgspec.structs.replace(
            s, code=f"app.py:1 {HOSTILE}", model=HOSTILE if s.model else None, error=s.error and HOSTILE
        )
        for s in data.spans
    ]
    run = saved(tmp_path, RunData(data.info, data.requests, spans, data.resources))
    page = render(content_of(run.path))
    assert read(page).scripts == 1
    assert "&lt;script&gt;" in page


def test_a_single_run_has_its_figures_and_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = saved(tmp_path, desk_run(*RULES))
    assert main(["report", str(run.path)]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(run.path / "report.html")
    assert "open it in a browser" in said.err
    assert main(["report", str(run.path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert {f["rule"] for f in record["findings"]} == set(RULES)
    assert record["figures"]["concurrent"]["requests"] == 60


def test_markdown_tells_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tuning(tmp_path)), "--markdown"]) == 0
    text = capsys.readouterr().out
    assert "| P95 under 8 s | must | < 8.00 s | 9.00 s | 5.10 s | met |" in text
    assert text.count("\n1. **") == 1
    assert "5.00 s (4.50 s to 5.50 s)" in text


def test_an_empty_run_is_exit_3_and_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = create_run(tmp_path, "empty")
    run.finish()
    assert main(["report", str(run.path)]) == 3
    assert re.fullmatch(
        r"paceline report: .* is empty: no request and no span was recorded\. .*\n", capsys.readouterr().err
    )


def test_a_run_cut_short_says_so(tmp_path: Path) -> None:
    run = saved(tmp_path, desk_run())
    run.update(state="partial", reason="interrupted by Ctrl-C")
    assert "partial: interrupted by Ctrl-C" in unquote(render(content_of(run.path)))


@pytest.mark.system
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_draws_the_page(tmp_path: Path) -> None:
    """Headless Chromium opens the file with no network and finds the chart's curves in the document."""
    assert CHROMIUM is not None
    assert main(["report", str(tuning(tmp_path))]) == 0
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    page = (tmp_path / "report.html").as_uri()
    seen = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", page], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert seen.stdout.count('<figure class="plot"') >= 2
