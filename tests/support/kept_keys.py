"""The private keys and PINs that a broker keeps, for tests that look for them where they must not be.

As a program it prints them as JSON, for a broker in another machine: the broker's state directory, the token.
"""

from __future__ import annotations

import base64
import contextlib
import json
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_private_key

from dom0_broker.backends.software.keystore import Keystore
from dom0_broker.backends.software.sealing import load_sealing_key
from dom0_broker.safe import Safe
from dom0_broker.store import Store


def private_key_forms(state: Path, token: str) -> tuple[bytes, ...]:
    """The scalar of a software element's P-256 key in the ways that libraries and files hold it."""
    (path,) = (state / "elements").glob(f"{token}*")
    (identity,) = Keystore.load(path, load_sealing_key(state)).contents.identities
    assert identity.private_key is not None
    der = identity.private_key
    key = load_der_private_key(der, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    value = key.private_numbers().private_value
    scalar = value.to_bytes(32, "big")
    start = der.index(scalar)
    first, last = -(-start // 3) * 4, (start + len(scalar)) // 3 * 4
    return (
        scalar,
        value.to_bytes(32, "little"),
        base64.b64encode(der)[first:last],
        scalar.hex().encode(),
        scalar.hex().upper().encode(),
    )


def pins(state: Path) -> dict[str, bytes]:
    """The random PINs that the broker made for its tokens, by the names they are sealed under."""
    safe = Safe(load_sealing_key(state))
    with contextlib.closing(Store(state / "broker.sqlite")) as store:
        records = store.pins()
    sealed = {f"{role} PIN of token {token}": record.sealed for (token, role), record in records.items()}
    return {purpose: safe.open(octets, purpose).reveal() for purpose, octets in sealed.items() if octets}


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    forms = [form.hex() for form in private_key_forms(directory, sys.argv[2])]
    print(json.dumps({"keys": forms, "pins": [pin.hex() for pin in pins(directory).values()]}))
