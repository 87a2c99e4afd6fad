"""Retrieval: the handbook's sections and the vector store over them."""

import functools
from pathlib import Path
from typing import NamedTuple

import chromadb
import orjson
from chromadb.config import Settings as ChromaSettings

from support.settings import DATA, Settings

SECTIONS = DATA / "handbook18f_sections.jsonl"


class Section(NamedTuple):
    """One section of the handbook."""

    doc_id: str
    title: str
    heading: str
    text: str

    @property
    def source(self) -> str:
        """How answers name it."""
        return f"{self.title}: {self.heading}"

    @property
    def as_context(self) -> str:
        """How prompts show it."""
        return f"{self.source}\n{self.text}"


def load_sections(path: Path = SECTIONS) -> list[Section]:
    """All sections in the file's order; a section's position is its id in the vector store."""
    return [Section(**orjson.loads(line)) for line in path.read_bytes().splitlines()]


@functools.lru_cache(maxsize=1)
def shared_sections() -> list[Section]:
    """The sections, read once for the whole process."""
    return load_sections()


def match_titles(question: str, sections: list[Section], count: int) -> list[Section]:
    """Sections of the documents whose title is what was asked."""
    asked = question.strip(" ?!.").casefold()
    return [section for section in sections if asked in section.title.casefold()][:count]


class Index:
    """The vector store. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._name = settings.collection
        self._chroma = open_store(settings)

    def search(self, vector: list[float], count: int) -> list[int]:
        """Positions of the `count` nearest sections, nearest first. Raises NotFoundError without the collection."""
        collection = self._chroma.get_collection(self._name, embedding_function=None)
        found = collection.query(query_embeddings=[vector], n_results=count, include=[])
        return [int(position) for position in found["ids"][0]]

    def size(self) -> int:
        """Sections in the collection. Raises NotFoundError when there is none of that name."""
        return self._chroma.get_collection(self._name, embedding_function=None).count()


def open_store(settings: Settings) -> chromadb.ClientAPI:
    """The store under `state_dir`, made when missing."""
    path = settings.state / "chroma"
    path.mkdir(parents=True, exist_ok=True)
    return chromadb.PersistentClient(str(path), settings=ChromaSettings(anonymized_telemetry=False))
