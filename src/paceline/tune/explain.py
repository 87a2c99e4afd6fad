"""Decoding errors of a target file, said in words that name the field and a valid value."""

import difflib
import re
from typing import Any, get_args

import msgspec

from paceline.model.change import Change

# Kinds of change by the `kind` that stands in the file.
CHANGES: dict[str, type[msgspec.Struct]] = {str(kind.__struct_config__.tag): kind for kind in get_args(Change)}

# A valid value for the fields people get wrong, by path without indices.
_EXAMPLES = {
    "name": 'name = "support"',
    "service": '[service] command = ["{python}", "-m", "uvicorn", "app:app", "--port", "{port}"]',
    "service.command": 'command = ["{python}", "-m", "uvicorn", "app:app", "--port", "{port}"]',
    "service.prepare": 'prepare = [["{python}", "-m", "support.ingest"]]',
    "service.env": 'KEY = "value" (numbers too are written in quotes)',
    "service.ready_url": 'ready_url = "/ready"',
    "service.ready_timeout_s": "ready_timeout_s = 60",
    "provider": '[provider] simulate = "provider.toml", or base_url = "https://api.openai.com"',
    "scenarios": (
        '[[scenarios]] name = "concurrent", model = "closed", users = 20, requests = 200, '
        'path = "/chat", bodies = "requests.jsonl"'
    ),
    "objectives": '[[objectives]] name = "P95", metric = "p95_s", op = "<", target = 8.0, level = "must"',
    "quality": '[quality] golden = "golden.jsonl"',
    "phases": '[[phases]] name = "retrieval"',
    "phases.env": 'KEY = "value" (numbers too are written in quotes)',
    "phases.changes": 'kind = "parallelise", steps = ["retrieve", "guidelines"]',
    "phases.fixes": 'fixes = ["sequential_calls"]',
}


def example(field: str) -> str:
    """`for example ...` for a field or the nearest table around it, or nothing."""
    name = re.sub(r"\[(\d+|\.\.\.)\]", "", field)
    while name and name not in _EXAMPLES:
        name = name.rpartition(".")[0]
    return f"for example {_EXAMPLES[name]}" if name else ""


def explain(message: str, raw: object, root: type, prefix: str = "") -> str:
    """A decoding error as `field: what is wrong; what would be right`."""
    problem, _, where = message.partition(" - at `$")
    field = ".".join(filter(None, (prefix, where.rstrip("`").lstrip("."))))
    if unknown := re.search(r"unknown field `(\w+)`", problem):
        struct = _struct_at(where, raw, root)
        names = sorted(struct.__struct_encode_fields__) if struct else []
        near = difflib.get_close_matches(unknown[1], names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(names)}"
        return f"{field or 'top level'}: unknown field {unknown[1]!r}; {hint}"
    if missing := re.search(r"missing required field `(\w+)`", problem):
        field = ".".join(filter(None, (field, missing[1])))
        problem = "is missing"
    elif "Invalid value" in problem and field.endswith("kind"):
        problem += f"; one of {', '.join(sorted(map(str, CHANGES)))}"
    problem = problem[:1].lower() + problem[1:].replace("`", "'")
    return ": ".join(filter(None, (field, "; ".join(filter(None, (problem, example(field)))))))


def _struct_at(where: str, raw: object, root: type) -> Any:
    """The struct a decoding error's path leads to: walks the types beside the raw value."""
    kind: Any = root
    value: Any = raw
    for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", where.rstrip("`")):
        if name:
            fields = {f.encode_name: f.type for f in msgspec.structs.fields(kind)} if _is_struct(kind) else {}
            kind, value = fields.get(name), value.get(name) if isinstance(value, dict) else None
        else:
            value = value[int(index)] if isinstance(value, list) and int(index) < len(value) else None
            kind = next(iter(getattr(kind, "__args__", ())), None)
        options = [k for k in getattr(kind, "__args__", ()) if _is_struct(k)]
        if options and not hasattr(kind, "__origin__"):  # a union: of changes, or with None
            tag = value.get("kind") if isinstance(value, dict) else None
            kind = next((k for k in options if k.__struct_config__.tag == tag), options[0])
    return kind if _is_struct(kind) else None


def _is_struct(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
