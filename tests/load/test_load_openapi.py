"""An OpenAPI document becomes a scenario that can be driven as it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import uvloop

from paceline.errors import ConfigError, InputError
from paceline.load.driver import drive
from paceline.load.openapi import draft_of, write_draft
from paceline.load.scenario import sequence
from paceline.load.scenario_file import read_scenarios
from paceline.store.folder import create_run
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.server import serve

DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "Shop", "version": "1"},
    "servers": [{"url": "https://shop.example/v2/"}],
    "security": [{"key": []}],
    "paths": {
        "/items/{id}": {
            "parameters": [
                {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}, "example": "a/1"}
            ],
            "get": {
                "parameters": [
                    {"name": "lang", "in": "query", "required": True, "schema": {"enum": ["en", "de"]}},
                    {"name": "page", "in": "query", "schema": {"type": "integer"}},
                    {"name": "X-Shop", "in": "header", "required": True, "schema": {"type": "integer", "minimum": 7}},
                ]
            },
            "delete": {},
        },
        "/orders": {
            "post": {
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Order"}}}}
            }
        },
        "/ask": {
            "post": {
                "requestBody": {
                    "content": {
                        "application/json; charset=utf-8": {
                            "examples": {"one": {"value": {"q": 1}}, "two": {"$ref": "#/components/examples/two"}}
                        }
                    }
                }
            }
        },
        "/upload": {"put": {"requestBody": {"required": True, "content": {"multipart/form-data": {}}}}},
    },
    "components": {
        "examples": {"two": {"value": {"body": "x"}}},
        "schemas": {
            "Base": {"type": "object", "required": ["id"], "properties": {"id": {"type": "string", "format": "uuid"}}},
            "Order": {
                "allOf": [{"$ref": "#/components/schemas/Base"}],
                "type": "object",
                "properties": {
                    "count": {"type": "integer", "minimum": 2, "maximum": 9},
                    "ratio": {"type": ["null", "number"]},
                    "paid": {"type": "boolean"},
                    "note": {"type": "string", "minLength": 6},
                    "lines": {"type": "array", "minItems": 2, "items": {"anyOf": [{"const": "a"}, {}]}},
                    "parent": {"$ref": "#/components/schemas/Order"},
                    "made": {"type": "string", "readOnly": True},
                },
            },
        },
    },
}


def test_operations_become_a_mix_with_bodies_from_examples_and_schemas() -> None:
    draft = draft_of(DOCUMENT, Path("shop.json"))
    get, order, ask = draft.scenario["mix"]
    assert get == {"method": "GET", "path": "/v2/items/a%2F1?lang=en", "headers": {"X-Shop": "7"}}
    assert (order["path"], order["bodies"]) == ("/v2/orders", "post-orders.jsonl")
    body = json.loads(draft.bodies["post-orders.jsonl"])["body"]
    assert body.pop("parent")["id"] == "00000000-0000-4000-8000-000000000001"
    assert body == {
        "id": "00000000-0000-4000-8000-000000000001",
        "count": 2,
        "ratio": 1,
        "paid": True,
        "note": "textxx",
        "lines": ["a", "a"],
    }
    lines = draft.bodies[ask["bodies"]].splitlines()
    assert [json.loads(line)["body"] for line in lines] == [{"q": 1}, {"body": "x"}]
    assert draft == draft_of(DOCUMENT, Path("shop.json"))


def test_what_was_left_out_is_said() -> None:
    notes = draft_of(DOCUMENT, Path("shop.json")).notes
    assert any("credentials" in note for note in notes)
    assert "DELETE /items/{id} left out: add it where it does no harm" in notes
    assert "PUT /upload left out: its body is not JSON" in notes


def test_the_draft_can_be_driven_as_it_is(tmp_path: Path) -> None:
    document = tmp_path / "shop.json"
    document.write_text(json.dumps(DOCUMENT))
    path, _ = write_draft(document, tmp_path / "out")
    (scenario,) = read_scenarios(path)
    assert {body.endpoint.split("?")[0] for body in sequence(scenario, 60)} == {
        "GET /v2/items/a%2F1",
        "POST /v2/orders",
        "POST /v2/ask",
    }
    seen: list[HttpRequest] = []

    def handler(request: HttpRequest) -> Reply:
        seen.append(request)
        return Reply(200, [], b"{}")

    async def work() -> None:
        import msgspec

        server = await serve(handler, "127.0.0.1", 0)
        short = msgspec.structs.replace(scenario, duration_s=None, requests=30)
        try:
            await drive(short, f"http://127.0.0.1:{server.port}", create_run(tmp_path, "t"))
        finally:
            await server.close(grace_s=0)

    uvloop.run(work())
    assert len(seen) == 30
    assert all(json.loads(request.body) for request in seen if request.method == "POST")


def test_yaml_is_read_where_pyyaml_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "api.yaml"
    document.write_text(
        "openapi: 3.0.3\npaths:\n  /health:\n    get: {}\n  /at:\n    get:\n      x-since: 2026-01-01\n"
    )
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(ConfigError, match="needs PyYAML"):
        write_draft(document, tmp_path / "a")
    monkeypatch.undo()
    pytest.importorskip("yaml")
    path, _ = write_draft(document, tmp_path / "b")
    assert [endpoint.path for endpoint in read_scenarios(path)[0].mix] == ["/health", "/at"]


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (None, ConfigError, "cannot read the OpenAPI document"),
        ("{", InputError, "is not JSON"),
        ('{"swagger": "2.0"}', InputError, "no OpenAPI 3 document"),
        ("[]", InputError, "no OpenAPI 3 document"),
        ('{"openapi": "3.0.0", "paths": {}}', InputError, "it has no paths"),
        ('{"openapi": "3.0.0", "paths": {"/a": {"delete": {}}}}', InputError, "DELETE /a left out"),
    ],
)
def test_a_document_that_cannot_be_used_is_one_sentence(
    tmp_path: Path, text: str | None, error: type[Exception], says: str
) -> None:
    path = tmp_path / "api.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=says):
        write_draft(path, tmp_path / "out")


def test_a_scenario_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    document = tmp_path / "shop.json"
    document.write_text(json.dumps(DOCUMENT))
    write_draft(document, tmp_path)
    with pytest.raises(ConfigError, match="exists; give another folder"):
        write_draft(document, tmp_path)
