"""A card in the USB reader of the lab: the card's side of the protocol of QEMU's `ccid-card-passthru`.

A message is a header of three numbers of four octets, big-endian: type, reader, length; then the body
(libcacard's vscard_common.h). Reader and driver exchange TPDUs: the card speaks T=0.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from vmtoken.iso7816.connection import CardConnection

_HEADER = struct.Struct(">III")
_MAGIC, _VERSION, _NO_CAPABILITIES = b"VSCD", 2, 0
_NO_READER, _READER = 0xFFFFFFFF, 0


class _Type(enum.IntEnum):
    INIT = 1
    ERROR = 2
    """Also says that all is well, with a body of zeros."""

    READER_ADD = 3
    ATR = 5
    APDU = 7


@contextlib.contextmanager
def card_in_reader(reader: Path, card: CardConnection, atr: bytes) -> Iterator[None]:
    """Put a card into the reader, which is a Unix socket, and answer until the end of the block."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(reader))
        _send(link, _Type.INIT, _NO_READER, _MAGIC + struct.pack(">II", _VERSION, _NO_CAPABILITIES))
        _send(link, _Type.READER_ADD, _NO_READER, b"lab\0")
        _send(link, _Type.ATR, _READER, atr)
        answering = threading.Thread(target=_answer, args=(link, card), name="card")
        answering.start()
        try:
            yield
        finally:
            link.shutdown(socket.SHUT_RDWR)
            answering.join()


def _answer(link: socket.socket, card: CardConnection) -> None:
    with link.makefile("rb") as messages:
        while len(header := messages.read(_HEADER.size)) == _HEADER.size:
            kind, _, length = _HEADER.unpack(header)
            body = messages.read(length)
            if kind == _Type.APDU:
                _send(link, _Type.APDU, _READER, card.transmit(body))
            elif kind == _Type.ERROR and any(body):
                raise ConnectionError(f"the reader refuses the card: {body.hex()}")


def _send(link: socket.socket, kind: _Type, reader: int, body: bytes) -> None:
    link.sendall(_HEADER.pack(kind, reader, len(body)) + body)
