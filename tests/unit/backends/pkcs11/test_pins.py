"""What the flags of a PKCS#11 token say of its PINs, and what is tried then."""

from __future__ import annotations

import pytest

from dom0_broker.backends.pkcs11.codes import TokenFlag
from dom0_broker.backends.pkcs11.pins import SO_PIN, USER_PIN, RefusedPins, check_user_pin, user_pin_state
from vmtoken.errors import PinBlocked, PinRejected, TokenNotReady
from vmtoken.secret import SecretBytes

READY = TokenFlag.CKF_TOKEN_INITIALIZED | TokenFlag.CKF_LOGIN_REQUIRED | TokenFlag.CKF_USER_PIN_INITIALIZED
LOW, FINAL, LOCKED = (
    TokenFlag.CKF_USER_PIN_COUNT_LOW,
    TokenFlag.CKF_USER_PIN_FINAL_TRY,
    TokenFlag.CKF_USER_PIN_LOCKED,
)
TOKEN = ("user PIN", "lab", "0011")


@pytest.mark.parametrize(
    ("flags", "reserve", "tried"),
    [
        (READY, 0, True),
        (READY, 1, True),
        (READY, 15, True),
        (READY | LOW, 0, True),
        (READY | LOW, 1, True),
        (READY | LOW, 2, False),
        (READY | LOW | FINAL, 0, True),
        (READY | LOW | FINAL, 1, False),
        (READY | FINAL, 1, False),
        (READY | LOW | FINAL | LOCKED, 0, False),
        (READY | LOCKED, 0, False),
    ],
)
def test_reserve_is_never_touched(flags: TokenFlag, reserve: int, tried: bool) -> None:
    if tried:
        check_user_pin(flags, reserve)
    else:
        with pytest.raises(PinBlocked, match="unblock it with the SO PIN"):
            check_user_pin(flags, reserve)


def test_token_without_user_pin_is_not_ready() -> None:
    with pytest.raises(TokenNotReady, match="no user PIN"):
        check_user_pin(READY & ~TokenFlag.CKF_USER_PIN_INITIALIZED, 1)


@pytest.mark.parametrize(
    ("flags", "left"), [(READY, None), (READY | LOW, None), (READY | LOW | FINAL, 1), (READY | LOCKED, 0)]
)
def test_only_what_is_known_is_told(flags: TokenFlag, left: int | None) -> None:
    assert user_pin_state(flags).tries_left == left


@pytest.mark.parametrize(
    ("flags", "left", "words"),
    [
        (READY, 1, "does not tell"),
        (READY | LOW, 2, "two tries or more"),
        (READY | LOW | FINAL, 1, "one try"),
        (READY | LOCKED, 0, "locked now"),
    ],
)
def test_rejection_names_the_least_that_is_left(flags: TokenFlag, left: int, words: str) -> None:
    error = USER_PIN.rejected(flags)
    assert error.retries_left == left
    assert words in error.message


def test_flags_of_one_pin_say_nothing_of_the_other() -> None:
    SO_PIN.check_tries(READY | LOCKED, 1)
    with pytest.raises(PinBlocked, match="SO PIN"):
        SO_PIN.check_tries(READY | TokenFlag.CKF_SO_PIN_LOCKED, 0)


def test_refused_pin_is_not_tried_again_until_the_token_takes_one() -> None:
    refused = RefusedPins()
    wrong, right = SecretBytes(b"9999"), SecretBytes(b"1234")
    refused.add(TOKEN, wrong)
    with pytest.raises(PinRejected, match="not tried again"):
        refused.check(TOKEN, SecretBytes(b"9999"))
    refused.check(TOKEN, right)
    refused.check(("user PIN", "another", "0012"), wrong)
    refused.forget(TOKEN)
    refused.check(TOKEN, wrong)
