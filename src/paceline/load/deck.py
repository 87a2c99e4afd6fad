"""Deck: the coming requests of this process, made ready in batches where they depend on nobody's answer."""

from collections.abc import Iterator

from paceline.load.attempt import Encoded, Encoder
from paceline.load.source import Drawn, Share, Source

_BATCH = 128  # 0.03 ms to make ready; 0.5 ms where each body is a new one

Card = tuple[int, Encoded, bytes]  # its index in the scenario's sequence, the request, its mark


class Deck:
    """What to send next. `dealt` holds what is ready; whoever finds it empty calls `take`."""

    def __init__(self, source: Source, encoder: Encoder, share: Share) -> None:
        self.dealt: Iterator[Card] = iter(())
        self._source, self._encoder = source, encoder
        self._index, self._step = share.part, share.of

    def take(self, user: int) -> Card | None:
        """The next request, for this user (-1: for nobody); None: there is no more."""
        card = next(self.dealt, None)
        if card is not None:
            return card
        if isinstance(self._source, Drawn):
            self._deal(self._source)
            return next(self.dealt, None)
        body = self._source.next(user)
        if body is None:
            return None
        index = self._index
        self._index += self._step
        return index, self._encoder.encode(body), self._encoder.mark(index)

    def _deal(self, source: Drawn) -> None:
        encoded = self._encoder.encode_all(source.some(_BATCH))
        first, step, count = self._index, self._step, len(encoded)
        self._index += step * count
        if not count:
            return
        marks = self._encoder.marks(first, step, count)
        self.dealt = iter(list(zip(range(first, self._index, step), encoded, marks, strict=True)))
