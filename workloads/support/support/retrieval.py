"""Retrieval: the handbook and the vector store over its sections."""

import functools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import chromadb
import orjson
from chromadb.config import Settings as ChromaSettings

from support.settings import DATA, Settings

SECTIONS = DATA / "handbook18f_sections.jsonl"


class Section(NamedTuple):
    """One section of the handbook: how answers name it, and its text."""

    source: str
    text: str

    @property
    def passage(self) -> str:
        """How prompts show it."""
        return f"{self.source}\n{self.text}"


def section_of(saved: dict[str, str]) -> Section:
    """The section that a line of the handbook holds, without empty lines."""
    return Section(f"{saved['title']}: {saved['heading']}", re.sub(r"\n\s*\n", "\n", saved["text"]))


def load_handbook(path: Path = SECTIONS) -> str:
    """The whole handbook, one section a line, as JSON."""
    return path.read_text(encoding="utf-8")


@functools.lru_cache(maxsize=1)
def shared_handbook() -> str:
    """The handbook, read once for the whole process."""
    return load_handbook()


def sections(handbook: str) -> Iterable[Section]:
    """All sections in the handbook's order."""
    return (section_of(orjson.loads(line)) for line in handbook.splitlines())


def match_title(question: str, handbook: str) -> list[Section]:
    """The first section of the page whose title is what was asked."""
    title = json.dumps(question.strip(" ?!."), ensure_ascii=False)
    at = handbook.find(f'"title": {title}')
    if at < 0:
        return []
    begin, end = handbook.rfind("\n", 0, at) + 1, handbook.find("\n", at)
    return [section_of(orjson.loads(handbook[begin:end]))]


class Index:
    """The vector store. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._name = settings.collection
        self._chroma = open_store(settings)

    def search(self, vector: list[float], count: int) -> list[Section]:
        """The `count` nearest sections, nearest first. Raises NotFoundError without the collection."""
        collection = self._chroma.get_collection(self._name, embedding_function=None)
        found: Any = collection.query(query_embeddings=[vector], n_results=count, include=["documents", "metadatas"])
        return [
            Section(known["source"], text)
            for known, text in zip(found["metadatas"][0], found["documents"][0], strict=True)
        ]

    def size(self) -> int:
        """Sections in the collection. Raises NotFoundError when there is none of that name."""
        return self._chroma.get_collection(self._name, embedding_function=None).count()


def open_store(settings: Settings) -> chromadb.ClientAPI:
    """The store under `state_dir`, made when missing."""
    path = settings.state / "chroma"
    path.mkdir(parents=True, exist_ok=True)
    return chromadb.PersistentClient(str(path), settings=ChromaSettings(anonymized_telemetry=False))
