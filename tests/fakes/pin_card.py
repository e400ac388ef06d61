"""A card that has nothing but PINs: it counts tries, and a script can lose its answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from dom0_broker.backends.base import PinState
from vmtoken.errors import PinBlocked, PinRejected, TokenUnavailable
from vmtoken.secret import SecretBytes

TRIES = 3
OPERATOR_TRIES = 10


class PowerCut(BaseException):
    """The broker is killed."""


@dataclass
class PinCard:
    """PINs by who they are of, with their counters. `attempts` is every PIN that the card ever compared."""

    user: bytes = b"1234"
    operator: bytes = b"87654321"
    tells: bool = True
    """Whether it tells its counters, as a PKCS#11 token does not."""

    tells_of_operator: bool = True
    """As a PIV card does not of its PUK."""

    tries_left: int = TRIES
    operator_tries_left: int = OPERATOR_TRIES
    attempts: list[bytes] = field(default_factory=list)
    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None
    """Called before a PIN is compared, and before the answer is given; may raise."""

    def read(self) -> PinState:
        if not self.tells:
            return PinState(None)
        return PinState(self.tries_left, TRIES, self.operator_tries_left if self.tells_of_operator else None)

    def open(self, pin: SecretBytes | None) -> str:
        assert pin is not None, "the card needs its PIN"
        with self._answering():
            self._compare_user(pin)
        return "open"

    def open_issuer(self, pin: SecretBytes | None) -> str:
        assert pin is not None, "the card needs its operator PIN"
        with self._answering():
            self._compare_operator(pin)
        return "open"

    def change(self, old: SecretBytes, new: SecretBytes) -> None:
        with self._answering():
            self._compare_user(old)
            self.user = new.reveal()

    def unblock(self, code: SecretBytes, new: SecretBytes) -> None:
        with self._answering():
            self._compare_operator(code)
            self.user, self.tries_left = new.reveal(), TRIES

    @contextmanager
    def _answering(self) -> Iterator[None]:
        self.before()
        try:
            yield
        finally:
            self.after()

    def _compare_user(self, pin: SecretBytes) -> None:
        self.tries_left = self._compared(pin, self.user, self.tries_left, TRIES)

    def _compare_operator(self, pin: SecretBytes) -> None:
        left = self._compared(pin, self.operator, self.operator_tries_left, OPERATOR_TRIES)
        self.operator_tries_left = left

    def _compared(self, pin: SecretBytes, right: bytes, left: int, tries: int) -> int:
        if left == 0:
            raise PinBlocked("The PIN is blocked.")
        self.attempts.append(pin.reveal())
        if pin.reveal() == right:
            return tries
        if right is self.user:
            self.tries_left = left - 1
        else:
            self.operator_tries_left = left - 1
        if left == 1:
            raise PinBlocked("The PIN is blocked now.")
        raise PinRejected("The card refused the PIN.", retries_left=left - 1)


def once(error: BaseException) -> Callable[[], None]:
    """Raises the first time that it is called."""
    calls = itertools.count()

    def step() -> None:
        if next(calls) == 0:
            raise error

    return step


def pulled() -> TokenUnavailable:
    """What a card that was pulled says."""
    return TokenUnavailable("The card was pulled.")
