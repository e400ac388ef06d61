"""Data objects of PIV cards; what tools and standards made must be read, and nothing must hurt."""

from __future__ import annotations

import gzip

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pki import KeyKind, client_identity, generate_key
from vmtoken.cards.piv_codes import Algorithm
from vmtoken.cards.piv_objects import (
    MAX_CERTIFICATE,
    MAX_CERTIFICATE_OBJECT,
    ApplicationTemplate,
    algorithm_of,
    decode_certificate,
    decode_public_key,
    encode_certificate,
    encode_public_key,
    guid,
)
from vmtoken.codec import DecodeError
from vmtoken.iso7816.tlv import encode_tlv

CHUID_OF_YUBICO_PIV_TOOL = (
    "3019d4e739da739ced39ce739d836858210842108421c84210c3eb34107631fd1eb02509428b88c253034b09af"
    "350832303330303130313e00fe00"
)
"""What `yubico-piv-tool -a set-chuid` wrote."""

TEMPLATE_OF_YUBIKEY_4 = "61114f0600001000010079074f05a000000308"

DER = client_identity().chain_der[0]


def test_serial_is_the_guid_of_the_chuid() -> None:
    assert guid(bytes.fromhex(CHUID_OF_YUBICO_PIV_TOOL)) == "7631fd1eb02509428b88c253034b09af"


@pytest.mark.parametrize("chuid", ["", "3E00", "3410" + "00" * 16, "3400"])
def test_chuid_without_guid_gives_no_serial(chuid: str) -> None:
    assert guid(bytes.fromhex(chuid)) == ""


def test_guid_of_another_length_is_none() -> None:
    with pytest.raises(DecodeError):
        guid(bytes.fromhex("340112"))


def test_template_of_a_real_card_says_little() -> None:
    template = ApplicationTemplate.decode(bytes.fromhex(TEMPLATE_OF_YUBIKEY_4))
    assert template == ApplicationTemplate()
    assert not template.is_software


@pytest.mark.parametrize("info", ["00", "04", ""])
def test_certificate_is_read_plain(info: str) -> None:
    octets = encode_tlv(0x70, DER) + encode_tlv(0x71, bytes.fromhex(info)) + encode_tlv(0xFE, b"")
    assert decode_certificate(octets) == DER


@pytest.mark.parametrize("info", ["01", "80", "05"])
def test_certificate_is_read_compressed_however_cards_say_it(info: str) -> None:
    octets = encode_tlv(0x70, gzip.compress(DER)) + encode_tlv(0x71, bytes.fromhex(info))
    assert decode_certificate(octets) == DER


@pytest.mark.parametrize("size", [500, 1800, 1900, 20_000])
def test_certificate_comes_back_whatever_its_length(size: int) -> None:
    octets = (DER * 50)[:size]
    encoded = encode_certificate(octets)
    assert decode_certificate(encoded) == octets
    assert len(encoded) <= MAX_CERTIFICATE_OBJECT


@pytest.mark.parametrize(
    "compressed",
    [
        gzip.compress(bytes(MAX_CERTIFICATE + 1)),
        gzip.compress(bytes(1 << 24)),
        gzip.compress(DER)[:-9],
        b"\x1f\x8b",
        DER,
        b"",
    ],
    ids=["a little too long", "a bomb", "cut off", "only magic", "not compressed", "nothing"],
)
def test_bombs_and_rubbish_are_refused(compressed: bytes) -> None:
    with pytest.raises(DecodeError, match="compressed"):
        decode_certificate(encode_tlv(0x70, compressed) + bytes.fromhex("710101"))


@pytest.mark.parametrize("kind", [KeyKind.ECDSA_P256, KeyKind.ECDSA_P384, KeyKind.RSA_2048])
def test_public_key_comes_back(kind: KeyKind) -> None:
    key = generate_key(kind).public_key()
    algorithm = algorithm_of(key)
    assert algorithm is not None
    encoded = encode_public_key(key)  # type: ignore[arg-type]
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert decode_public_key(algorithm, encoded) == info


@pytest.mark.parametrize(
    ("algorithm", "octets"),
    [
        (Algorithm.ECC_P256, "7F49 43 86 41 04" + "11" * 64),
        (Algorithm.ECC_P256, "7F49 02 86 00"),
        (Algorithm.ECC_P256, "7F49 00"),
        (Algorithm.ECC_P256, "30 00"),
        (Algorithm.RSA_2048, "7F49 0A 81 03 C0FFEF 82 03 010001"),
        (Algorithm.RSA_2048, "7F49 05 82 03 010001"),
    ],
    ids=["off the curve", "empty point", "nothing", "another tag", "short modulus", "no modulus"],
)
def test_senseless_public_keys_are_refused(algorithm: Algorithm, octets: str) -> None:
    with pytest.raises(DecodeError):
        decode_public_key(algorithm, bytes.fromhex(octets))


@pytest.mark.parametrize("exponent", [1, 3])
def test_small_exponents_are_refused(exponent: int) -> None:
    modulus = generate_key(KeyKind.RSA_2048).public_key().public_numbers().n  # type: ignore[union-attr]
    fields = encode_tlv(0x81, modulus.to_bytes(256, "big")) + encode_tlv(0x82, bytes((exponent,)))
    with pytest.raises(DecodeError):
        decode_public_key(Algorithm.RSA_2048, encode_tlv(0x7F49, fields))


@given(st.binary(max_size=80))
def test_any_octets_parse_or_raise_decode_error(octets: bytes) -> None:
    for decode in (
        guid,
        decode_certificate,
        ApplicationTemplate.decode,
        lambda value: decode_public_key(Algorithm.ECC_P256, value),
        lambda value: decode_public_key(Algorithm.RSA_2048, value),
    ):
        try:
            decode(octets)
        except DecodeError:
            continue
