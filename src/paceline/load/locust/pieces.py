"""Pieces: the files of a run that grow elsewhere, sent as they grow and put together again."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

_NAME = re.compile(r"requests-load-[0-9a-f-]+(-full)?\.(rows|names|jsonl)")
_PIECE_BYTES = 1 << 20


class Piece(msgspec.Struct, frozen=True):
    """Some bytes of an append-only file."""

    name: str
    offset: int
    data: bytes


class Grown:
    """What has been added to the request files of a folder since one last looked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sent: dict[str, int] = {}

    def pieces(self) -> Iterator[Piece]:
        """The additions, names before the rows that refer to them, at most 1 MB each."""
        paths = sorted(self._folder.glob("requests-*"), key=lambda path: (path.suffix != ".names", path.name))
        for path in paths:
            if not _NAME.fullmatch(path.name):
                continue
            offset = self._sent.setdefault(path.name, 0)
            with path.open("rb") as file:
                file.seek(offset)
                while data := file.read(_PIECE_BYTES):
                    yield Piece(path.name, offset, data)
                    offset += len(data)
                    self._sent[path.name] = offset


def put(piece: Piece, folder: Path) -> None:
    """Write a piece where it belongs; the same one twice does no harm.

    Raises:
        ValueError: its name is none of a request file, or pieces before it are missing. OSError: the disk refused.
    """
    if not _NAME.fullmatch(piece.name):
        msg = f"{piece.name!r} is no file of requests"
        raise ValueError(msg)
    fd = os.open(folder / piece.name, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        if os.fstat(fd).st_size < piece.offset:
            msg = f"{piece.name}: the bytes before {piece.offset:,} never arrived"
            raise ValueError(msg)
        data, offset = piece.data, piece.offset
        while data:
            written = os.pwrite(fd, data, offset)
            data, offset = data[written:], offset + written
    finally:
        os.close(fd)
