"""Make a report from a run or a tuning: one HTML file that opens offline, or Markdown, or JSON.

example: paceline report .paceline/tunes/support-20261121T101500
"""

import argparse
import sys
from pathlib import Path

import msgspec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("run", type=Path, help="a run folder or a tune folder")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where to write (default: report.html inside the folder)"
    )
    parser.add_argument("--salvage", action="store_true", help="leave damaged parts of a run out instead of refusing")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print Markdown instead of writing HTML")
    form.add_argument("--json", action="store_true", help="print figures and findings as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Write or print the report."""
    from paceline.report.content import content_of
    from paceline.store.folder import disk_errors

    content = content_of(args.run, salvage=args.salvage)
    if args.json:
        findings = [shown.finding for shown in content.findings]
        record = {
            "title": content.title,
            "figures": dict(content.figures),
            "findings": findings,
            "tuning": content.tuning,
            "objectives": content.load.gates if content.load else [],
            "errors": content.load.errors if content.load else [],
        }
        print(msgspec.json.encode(record).decode())
        return 0
    if args.markdown:
        from paceline.report.markdown import render as render_markdown

        text = render_markdown(content)
        if args.out is None:
            print(text, end="")
            return 0
    else:
        from paceline.report.html import render

        text = render(content)
    out = args.out or (args.run if args.run.is_dir() else args.run.parent) / "report.html"
    with disk_errors(out):
        out.write_text(text, encoding="utf-8")
    print(out)
    print(f"written; open it in a browser: {out.resolve().as_uri()}", file=sys.stderr)
    return 0
