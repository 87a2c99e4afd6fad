"""Answers as JSON, in the shape that was asked for. Pure."""

import re
from typing import Any

import msgspec

from paceline.testing.answers import LABEL, VERDICT, Answer, best_label

_LABEL_KEY = re.compile(r"\b(intent|label|category|class|sentiment)\b", re.IGNORECASE)
_DEPTH = 8  # a schema may hold itself
_VALUES = 1_000


def as_json(found: Answer, text: str, schema: dict[str, Any] | None = None) -> str:
    """`found`, whose words are `text`, as a JSON object.

    With a JSON schema the object fits it: choices by shared words, truth values by the verdict, the text where free
    text goes. Without one: `{"valid": ..., "reason": ...}`, `{"intent": ...}` (or label, category, as the prompt calls
    it), `{"answer": ...}`.
    """
    if schema is not None:
        return msgspec.json.encode(_Filler(found, text, schema).fill(schema, "")).decode()
    if found.kind == VERDICT:
        shown: dict[str, Any] = {"valid": found.valid, "reason": found.reason}
    elif found.kind == LABEL:
        key = _LABEL_KEY.search(found.task)
        shown = {key.group(1).casefold() if key else "label": text}
    else:
        shown = {"answer": text}
    return msgspec.json.encode(shown).decode()


class _Filler:
    """Makes a value for each place of a schema. Knows objects, arrays, choices, references; anything else is null."""

    def __init__(self, found: Answer, text: str, root: dict[str, Any]) -> None:
        self._found = found
        self._text = text
        self._root = root
        self._left = _VALUES

    def fill(self, schema: object, name: str, depth: int = 0) -> Any:
        """A value that fits `schema`, for the property called `name`."""
        schema = self._resolved(schema)
        self._left -= 1
        if schema is None or depth > _DEPTH or self._left < 0:
            return None
        if "const" in schema:
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return self._choice(schema["enum"])
        for several in ("anyOf", "oneOf", "allOf"):
            if isinstance(schema.get(several), list):
                options = [o for o in schema[several] if not (isinstance(o, dict) and o.get("type") == "null")]
                return self.fill(options[0], name, depth + 1) if options else None
        kind = schema.get("type")
        kind = next((k for k in kind if k != "null"), "null") if isinstance(kind, list) else kind
        kind = kind.casefold() if isinstance(kind, str) else kind  # Google writes STRING
        if kind == "object" or "properties" in schema:
            properties = schema.get("properties")
            items = properties.items() if isinstance(properties, dict) else ()
            return {key: self.fill(value, key, depth + 1) for key, value in items}
        if kind == "array":
            count = max(1, schema["minItems"]) if isinstance(schema.get("minItems"), int) else 1
            return [self.fill(schema.get("items"), name, depth + 1)] * min(count, 100)
        return self._scalar(kind, schema, name)

    def _choice(self, options: list[Any]) -> Any:
        texts = {str(option): option for option in options}
        if self._text in texts:
            return texts[self._text]
        return texts[best_label(dict.fromkeys(texts, ""), self._found.question)]

    def _scalar(self, kind: object, schema: dict[str, Any], name: str) -> Any:
        if kind == "boolean":
            return self._found.valid is not False
        if kind in ("integer", "number"):
            low = schema.get("minimum", 0)
            share = kind == "number" and re.search("confidence|score|probability|ratio", name, re.IGNORECASE)
            return 0.9 if share else low if isinstance(low, int | float) else 0
        if kind == "string":
            return (
                self._found.reason if name in ("reason", "explanation") and self._found.kind == VERDICT else self._text
            )
        return None

    def _resolved(self, schema: object) -> dict[str, Any] | None:
        for _ in range(_DEPTH):
            if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
                break
            target: Any = self._root
            for part in filter(None, schema["$ref"].removeprefix("#").split("/")):
                target = target.get(part) if isinstance(target, dict) else None
            schema = target
        return schema if isinstance(schema, dict) else None
