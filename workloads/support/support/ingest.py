"""Build the vector store: `python -m support.ingest`. Does nothing when it is already complete."""

import sys

from support.llm import new_client
from support.retrieval import load_handbook, open_store, sections
from support.settings import Settings, from_env

COLLECTION = "handbook"
BATCH = 100  # sections in one call
OPENING = 300  # characters embedded: a section's name and its first sentences say what it is about


def ingest(settings: Settings) -> int:
    """Embed and store the sections that are missing; returns how many."""
    store = open_store(settings)
    collection = store.get_or_create_collection(
        COLLECTION, embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
    )
    known = set(collection.get(include=[])["ids"])
    missing = [(str(i), s) for i, s in enumerate(sections(load_handbook())) if str(i) not in known]
    client = new_client().with_options(max_retries=8)
    for start in range(0, len(missing), BATCH):
        ids, batch = zip(*missing[start : start + BATCH], strict=True)
        texts = [section.passage[:OPENING] for section in batch]
        reply = client.embeddings.create(model=settings.embedding_model, input=texts)
        collection.add(
            ids=list(ids),
            embeddings=[item.embedding for item in reply.data],
            documents=[section.text for section in batch],
            metadatas=[{"source": section.source} for section in batch],
        )
    return len(missing)


if __name__ == "__main__":
    print(f"{ingest(from_env())} sections embedded into {COLLECTION!r}", file=sys.stderr)
