"""Keys of the gateway: who may call, and how much.

example: paceline keys add alice --budget-usd-per-day 5 --models 'gpt-4o*,claude-*' --file keys.toml
         paceline serve --host 0.0.0.0 --keys keys.toml
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paceline.gateway.keys.file import Key

_LIMITS = ("requests_per_min", "tokens_per_min", "budget_usd_per_day", "budget_usd_per_month")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions and their options."""
    parser.add_argument("action", choices=("add", "list", "revoke"), help="make a key, show what there is, end one")
    parser.add_argument("name", nargs="?", help="of the key; for metrics, logs and costs")
    parser.add_argument(
        "--file", type=Path, default=Path("keys.toml"), help="where keys are kept (default %(default)s)"
    )
    parser.add_argument("--tenant", metavar="T", help="whose cache and costs it shares (its own)")
    parser.add_argument("--requests-per-min", type=float, metavar="N", help="at most (no bound)")
    parser.add_argument("--tokens-per-min", type=float, metavar="N", help="in and out together, at most (no bound)")
    parser.add_argument("--budget-usd-per-day", type=float, metavar="USD", help="of UTC (no bound)")
    parser.add_argument("--budget-usd-per-month", type=float, metavar="USD", help="of UTC (no bound)")
    parser.add_argument("--models", metavar="A,B", help="the only ones it may call, like 'gpt-4o,claude-*' (all)")
    parser.add_argument("--priority", type=int, metavar="N", help="in queues, higher first (0)")
    parser.add_argument("--other-paths", action="store_true", help="also what is no model call: files, batches, ...")
    parser.add_argument("--monitor", action="store_true", help="reads /metrics and /-/costs, makes no calls")
    parser.add_argument("--operator", action="store_true", help="that too, and drops kept answers of all tenants")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Do it; the key itself is printed once, on standard output."""
    from paceline.errors import ConfigError

    if args.action == "list":
        return _list(args)
    if args.name is None:
        msg = f"say which key: paceline keys {args.action} NAME"
        raise ConfigError(msg)
    return _add(args) if args.action == "add" else _revoke(args)


def _add(args: argparse.Namespace) -> int:
    import msgspec

    from paceline.errors import ConfigError
    from paceline.gateway.keys.file import MONITOR, OPERATOR, add_key, new_key

    may: dict[str, Any] = {name: getattr(args, name) for name in (*_LIMITS, "tenant", "priority")}
    may = {name: value for name, value in may.items() if value is not None}
    if args.models:
        may["models"] = [model.strip() for model in args.models.split(",") if model.strip()]
    if args.monitor and args.operator:
        msg = "--monitor and --operator are two roles: an operator reads the pages as well, leave --monitor out"
        raise ConfigError(msg)
    if args.monitor or args.operator:
        may["role"] = MONITOR if args.monitor else OPERATOR
    try:
        presented, key = new_key(
            args.name, **may, other_paths=args.other_paths, created=time.strftime("%Y-%m-%d", time.gmtime())
        )
    except msgspec.ValidationError as error:
        msg = f"no such key can be made: {error}"
        raise ConfigError(msg) from error
    add_key(args.file, key)
    if args.json:
        print(json.dumps({"key": presented, "name": key.name, "id": key.id, "file": str(args.file)}))
    else:
        print(presented)
        print(
            f"paceline: key {key.name!r} is in {args.file}, which keeps only its hash: note the key now, it is not "
            "shown again. A running gateway takes it up on SIGHUP",
            file=sys.stderr,
        )
    return 0


def _revoke(args: argparse.Namespace) -> int:
    from paceline.gateway.keys.file import revoke_key

    revoke_key(args.file, args.name)
    if args.json:
        print(json.dumps({"revoked": args.name, "file": str(args.file)}))
    else:
        print(f"key {args.name!r} is out of {args.file}; a running gateway refuses it after SIGHUP")
    return 0


def _list(args: argparse.Namespace) -> int:
    from paceline.gateway.keys.file import read_keys

    keys = read_keys(args.file)
    if args.json:
        print(json.dumps({"keys": [_shown(key) for key in keys]}))
        return 0
    for key in keys:
        may = ", ".join(f"{name} {_text(value)}" for name, value in _shown(key).items() if name not in ("name", "id"))
        print(f"{key.name:<24} {key.id}  {may}")
    if not keys:
        print(f"{args.file} has no keys")
    return 0


def _shown(key: "Key") -> dict[str, Any]:
    """What may be told of a key: what is set, without its hash."""
    import msgspec

    standard = {field.name: field.default for field in msgspec.structs.fields(key)}
    values = msgspec.to_builtins(key)
    return {n: v for n, v in values.items() if n not in ("salt", "hash") and v not in ([], standard[n])}


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else f"{value}"
