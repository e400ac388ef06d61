from __future__ import annotations

import pytest

from dom0_broker.backends.pcsc.locator import CardLocator
from vmtoken.errors import InvalidRequest

FINGERPRINT = "0f" * 32


@pytest.mark.parametrize(
    ("text", "locator"),
    [
        ("serial=C8E67BAA9C8D25D8", CardLocator(serial="c8e67baa9c8d25d8")),
        (
            "serial=00112233445566778899aabbccddeeff;slot=9C",
            CardLocator("00112233445566778899aabbccddeeff", "", "9c"),
        ),
        (f"cert={FINGERPRINT}", CardLocator(certificate=FINGERPRINT)),
        (f"slot=82;cert={FINGERPRINT}", CardLocator("", FINGERPRINT, "82")),
    ],
)
def test_uri_says_which_card(text: str, locator: CardLocator) -> None:
    assert CardLocator.parse(text) == locator
    assert CardLocator.parse(str(locator)) == locator


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "makes no sense"),
        ("reader=0", "a part 'reader=0' that makes no sense"),
        ("Virtual PCD 00 00", "makes no sense"),
        ("serial", "makes no sense"),
        ("serial=00;serial=01", "makes no sense"),
        ("slot=9a", "has to give a serial or a certificate"),
        (f"serial=00;cert={FINGERPRINT}", "has to give a serial or a certificate"),
        ("serial=", "hexadecimal"),
        ("serial=123", "hexadecimal"),
        ("serial=" + "00" * 33, "1 to 32 octets"),
        ("cert=00", "64 hexadecimal digits"),
        ("serial=00;slot=9b", "9a, 9c, 9d, 9e or 82 to 95"),
        ("serial=00;slot=96", "9a, 9c, 9d, 9e or 82 to 95"),
    ],
)
def test_uri_that_names_no_card_is_refused_with_examples(text: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        CardLocator.parse(text)
