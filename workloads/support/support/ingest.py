"""Build the vector store: `python -m support.ingest`. Does nothing when it is already complete."""

import sys

import chromadb
import openai

from support.llm import new_client
from support.retrieval import Section, load_handbook, open_store, sections
from support.settings import Settings, from_env

COLLECTION = "handbook"
BATCH = 100  # sections in one call
OPENING = 300  # characters embedded: a section's name and its first sentences say what it is about
SAME = 0.01  # furthest that two embeddings of the same text by the same model lie apart


class Ingest:
    """One run over the handbook."""

    def __init__(self, settings: Settings, handbook: list[Section], client: openai.OpenAI) -> None:
        self._settings = settings
        self._handbook = handbook
        self._client = client.with_options(max_retries=8)
        self._store = open_store(settings)

    def run(self) -> int:
        """Embed and store the sections that are missing, all of them when the model is another; returns how many."""
        collection = self._collection()
        known = set(collection.get(include=[])["ids"])
        if "0" in known and self._is_stale(collection):
            self._store.delete_collection(COLLECTION)
            collection, known = self._collection(), set()
        missing = [(str(i), s) for i, s in enumerate(self._handbook) if str(i) not in known]
        for start in range(0, len(missing), BATCH):
            ids, batch = zip(*missing[start : start + BATCH], strict=True)
            collection.add(
                ids=list(ids),
                embeddings=self._embed(list(batch)),
                documents=[section.text for section in batch],
                metadatas=[{"source": section.source} for section in batch],
            )
        return len(missing)

    def _collection(self) -> chromadb.Collection:
        return self._store.get_or_create_collection(
            COLLECTION, embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
        )

    def _is_stale(self, collection: chromadb.Collection) -> bool:
        """True when the model no longer embeds the first section as it is stored; then no question would find it."""
        (now,) = self._embed(self._handbook[:1])
        (stored,) = collection.get(ids=["0"], include=["embeddings"])["embeddings"]
        return len(now) != len(stored) or any(abs(a - b) > SAME for a, b in zip(now, stored, strict=True))

    def _embed(self, batch: list[Section]) -> list[list[float]]:
        texts = [section.passage[:OPENING] for section in batch]
        reply = self._client.embeddings.create(model=self._settings.embedding_model, input=texts)
        return [item.embedding for item in reply.data]


def ingest(settings: Settings, handbook: list[Section]) -> int:
    """Bring the store up to date; returns how many sections were embedded."""
    with new_client() as client:
        return Ingest(settings, handbook, client).run()


if __name__ == "__main__":
    count = ingest(from_env(), list(sections(load_handbook())))
    print(f"{count} sections embedded into {COLLECTION!r}", file=sys.stderr)
