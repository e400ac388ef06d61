"""What is asked of the person at the terminal, or read from a pipe instead."""

from __future__ import annotations

import contextlib
import getpass
import signal
import sys
from collections.abc import Iterator

from vmtoken.errors import InvalidRequest


def has_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin is not None and sys.stdin.isatty()


def secret(question: str) -> bytes:
    """What is typed without echo; without a terminal the next line of standard input, empty at its end.

    Raises `InvalidRequest` for a person who gives no answer (Ctrl-D).
    """
    if not has_terminal():
        return sys.stdin.buffer.readline().rstrip(b"\n") if sys.stdin else b""
    with _interruptible():
        try:
            return getpass.getpass(f"{question}: ").encode(errors="surrogateescape")
        except EOFError as error:
            raise InvalidRequest("No answer was given; nothing was done.") from error


def says_yes(question: str) -> bool:
    """Whether the person at the terminal agrees; anything but `y` and `yes` is a no."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    with _interruptible():
        return sys.stdin.readline().strip().lower() in {"y", "yes"}


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the command at once: while we wait here, asyncio would not see the first one."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)
