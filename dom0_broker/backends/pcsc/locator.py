"""Which card is meant: `serial=HEX` or `cert=SHA256HEX`, and for PIV `;slot=9c`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from vmtoken.errors import InvalidRequest

_EXAMPLES: Final = (
    "use pcsc:serial=HEX or pcsc:cert=HEX (SHA-256 of the certificate), and for a PIV card ;slot=9c behind "
    "it; 'vmtokenctl token discover' shows them"
)
_SERIAL: Final = re.compile(r"(?:[0-9a-f]{2}){1,32}")
_SLOT: Final = re.compile(r"9[acde]|8[2-9a-f]|9[0-5]")
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class CardLocator:
    """A card by what it is, whatever reader it is in. Exactly one of serial and certificate is given."""

    serial: str = ""
    """Hexadecimal: of the FCI of an EAP-TLS card, the GUID of a PIV card."""

    certificate: str = ""
    """Hexadecimal SHA-256 of the leaf on a PIV card."""

    slot: str = ""
    """Of a PIV card, two hexadecimal digits in small letters; empty when the URI names none."""

    def __str__(self) -> str:
        what = f"serial={self.serial}" if self.serial else f"cert={self.certificate}"
        return f"{what};slot={self.slot}" if self.slot else what

    @classmethod
    def parse(cls, text: str) -> CardLocator:
        """What follows 'pcsc:'. Raises `InvalidRequest`."""
        values: dict[str, str] = {}
        for part in text.split(";"):
            key, equals, value = part.partition("=")
            if not equals or key not in {"serial", "cert", "slot"} or key in values:
                raise InvalidRequest(
                    f"The URI 'pcsc:{text}' has a part '{part}' that makes no sense; {_EXAMPLES}."
                )
            values[key] = value.lower()
        if ("serial" in values) is ("cert" in values):
            raise InvalidRequest(f"The URI 'pcsc:{text}' has to give a serial or a certificate; {_EXAMPLES}.")
        _check(text, values)
        return cls(values.get("serial", ""), values.get("cert", ""), values.get("slot", ""))


def _check(text: str, values: dict[str, str]) -> None:
    if not _SERIAL.fullmatch(values.get("serial", "00")):
        raise InvalidRequest(
            f"The serial in 'pcsc:{text}' is not one of 1 to 32 octets in hexadecimal digits."
        )
    if not _FINGERPRINT.fullmatch(values.get("cert", "0" * 64)):
        raise InvalidRequest(f"The certificate in 'pcsc:{text}' is not a SHA-256 in 64 hexadecimal digits.")
    if not _SLOT.fullmatch(values.get("slot", "9a")):
        raise InvalidRequest(
            f"The slot in 'pcsc:{text}' is none of a PIV card; use 9a, 9c, 9d, 9e or 82 to 95."
        )
