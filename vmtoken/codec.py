"""Reader and Writer for big-endian fields and length-prefixed blocks.

A block is a context manager, so that code reads like the presentation language of RFC 8446
section 3, and truncation and leftovers are found in one place:

    with reader.block(2) as block:
        algorithm, signature = block.uint(2), block.rest()
"""

from __future__ import annotations

import struct
from types import TracebackType


class DecodeError(ValueError):
    """Octets from outside are not what the format says: too short, too long, out of range."""


class Reader:
    """Reads fields from octets and never past their end.

    As a context manager it demands on leaving that everything was read.
    """

    __slots__ = ("_data", "_end", "_position")

    def __init__(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        self._data = data
        self._position = start
        self._end = len(data) if end is None else end

    @property
    def remaining(self) -> int:
        """How many octets are left."""
        return self._end - self._position

    @property
    def position(self) -> int:
        """Offset of the next octet in the data that the outermost reader was made from."""
        return self._position

    def uint(self, size: int) -> int:
        """An unsigned integer of `size` octets."""
        start = self._advance(size)
        if size == 1:
            return self._data[start]
        return int.from_bytes(self._data[start : self._position], "big")

    def raw(self, size: int) -> bytes:
        """The next `size` octets."""
        start = self._advance(size)
        return self._data[start : self._position]

    def opaque(self, length_size: int, minimum: int = 0, maximum: int | None = None) -> bytes:
        """The content of a block: a length of `length_size` octets, then so many octets."""
        length = self.uint(length_size)
        if length < minimum or (maximum is not None and length > maximum):
            raise DecodeError(f"a block of {length} octets where {minimum} to {maximum} are allowed")
        return self.raw(length)

    def block(self, length_size: int, minimum: int = 0, maximum: int | None = None) -> Reader:
        """A reader for the content of a block; in `with`, leftovers raise."""
        length = self.uint(length_size)
        if length < minimum or (maximum is not None and length > maximum):
            raise DecodeError(f"a block of {length} octets where {minimum} to {maximum} are allowed")
        start = self._advance(length)
        return Reader(self._data, start, self._position)

    def uints(self, length_size: int, item_size: int) -> tuple[int, ...]:
        """A block that holds at least one unsigned integer of 1, 2 or 4 octets, and nothing else."""
        content = self.opaque(length_size, minimum=item_size)
        count, left_over = divmod(len(content), item_size)
        if left_over:
            raise DecodeError(f"a block of {len(content)} octets does not hold items of {item_size}")
        return struct.unpack(f"!{count}{_FORMATS[item_size]}", content)

    def opaques(self, length_size: int, item_length_size: int, minimum: int = 1) -> tuple[bytes, ...]:
        """A block of at least one block, each of at least `minimum` octets, and nothing else."""
        items: list[bytes] = []
        with self.block(length_size, minimum=item_length_size + minimum) as block:
            while block.remaining:
                items.append(block.opaque(item_length_size, minimum=minimum))
        return tuple(items)

    def rest(self) -> bytes:
        """All that is left."""
        return self.raw(self.remaining)

    def finish(self) -> None:
        """Raise `DecodeError` if anything is left."""
        if self._position != self._end:
            raise DecodeError(f"{self.remaining} octets too many at offset {self._position}")

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()

    def _advance(self, size: int) -> int:
        start = self._position
        if size > self._end - start:
            raise DecodeError(f"{size - self.remaining} octets missing at offset {self._end}")
        self._position = start + size
        return start


class Writer:
    """Appends fields to a buffer; a value that does not fit its field raises `ValueError`."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def uint(self, value: int, size: int) -> None:
        """An unsigned integer of `size` octets."""
        try:
            self._buffer += value.to_bytes(size, "big")
        except OverflowError:
            raise ValueError(f"{value} does not fit into {size} octets") from None

    def raw(self, octets: bytes | bytearray | memoryview) -> None:
        """Octets as they are."""
        self._buffer += octets

    def opaque(self, octets: bytes, length_size: int) -> None:
        """A block: the length of `octets` in `length_size` octets, then the octets."""
        self.uint(len(octets), length_size)
        self._buffer += octets

    def uints(self, values: tuple[int, ...], length_size: int, item_size: int) -> None:
        """A block of unsigned integers of 1, 2 or 4 octets each."""
        self.uint(len(values) * item_size, length_size)
        try:
            self._buffer += struct.pack(f"!{len(values)}{_FORMATS[item_size]}", *values)
        except struct.error:
            raise ValueError(f"one of {values} does not fit into {item_size} octets") from None

    def block(self, length_size: int) -> _Block:
        """A context manager; what is written inside gets its length in front."""
        return _Block(self._buffer, length_size)

    def getvalue(self) -> bytes:
        """Everything written so far."""
        return bytes(self._buffer)

    def __len__(self) -> int:
        return len(self._buffer)


_FORMATS = {1: "B", 2: "H", 4: "I"}
"""Of the `struct` module, by size."""


class _Block:
    """Reserves room for a length on entering and fills it in on leaving."""

    __slots__ = ("_buffer", "_length_size", "_start")

    def __init__(self, buffer: bytearray, length_size: int) -> None:
        self._buffer = buffer
        self._length_size = length_size

    def __enter__(self) -> None:
        self._buffer += bytes(self._length_size)
        self._start = len(self._buffer)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        size, start = self._length_size, self._start
        length = len(self._buffer) - start
        if length >> (8 * size):
            raise ValueError(f"a block of {length} octets: its length does not fit into {size}")
        self._buffer[start - size : start] = length.to_bytes(size, "big")
