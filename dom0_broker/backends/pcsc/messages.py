"""What the process of a pcscd tells the broker, and what its methods answer."""

from __future__ import annotations

from typing import Any

import msgspec


class Reader(msgspec.Struct, frozen=True, array_like=True):
    """A reader and what is in it."""

    name: str
    changes: int
    """How many times cards came or went; the same number means the same card."""

    present: bool
    mute: bool
    """The card does not answer to a reset."""

    in_use: bool
    """Some program has the card, be it ours."""

    atr: bytes


class Snapshot(msgspec.Struct, frozen=True, tag="snapshot"):
    """All readers of the pcscd."""

    readers: tuple[Reader, ...] = ()
    problem: str = ""
    """Why there are none, when pcscd does not answer: one sentence."""


class Returned(msgspec.Struct, frozen=True, tag="returned"):
    """A call that was given up has come back, and its session is over."""

    session: int


class Connected(msgspec.Struct, frozen=True, array_like=True):
    """A card that was connected to."""

    atr: bytes
    t0: bool


PcscEvent = Snapshot | Returned


def decode_event(value: Any) -> PcscEvent:
    """Raises `msgspec.ValidationError`."""
    event: PcscEvent = msgspec.convert(value, Snapshot | Returned)
    return event


def decode_connected(value: Any) -> Connected:
    """Raises `msgspec.ValidationError`."""
    return msgspec.convert(value, Connected)
