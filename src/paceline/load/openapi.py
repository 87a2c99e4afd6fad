"""A first scenario from an OpenAPI 3 document: its operations as a mix, with bodies from examples and schemas."""

import json
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import msgspec

from paceline.errors import ConfigError, InputError
from paceline.load.checks import at_pointer
from paceline.load.templates import as_text

_METHODS = ("get", "post", "put", "patch")
_LEFT_OUT = ("delete", "options", "head", "trace")
_DEEPEST = 6  # of a body made from a schema; recursive ones end there
_JSON = re.compile(r"application/(?:[\w.-]+\+)?json(?:;.*)?", re.IGNORECASE)
_FORMATS = {
    "date": "2026-01-15",
    "date-time": "2026-01-15T12:00:00Z",
    "time": "12:00:00Z",
    "uuid": "00000000-0000-4000-8000-000000000001",
    "email": "user@example.com",
    "uri": "https://example.com/",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "byte": "cGFjZWxpbmU=",
    "password": "password",
}


class Draft(NamedTuple):
    """A first scenario: the scenario file's content, body files by name, and what a person should look at."""

    scenario: dict[str, Any]
    bodies: dict[str, bytes]
    notes: list[str]


def write_draft(document: Path, out: Path) -> tuple[Path, list[str]]:
    """Write scenario.json and its body files into a folder; returns the file and the notes.

    Raises:
        ConfigError: the document is missing, YAML without PyYAML, or the folder already holds a scenario.
        InputError: it is no OpenAPI 3 document, or has no operation to call.
    """
    draft = draft_of(read_document(document), document)
    path = out / "scenario.json"
    if path.exists():
        msg = f"{path} exists; give another folder, or remove it"
        raise ConfigError(msg)
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in draft.bodies.items():
        (out / name).write_bytes(lines)
    path.write_text(json.dumps({"scenarios": [draft.scenario]}, indent=2, ensure_ascii=False) + "\n")
    return path, draft.notes


def read_document(path: Path) -> dict[str, Any]:
    """The document decoded; errors as in `write_draft`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        msg = f"cannot read the OpenAPI document {path}: {error.strerror}"
        raise ConfigError(msg) from error
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if path.suffix.lower() not in (".yaml", ".yml"):
            msg = f"{path} is not JSON: {error}"
            raise InputError(msg, path=path) from error
        document = _read_yaml(path, data)
    version = document.get("openapi") if isinstance(document, dict) else None
    if not str(version).startswith("3."):
        msg = f"{path} is no OpenAPI 3 document: its openapi field is {version!r}"
        raise InputError(msg, path=path)
    return dict(document)


def _read_yaml(path: Path, data: bytes) -> Any:
    try:
        yaml = import_module("yaml")
    except ImportError as error:
        msg = f"{path} is YAML, which needs PyYAML: `pip install pyyaml`, or give the document as JSON"
        raise ConfigError(msg) from error
    try:
        # JSON has no dates, so neither have we.
        return json.loads(json.dumps(yaml.safe_load(data), default=str))
    except (yaml.YAMLError, ValueError) as error:
        msg = f"{path} is not YAML: {error}".replace("\n", " ")
        raise InputError(msg, path=path) from error


def draft_of(document: Mapping[str, Any], source: Path) -> Draft:
    """The draft of a document; the same document gives the same one. InputError: nothing in it can be called."""
    made = _Drafting(document)
    mix = list(made.endpoints())
    if not mix:
        msg = f"{source}: no operation that could be called: {'; '.join(made.notes) or 'it has no paths'}"
        raise InputError(msg, path=source)
    scenario = {"name": "api", "model": "closed", "users": 5, "duration_s": 60.0, "mix": mix}
    return Draft(scenario, made.bodies, made.notes)


class _Drafting:
    """Walks through one document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self.bodies: dict[str, bytes] = {}
        self.notes: list[str] = []
        servers = document.get("servers") or [{}]
        self._prefix = urlsplit(str(servers[0].get("url", ""))).path.rstrip("/")

    def endpoints(self) -> Iterator[dict[str, Any]]:
        """The operations as endpoints of a mix."""
        if self.document.get("security") or at_pointer(self.document, "/components/securitySchemes"):
            self.notes.append("the API asks for credentials: add them with --header, or in headers of scenario.json")
        for path, found in (self.document.get("paths") or {}).items():
            item = self._resolved(found)
            for method in _LEFT_OUT:
                if method in item:
                    self.notes.append(f"{method.upper()} {path} left out: add it where it does no harm")
            for method in _METHODS:
                if method in item:
                    endpoint = self._endpoint(method, path, item, self._resolved(item[method]))
                    if endpoint is not None:
                        yield endpoint

    def _endpoint(
        self, method: str, path: str, item: Mapping[str, Any], operation: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        name = f"{method.upper()} {path}"
        lines = self._body_lines(operation)
        if lines is None:
            self.notes.append(f"{name} left out: its body is not JSON")
            return None
        url, headers = self._request_of(path, item, operation)
        endpoint: dict[str, Any] = {"method": method.upper(), "path": url}
        if headers:
            endpoint["headers"] = headers
        if lines:
            file = _file_name(f"{method}-{path}", self.bodies)
            self.bodies[file] = b"".join(line + b"\n" for line in lines)
            endpoint["bodies"] = file
        return endpoint

    def _request_of(
        self, path: str, item: Mapping[str, Any], operation: Mapping[str, Any]
    ) -> tuple[str, dict[str, str]]:
        query, headers = [], {}
        declared = {}
        for found in [*(item.get("parameters") or []), *(operation.get("parameters") or [])]:
            parameter = self._resolved(found)
            declared[parameter.get("in"), parameter.get("name")] = parameter  # the operation's own come last
        for (place, name), parameter in declared.items():
            if place == "path":
                path = path.replace(f"{{{name}}}", quote(as_text(self._value_of(parameter)), safe=""))
            elif parameter.get("required") and place == "query":
                query.append(f"{quote(str(name))}={quote(as_text(self._value_of(parameter)), safe='')}")
            elif parameter.get("required") and place == "header":
                headers[str(name)] = as_text(self._value_of(parameter))
        path = re.sub(r"\{[^}]*\}", "1", path)  # not declared
        return self._prefix + path + (f"?{'&'.join(query)}" if query else ""), headers

    def _body_lines(self, operation: Mapping[str, Any]) -> list[bytes] | None:
        """The bodies to send; none where it has no body, None where it is not JSON."""
        request = self._resolved(operation.get("requestBody") or {})
        content = request.get("content") or {}
        media = next((value for kind, value in content.items() if _JSON.fullmatch(kind)), None)
        if media is None:
            return None if content and request.get("required") else []
        values = [self._resolved(e).get("value") for e in (media.get("examples") or {}).values()]
        values = values or [self._value_of(media)]
        # An object with "body" and "weight" would be read as instructions, so every line says it is a body.
        return [msgspec.json.encode({"body": value}) for value in values]

    def _value_of(self, described: Mapping[str, Any]) -> Any:
        """Of a parameter or media type: its example, or one of its examples, or what its schema allows."""
        if "example" in described:
            return described["example"]
        for example in (described.get("examples") or {}).values():
            return self._resolved(example).get("value")
        return self._made(described.get("schema") or {}, 0)

    def _made(self, schema: Any, depth: int) -> Any:
        """A value that a schema allows, the simplest one; `pattern` is not looked at."""
        schema = self._resolved(schema)
        for name in ("example", "default", "const"):
            if name in schema:
                return schema[name]
        for name in ("examples", "enum"):
            if isinstance(schema.get(name), list) and schema[name]:
                return schema[name][0]
        if "allOf" in schema:
            parts = [self._resolved(part) for part in schema["allOf"]]
            merged: dict[str, Any] = {k: v for k, v in schema.items() if k != "allOf"}
            for part in parts:
                merged = {
                    **part,
                    **merged,
                    "properties": {**part.get("properties", {}), **merged.get("properties", {})},
                    "required": [*part.get("required", []), *merged.get("required", [])],
                }
            return self._made(merged, depth + 1) if depth < _DEEPEST else {}
        for name in ("oneOf", "anyOf"):
            if schema.get(name):
                return self._made(schema[name][0], depth + 1) if depth < _DEEPEST else None
        kind = schema.get("type")
        if isinstance(kind, list):  # OpenAPI 3.1
            kind = next((k for k in kind if k != "null"), "null")
        return self._plain(kind or ("object" if "properties" in schema else None), schema, depth)

    def _plain(self, kind: str | None, schema: Mapping[str, Any], depth: int) -> Any:
        match kind:
            case "object":
                needed = set(schema.get("required") or ())
                fields = (schema.get("properties") or {}).items()
                if depth >= _DEEPEST:
                    return {}
                return {k: self._made(v, depth + 1) for k, v in fields if k in needed or self._is_offered(v, depth)}
            case "array":
                count = max(1, schema.get("minItems") or 0) if depth < _DEEPEST else 0
                return [self._made(schema.get("items") or {}, depth + 1) for _ in range(count)]
            case "string":
                text = _FORMATS.get(schema.get("format", ""), "text")
                text = text.ljust(schema.get("minLength") or 0, "x")
                return text[: schema.get("maxLength", len(text))]
            case "integer" | "number":
                low = schema.get("minimum", schema.get("exclusiveMinimum", 1))
                low = 1 if isinstance(low, bool) else low + (1 if "exclusiveMinimum" in schema else 0)
                high = schema.get("maximum", low)
                return min(max(low, 1), high) if high >= 1 else high
            case "boolean":
                return True
            case _:
                return None

    def _is_offered(self, schema: Any, depth: int) -> bool:
        """An optional field is shown near the top, where a person wants to see what there is."""
        return depth < 2 and not self._resolved(schema).get("readOnly")

    def _resolved(self, value: Any) -> Any:
        """What a `$ref` within the document refers to; others are empty."""
        for _ in range(_DEEPEST):
            if not isinstance(value, dict) or "$ref" not in value:
                break
            ref = str(value["$ref"])
            if not ref.startswith("#"):
                self.notes.append(f"{ref} is in another file: not followed")
                return {}
            value = at_pointer(self.document, ref[1:], {})
        return value if isinstance(value, dict) else {}


def _file_name(name: str, taken: Mapping[str, bytes]) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60]
    numbers = (f"{plain}{'' if i == 1 else f'-{i}'}.jsonl" for i in range(1, len(taken) + 2))
    return next(file for file in numbers if file not in taken)
