"""RSASP1 (RFC 8017 section 5.2.1): the bare private key operation, which `cryptography` does not offer.

A PIV card signs encoded messages that the host padded. Python's `pow` takes a time that depends on its
operands, so they are blinded; and what comes out is checked, for a fault in one half of the CRT would give
the key away. Good enough for an element that is no hardware and says so.
"""

from __future__ import annotations

import math
import secrets

from cryptography.hazmat.primitives.asymmetric import rsa


def private_operation(key: rsa.RSAPrivateKey, message: bytes) -> bytes:
    """The message to the power of the private exponent, as long as the modulus.

    Raises `ValueError` for a message of another length, or one that is no number below the modulus.
    """
    public = key.public_key().public_numbers()
    size = (key.key_size + 7) // 8
    representative = int.from_bytes(message, "big")
    if len(message) != size or representative >= public.n:
        raise ValueError("a message representative out of range")
    blind, unblind = _blinding(public)
    result = _crt(key.private_numbers(), representative * blind % public.n) * unblind % public.n
    if pow(result, public.e, public.n) != representative:
        raise ArithmeticError("an RSA operation went wrong")
    return result.to_bytes(size, "big")


def _blinding(public: rsa.RSAPublicNumbers) -> tuple[int, int]:
    """A random number to the power of the public exponent, and its inverse."""
    while True:
        number = 2 + secrets.randbelow(public.n - 2)
        if math.gcd(number, public.n) == 1:
            return pow(number, public.e, public.n), pow(number, -1, public.n)


def _crt(numbers: rsa.RSAPrivateNumbers, value: int) -> int:
    """Section 5.1.2, step 2b."""
    first, second = pow(value, numbers.dmp1, numbers.p), pow(value, numbers.dmq1, numbers.q)
    return second + (first - second) * numbers.iqmp % numbers.p * numbers.q
