"""The command line: one module a verb. A verb is imported only when it is used, so `--help` stays quick."""

import argparse
import importlib
import os
import signal
import sys

from paceline import __version__
from paceline.errors import PacelineError

VERBS = {
    "tune": "the whole loop on an application described by paceline.toml",
    "record": "run a Python service recorded, without touching its code",
    "load": "drive load at a URL or a paceline.toml and print the figures",
    "diagnose": "explain where a run lost its time and money",
    "project": "say what a change would do, before making it",
    "report": "one self-contained HTML file (or Markdown, JSON) from a run",
    "serve": "the gateway: cache, de-duplication, limits, cost",
    "keys": "keys of the gateway: who may call, and how much",
    "cache": "look at kept answers, fill the cache, take answers out of it",
    "sim": "a simulated provider: OpenAI, Anthropic, Gemini",
}
INTERRUPTED = 130


def _parser(verb: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="paceline",
        description="Makes LLM applications fast and cheap, with proof.",
        epilog="example: paceline tune workloads/support --speed 3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"paceline {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, help_text in VERBS.items():
        sub = verbs.add_parser(name, help=help_text, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == verb:
            module = importlib.import_module(f"paceline.cli.{name}")
            sub.description = module.__doc__
            module.add_arguments(sub)
            sub.set_defaults(execute=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return its exit code (see docs/reference.md)."""
    arguments = sys.argv[1:] if argv is None else argv
    verb = next((a for a in arguments if a in VERBS), None)
    args = _parser(verb).parse_args(arguments)
    try:
        code: int = args.execute(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("paceline: interrupted; what was recorded is kept", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left (`paceline ... | head`): not our failure, and nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except PacelineError as error:
        print(f"paceline {args.verb}: {error}", file=sys.stderr)
        return error.exit_code
    return code
