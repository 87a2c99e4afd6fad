"""The page: one HTML file that opens offline; nothing is fetched, and no script runs but the one that zooms plots."""

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from paceline.model.change import describe
from paceline.report import units
from paceline.report.content import Content, content_of


def write_report(folder: Path, *, out: Path | None = None, salvage: bool = False) -> Path:
    """Write the report of a tune folder or a run folder and return its path (default: report.html inside it).

    Raises:
        InputError: neither a tuning nor a run, or nothing was measured.
    """
    page = render(content_of(folder, salvage=salvage))
    path = out or (folder if folder.is_dir() else folder.parent) / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def render(content: Content) -> str:
    """The page as text. Everything from a run is escaped: prompts and names are not to be trusted."""
    environment = Environment(
        loader=PackageLoader("paceline.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        seconds=units.seconds, percent=units.percent, dollars=units.dollars, mb=units.megabytes, rate=units.rate,
        error=units.ratio_error, fact=units.fact, clock=units.clock,
    )  # fmt: skip
    environment.globals.update(figure=units.figure, describe=describe)
    folder = Path(__file__).parent
    css, script = (folder / "page.css").read_text(encoding="utf-8"), (folder / "plot.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    errors = {e.name: e for e in content.tuning.projection_error.phases} if content.tuning else {}
    return environment.get_template("page.html.j2").render(
        c=content, css=css, errors=errors, script=script, digest=digest
    )
