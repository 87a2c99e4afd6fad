"""Look after the cache that services on this machine and others share: sizes, invalidation, warming.

example: paceline cache invalidate --host .paceline/cache --redis redis://127.0.0.1:6379/0 --tag contract-4711
         paceline cache invalidate --gateway http://127.0.0.1:8787 --tag contract-4711
"""

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from paceline.errors import ConfigError

if TYPE_CHECKING:
    from paceline.accelerate.cache import Cache, CachePolicy
    from paceline.accelerate.policy import Policy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, help_text in {
        "stats": "entries and bytes of each shared level, and whether it answers",
        "invalidate": "drop answers by tag, key or tenant; every process hears of it",
        "clear": "drop all answers; every process hears of it",
        "warm": "put recorded answers into the shared levels",
        "export": "write the answers of the host level to a file that warm reads",
    }.items():
        action = actions.add_parser(name, help=help_text)
        where = action.add_argument_group("which cache")
        where.add_argument("--policy", type=Path, metavar="FILE", help="policy of the services (TOML or JSON)")
        where.add_argument("--host", type=Path, metavar="DIR", help="folder of the host level")
        where.add_argument("--redis", metavar="URL", help="the fleet level")
        where.add_argument("--namespace", help="of the fleet level (default: paceline)")
        action.add_argument("--json", action="store_true", help="print one JSON object")
        if name in ("invalidate", "clear"):
            where.add_argument("--gateway", metavar="URL", help="a running gateway: all its processes and levels")
            where.add_argument("--key-env", metavar="NAME", help="variable with a gateway key of the role operator")
        if name == "invalidate":
            action.add_argument("--tag", action="append", default=[], help="answers with this tag; may be repeated")
            action.add_argument("--key", action="append", default=[], help="the answer of this key; may be repeated")
            action.add_argument("--tenant", help="only of this tenant; alone: all of it")
        elif name == "warm":
            action.add_argument("source", type=Path, help="a JSON-lines file, or a run recorded with --record-answers")
            action.add_argument("--as-new", action="store_true", help="a run's answers count as made now")
        elif name == "export":
            action.add_argument("out", type=Path, help="the file to write; it holds the answers in clear")


def run(args: argparse.Namespace) -> int:
    """Do it and say what was done."""
    if args.action == "invalidate" and not (args.tag or args.key or args.tenant):
        msg = "invalidate what? Name at least one --tag, --key or --tenant; `paceline cache clear` drops everything"
        raise ConfigError(msg)
    if args.action in ("invalidate", "clear") and args.gateway is not None:
        return _ask_gateway(args)
    done = asyncio.run(_act(args, _policy(args)))
    if args.json:
        print(msgspec.json.encode(done).decode())
    else:
        _print(args.action, done)
    down = [row["name"] for row in done["levels"] if row["state"] != "up"]
    if down:
        print(f"paceline cache: not reached: {', '.join(down)}", file=sys.stderr)
    return 1 if down else 0


def _ask_gateway(args: argparse.Namespace) -> int:
    from paceline.cli._gateway_cache import invalidate

    everything = args.action == "clear"
    if args.host is not None or args.redis is not None or args.policy is not None:
        msg = "--gateway reaches all levels of that gateway's cache: leave --host, --redis and --policy out"
        raise ConfigError(msg)
    if not everything and args.key:
        msg = "--key is for keys of get_or_compute; a gateway's answers are dropped by --tag or --tenant"
        raise ConfigError(msg)
    tags, tenant = ([], None) if everything else (args.tag, args.tenant)
    answer = invalidate(args.gateway, args.key_env, tags=tags, tenant=tenant, everything=everything)
    done = msgspec.json.decode(answer)
    if args.json:
        print(answer.decode())
    else:
        many = done["processes"] != 1
        print(f"{done['dropped']} answers dropped in {done['processes']} process{'es' if many else ''} of the gateway")
    return 0


async def _act(args: argparse.Namespace, policy: "CachePolicy") -> dict[str, Any]:
    from paceline.accelerate.cache import Cache, export

    done: dict[str, Any] = {}
    async with Cache(policy) as cache:
        if args.action == "invalidate":
            done["dropped"] = await cache.invalidate(tags=args.tag, keys=args.key, tenant=args.tenant)
        elif args.action == "clear":
            done["dropped"] = await cache.invalidate(everything=True)
        elif args.action == "warm":
            from paceline.accelerate.warming import warm_from

            warmed = await warm_from(cache, args.source, _whole_policy(args.policy, policy), as_new=args.as_new)
            done["stored"], done["too_old"], done["unkeyed"] = warmed.stored, warmed.too_old, warmed.unkeyed
        elif args.action == "export":
            done["written"] = export(cache, args.out)
        done["levels"] = await _levels(cache)
    return done


async def _levels(cache: "Cache") -> list[dict[str, Any]]:
    await cache.measure()
    return [
        {"name": row.name, "state": row.state, "entries": row.entries, "bytes": row.bytes}
        for row in cache.statistics().levels
    ]


def _print(action: str, done: dict[str, Any]) -> None:
    for name, what in {
        "dropped": "answers dropped",
        "stored": "answers stored",
        "too_old": "answers left out because they have become too old",
        "unkeyed": "answers left out because the policy does not keep such calls",
        "written": "answers written",
    }.items():
        if name in done and (done[name] or name not in ("unkeyed", "too_old")):
            print(f"{done[name]} {what}")
    if action == "stats":
        for row in done["levels"]:
            entries = "?" if row["entries"] is None else f"{row['entries']:,}"
            size = "?" if row["bytes"] is None else f"{row['bytes'] / 1e6:,.1f}"
            print(f"{row['name']:<7} {entries:>12} entries {size:>12} MB  {row['state']}")
        print("hit rates are each service's own: Cache.statistics(), or /metrics of the gateway", file=sys.stderr)


def _policy(args: argparse.Namespace) -> "CachePolicy":
    """The shared levels the arguments name: a process of its own has no memory level worth asking."""
    from paceline.accelerate.cache import CachePolicy, FleetPolicy, HostPolicy, MemoryPolicy

    policy = CachePolicy()
    if args.policy is not None:
        policy = _section(args.policy)
    replace = msgspec.structs.replace
    try:
        if args.host is not None:
            policy = replace(policy, host=replace(policy.host, enabled=True, path=str(args.host)))
        if args.redis is not None:
            policy = replace(policy, fleet=replace(policy.fleet, enabled=True, url=args.redis))
        if args.namespace is not None:
            policy = replace(policy, fleet=replace(policy.fleet, namespace=args.namespace))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not (policy.host.enabled or policy.fleet.enabled):
        msg = "which cache? Name --host DIR, --redis URL, or a --policy FILE whose [cache] has host or fleet enabled"
        raise ConfigError(msg)
    if policy.host.enabled and args.action != "warm" and not Path(policy.host.path).expanduser().is_dir():
        msg = f"there is no cache in {policy.host.path}"
        raise ConfigError(msg)
    unhurried: FleetPolicy = replace(policy.fleet, timeout_s=max(policy.fleet.timeout_s, 2.0))
    host: HostPolicy = policy.host
    return CachePolicy(
        order=policy.order,
        memory=MemoryPolicy(enabled=False),
        host=host,
        fleet=unhurried,
        compress_min_bytes=policy.compress_min_bytes,
        encrypt_key_env=policy.encrypt_key_env
        if policy.encrypt_key_env is None or policy.encrypt_key_env in os.environ or args.action in ("warm", "export")
        else None,  # counting and dropping needs no secret
    )


def _whole_policy(path: Path | None, cache: "CachePolicy") -> "Policy":
    """The policy that keys are made by, over the levels that are filled."""
    from paceline.accelerate.policy import Policy, load_policy

    policy = load_policy(path) if path is not None else Policy()
    keyed = msgspec.structs.replace(cache, enabled=True, key=policy.cache.key)
    return msgspec.structs.replace(policy, cache=keyed)


def _section(path: Path) -> "CachePolicy":
    """The [cache] of a policy file, whatever else the file configures."""
    from paceline.accelerate.cache import CachePolicy

    try:
        data = path.read_bytes()
        decode: Any = msgspec.json.decode if path.suffix == ".json" else msgspec.toml.decode
        return msgspec.convert(decode(data).get("cache", {}), CachePolicy)
    except OSError as error:
        msg = f"cannot read the policy {path}: {error.strerror}"
        raise ConfigError(msg) from error
    except (ValueError, AttributeError) as error:
        msg = f"the policy {path} is wrong: {error}"
        raise ConfigError(msg) from error
