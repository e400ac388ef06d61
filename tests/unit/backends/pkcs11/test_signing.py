"""Which mechanisms serve which signature schemes, and keys as PKCS#11 tells them."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from dom0_broker.backends.pkcs11.codes import KeyType, Mechanism
from dom0_broker.backends.pkcs11.objects import EC_PARAMS, ED25519_PARAMS, public_key, spki
from dom0_broker.backends.pkcs11.signing import ways_of
from vmtoken.tls.codes import SignatureScheme as Scheme

P256 = ec.generate_private_key(ec.SECP256R1()).public_key()
P384 = ec.generate_private_key(ec.SECP384R1()).public_key()
ED25519 = ed25519.Ed25519PrivateKey.generate().public_key()
RSA = rsa.generate_private_key(65537, 2048).public_key()

PSS = [Scheme.RSA_PSS_RSAE_SHA256, Scheme.RSA_PSS_RSAE_SHA384, Scheme.RSA_PSS_RSAE_SHA512]
PKCS1 = [Scheme.RSA_PKCS1_SHA256, Scheme.RSA_PKCS1_SHA384, Scheme.RSA_PKCS1_SHA512]

CASES = [
    (P256, [Mechanism.CKM_ECDSA], [Scheme.ECDSA_SECP256R1_SHA256]),
    (P256, [Mechanism.CKM_ECDSA_SHA256], [Scheme.ECDSA_SECP256R1_SHA256]),
    (P256, [Mechanism.CKM_ECDSA_SHA384], []),
    (P256, [Mechanism.CKM_EDDSA, Mechanism.CKM_RSA_PKCS], []),
    (P384, [Mechanism.CKM_ECDSA, Mechanism.CKM_ECDSA_SHA256], [Scheme.ECDSA_SECP384R1_SHA384]),
    (ED25519, [Mechanism.CKM_EDDSA], [Scheme.ED25519]),
    (ED25519, [Mechanism.CKM_ECDSA], []),
    (RSA, [Mechanism.CKM_RSA_PKCS, Mechanism.CKM_RSA_PKCS_PSS], PSS + PKCS1),
    (RSA, [Mechanism.CKM_RSA_PKCS], PKCS1),
    (RSA, [Mechanism.CKM_RSA_PKCS_PSS], PSS),
    (RSA, [Mechanism.CKM_RSA_X_509], PSS + PKCS1),
    (RSA, [Mechanism.CKM_SHA384_RSA_PKCS], [Scheme.RSA_PKCS1_SHA384]),
    (RSA, [Mechanism.CKM_SHA512_RSA_PKCS_PSS], [Scheme.RSA_PSS_RSAE_SHA512]),
    (RSA, [], []),
]


@pytest.mark.parametrize(("key", "mechanisms", "schemes"), CASES, ids=range(len(CASES)))
def test_schemes_follow_the_mechanisms(
    key: rsa.RSAPublicKey, mechanisms: list[Mechanism], schemes: list[Scheme]
) -> None:
    assert list(ways_of(key, mechanisms)) == schemes


def test_the_module_pads_if_it_can() -> None:
    ways = ways_of(RSA, [Mechanism.CKM_RSA_X_509, Mechanism.CKM_RSA_PKCS, Mechanism.CKM_RSA_PKCS_PSS])
    assert ways[Scheme.RSA_PSS_RSAE_SHA256].mechanism is Mechanism.CKM_RSA_PKCS_PSS
    assert ways[Scheme.RSA_PKCS1_SHA256].mechanism is Mechanism.CKM_RSA_PKCS


def test_signature_of_odd_length_is_none() -> None:
    way = ways_of(P256, [Mechanism.CKM_ECDSA])[Scheme.ECDSA_SECP256R1_SHA256]
    for raw in (b"", bytes(63)):
        with pytest.raises(ValueError, match="ECDSA signature"):
            way.finish(raw)


def point(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def octet_string(content: bytes) -> bytes:
    return bytes([4, len(content)]) + content


@pytest.mark.parametrize("wrap", [octet_string, bytes], ids=["as the standard says", "without OCTET STRING"])
def test_point_is_read_in_both_spellings(wrap: type[bytes]) -> None:
    for key, curve in ((P256, "secp256r1"), (P384, "secp384r1")):
        attributes = {"ec_params": EC_PARAMS[curve], "ec_point": wrap(point(key))}
        assert spki(public_key(KeyType.CKK_EC, attributes)) == spki(key)
    raw = ED25519.public_bytes(Encoding.Raw, PublicFormat.Raw)
    for params in ED25519_PARAMS:
        attributes = {"ec_params": params, "ec_point": wrap(raw)}
        assert spki(public_key(KeyType.CKK_EC_EDWARDS, attributes)) == spki(ED25519)


@pytest.mark.parametrize(
    ("key_type", "attributes"),
    [
        (KeyType.CKK_RSA, {}),
        (KeyType.CKK_RSA, {"modulus": b"\1", "public_exponent": b"\3"}),
        (KeyType.CKK_EC, {"ec_params": b"\x06\x05\x2b\x81\x04\x00\x23", "ec_point": point(P256)}),
        (KeyType.CKK_EC, {"ec_params": EC_PARAMS["secp256r1"], "ec_point": point(P256)[:-1]}),
        (KeyType.CKK_EC, {"ec_params": EC_PARAMS["secp256r1"], "ec_point": b""}),
        (KeyType.CKK_EC_EDWARDS, {"ec_params": ED25519_PARAMS[0], "ec_point": bytes(31)}),
        (0x1F, {}),
        (-1, {}),
    ],
)
def test_what_makes_no_key_is_refused(key_type: int, attributes: dict[str, bytes]) -> None:
    with pytest.raises(ValueError):
        public_key(key_type, attributes)
