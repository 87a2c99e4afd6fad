"""Build the vector store: `python -m support.ingest`. Does nothing when it is already complete."""

import sys

from support.llm import new_client
from support.retrieval import load_sections, open_store
from support.settings import Settings, from_env

COLLECTION = "handbook"
BATCH = 100  # sections in one call
CHARACTERS = 6_000  # of a section that are embedded: the longest ones pass the model's input limit


def ingest(settings: Settings) -> int:
    """Embed and store the sections that are missing; returns how many."""
    store = open_store(settings)
    collection = store.get_or_create_collection(
        COLLECTION, embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
    )
    texts = [section.as_context[:CHARACTERS] for section in load_sections()]
    stored = set(collection.get(include=[])["ids"])
    missing = [position for position in range(len(texts)) if str(position) not in stored]
    client = new_client().with_options(max_retries=8)
    for start in range(0, len(missing), BATCH):
        positions = missing[start : start + BATCH]
        reply = client.embeddings.create(model=settings.embedding_model, input=[texts[p] for p in positions])
        collection.add(ids=[str(p) for p in positions], embeddings=[item.embedding for item in reply.data])
    return len(missing)


if __name__ == "__main__":
    print(f"{ingest(from_env())} sections embedded into {COLLECTION!r}", file=sys.stderr)
