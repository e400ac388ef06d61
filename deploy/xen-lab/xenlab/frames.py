"""How the host and the machines of the lab talk: frames of a JSON header and a payload, over any byte stream.

    uint32 length of the header, uint32 length of the payload, header, payload; both lengths big-endian

A request names the process that it is about (`id`) and, unless it is for dom0, the machine (`to`, an
address on the lab's bridge). Host to machine, by `op`:

    hello                                   end what an earlier host left; answered by `hello`
    start   argv, environment, directory, terminal
    input   payload for the process's standard input
    eof     close its standard input
    signal  number, for the process and all that it started
    forget  dom0 closes its connection to the machine `to`

Machine to host, by `event`: `hello`, `started` (pid), `output` (stream, payload), `exit` (code; minus the
number of the signal that ended it), `failed` (why).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

Header = dict[str, Any]

_LENGTHS = struct.Struct(">II")
LONGEST_PAYLOAD = 32 * 1024
"""Octets; writers cut longer data, so that no process holds the line for long."""


def encode(header: Header, payload: bytes = b"") -> bytes:
    """One frame."""
    text = json.dumps(header).encode()
    return _LENGTHS.pack(len(text), len(payload)) + text + payload


def read(receive: Callable[[int], bytes]) -> tuple[Header, bytes]:
    """Read one frame with `receive`, which gives 1 to n octets, or none at the end; EOFError there."""
    header_length, payload_length = _LENGTHS.unpack(_exactly(receive, _LENGTHS.size))
    header = json.loads(_exactly(receive, header_length))
    return header, _exactly(receive, payload_length)


def _exactly(receive: Callable[[int], bytes], length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = receive(length - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
