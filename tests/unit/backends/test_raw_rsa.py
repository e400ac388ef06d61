"""The bare RSA operation; OpenSSL's key verifies what comes out."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from dom0_broker.backends.software import raw_rsa
from vmtoken.emsa import encoded_message
from vmtoken.tls.codes import SignatureScheme

KEY = rsa.generate_private_key(65537, 2048)
CONTENT = b"content"


def test_signature_of_an_encoded_message_verifies() -> None:
    message = encoded_message(SignatureScheme.RSA_PKCS1_SHA256, CONTENT, 2048)
    signature = raw_rsa.private_operation(KEY, message)
    KEY.public_key().verify(signature, CONTENT, padding.PKCS1v15(), hashes.SHA256())
    assert signature == KEY.sign(CONTENT, padding.PKCS1v15(), hashes.SHA256())


@pytest.mark.parametrize("number", [0, 1, 2, 255, 1 << 2000])
def test_any_number_below_the_modulus_is_taken(number: int) -> None:
    result = raw_rsa.private_operation(KEY, number.to_bytes(256, "big"))
    numbers = KEY.public_key().public_numbers()
    assert pow(int.from_bytes(result, "big"), numbers.e, numbers.n) == number


@pytest.mark.parametrize("length", [0, 255, 257])
def test_message_must_be_as_long_as_the_modulus(length: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        raw_rsa.private_operation(KEY, bytes(length))


def test_message_must_be_below_the_modulus() -> None:
    modulus = KEY.public_key().public_numbers().n
    with pytest.raises(ValueError, match="out of range"):
        raw_rsa.private_operation(KEY, modulus.to_bytes(256, "big"))


def test_faulty_result_does_not_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """One wrong half of the CRT would tell the primes to whoever sees the result."""
    right = raw_rsa._crt
    monkeypatch.setattr(raw_rsa, "_crt", lambda numbers, value: right(numbers, value) + numbers.q)
    with pytest.raises(ArithmeticError):
        raw_rsa.private_operation(KEY, bytes(255) + b"\x02")
