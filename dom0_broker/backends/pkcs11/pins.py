"""PINs of PKCS#11 tokens, which tell no numbers: what flags say, and PINs that are never tried again."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from typing import Final

from dom0_broker.backends.base import PinState
from dom0_broker.backends.pkcs11.codes import TokenFlag
from vmtoken.errors import PinBlocked, PinRejected, TokenNotReady
from vmtoken.secret import SecretBytes


@dataclass(frozen=True, slots=True)
class PinKind:
    """One of the two PINs of a token, with the flags that tell of it (PKCS#11 v3.0 section 3.2)."""

    name: str
    count_low: TokenFlag
    final_try: TokenFlag
    locked: TokenFlag
    remedy: str

    def tries_left(self, flags: TokenFlag) -> int | None:
        """At least so many; None: no try was lost since the last right one, and the number is not told."""
        if self.locked in flags:
            return 0
        if self.final_try in flags:
            return 1
        return 2 if self.count_low in flags else None

    def check_tries(self, flags: TokenFlag, reserve: int) -> None:
        """Raise `PinBlocked` if `reserve` tries may be left, or fewer."""
        left = self.tries_left(flags)
        if left == 0:
            raise PinBlocked(f"The {self.name} of the PKCS#11 token is locked; {self.remedy}.")
        if left is not None and left <= reserve:
            few = "one try" if left == 1 else "perhaps but two tries"
            raise PinBlocked(
                f"The {self.name} of the PKCS#11 token has {few} left, too few to risk one; {self.remedy}."
            )

    def rejected(self, flags: TokenFlag) -> PinRejected:
        """What to raise after a wrong try. The number is the least that it can be."""
        left = self.tries_left(flags)
        told = _TOLD.get(-1 if left is None else left, "it does not tell how many tries are left")
        return PinRejected(
            f"The token refused the {self.name}; {told}.", retries_left=1 if left is None else left
        )


_TOLD: Final = {0: "it is locked now", 1: "one try is left", 2: "two tries or more are left"}

USER_PIN: Final = PinKind(
    "user PIN",
    TokenFlag.CKF_USER_PIN_COUNT_LOW,
    TokenFlag.CKF_USER_PIN_FINAL_TRY,
    TokenFlag.CKF_USER_PIN_LOCKED,
    "unblock it with the SO PIN",
)

SO_PIN: Final = PinKind(
    "SO PIN",
    TokenFlag.CKF_SO_PIN_COUNT_LOW,
    TokenFlag.CKF_SO_PIN_FINAL_TRY,
    TokenFlag.CKF_SO_PIN_LOCKED,
    "use the tools of the token's maker",
)


def user_pin_state(flags: TokenFlag) -> PinState:
    """Tries left as far as flags tell: 0, 1, or unknown."""
    user, so = USER_PIN.tries_left(flags), SO_PIN.tries_left(flags)
    return PinState(user if user in {0, 1} else None, operator_tries_left=so if so in {0, 1} else None)


def check_user_pin(flags: TokenFlag, reserve: int) -> None:
    """Raise `TokenNotReady` without a user PIN, `PinBlocked` if `reserve` tries may be left, or fewer."""
    if TokenFlag.CKF_USER_PIN_INITIALIZED not in flags:
        raise TokenNotReady("The PKCS#11 token has no user PIN yet; set one with the SO PIN.")
    USER_PIN.check_tries(flags, reserve)


class PinTags:
    """Tells whether two PINs are equal without keeping them: a hash with a key of this process."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def of(self, pin: SecretBytes) -> bytes:
        """Equal for equal PINs."""
        return hmac.digest(self._key, pin.reveal(), "sha256")


class RefusedPins:
    """The PINs that a token refused since it last took one; they are not tried again."""

    def __init__(self) -> None:
        self._tags = PinTags()
        self._refused: dict[tuple[str, ...], set[bytes]] = {}

    def check(self, owner: tuple[str, ...], pin: SecretBytes, kind: PinKind = USER_PIN) -> None:
        """Raise `PinRejected` for one that was refused before."""
        if self._tags.of(pin) in self._refused.get(owner, ()):
            raise PinRejected(
                f"The token refused this {kind.name} before, so it is not tried again: give the right one, "
                "or run 'vmtokenctl token reset' if the token has got this one since.",
                retries_left=1,
            )

    def add(self, owner: tuple[str, ...], pin: SecretBytes) -> None:
        """The token refused it."""
        self._refused.setdefault(owner, set()).add(self._tags.of(pin))

    def forget(self, owner: tuple[str, ...]) -> None:
        """The token took a PIN, or got a new one."""
        self._refused.pop(owner, None)

    def clear(self) -> None:
        """The operator says that things have changed."""
        self._refused.clear()
