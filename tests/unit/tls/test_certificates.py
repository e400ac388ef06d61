"""Path validation: what is accepted, and which alert and sentence each refusal has."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp

from tests.support import der
from tests.support.pki import DAY, NOW, SERVER_NAME, Authority, Identity, KeyKind, Usage, pki, server_identity
from vmtoken.tls.certificates import (
    MAX_KNOWN_PATHS,
    CertificateVerifier,
    TrustStore,
    VerifiedServer,
    subject_of,
)
from vmtoken.tls.codes import ProtocolVersion, SignatureScheme
from vmtoken.tls.errors import (
    BadCertificate,
    BadCertificateStatusResponse,
    CertificateExpired,
    CertificateRevoked,
    CertificateUnknown,
    DecryptError,
    PeerError,
    UnknownCa,
    UnsupportedCertificate,
)
from vmtoken.tls.signatures import sign


def verify(identity: Identity, *, name: str = SERVER_NAME, time=NOW, trust=None) -> VerifiedServer:
    trust = trust or TrustStore([pki().root.certificate.public_bytes(Encoding.DER)])
    certified = CertificateVerifier(name, subject_of(name), trust, time).verify(identity.chain_der)
    scheme = certified.public_key.schemes()[0]
    signature = sign(identity.key, scheme, b"content")
    return certified.prove(scheme, ProtocolVersion.TLS_1_3, signature, b"content")


@pytest.mark.parametrize("kind", KeyKind)
def test_a_good_chain_and_a_signature_make_a_verified_server(kind: KeyKind) -> None:
    identity = server_identity(kind)
    server = verify(identity)
    assert server.server_name == SERVER_NAME
    assert server.path == (*identity.chain_der, identity.root_der)
    assert server.leaf == identity.chain_der[0]
    assert server.valid_until == min(c.not_valid_after_utc for c in (*identity.chain, identity.root))


def test_pins_are_digests_of_the_keys_as_the_certificates_hold_them() -> None:
    identity = server_identity(KeyKind.RSA_PSS_2048)
    keys = [
        c.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for c in (*identity.chain, identity.root)
    ]
    keys[0] = der.as_rsa_pss_public_key(keys[0])
    assert verify(identity).spki_sha256 == tuple(hashlib.sha256(key).digest() for key in keys)


@pytest.mark.parametrize("name", ["127.0.0.1", "::1", "localhost"])
def test_addresses_and_further_names_are_found(name: str) -> None:
    assert verify(server_identity(), name=name).server_name == name


@pytest.mark.parametrize("kind", [KeyKind.RSA_2048, KeyKind.ECDSA_P384, KeyKind.ML_DSA_65])
def test_cas_may_have_keys_of_other_kinds(kind: KeyKind) -> None:
    identity = pki(kind).intermediate.issue()
    assert verify(identity, trust=TrustStore([identity.root_der])).path[-1] == identity.root_der


def test_a_self_signed_server_certificate_may_be_the_anchor() -> None:
    identity = server_identity()
    assert verify(identity, trust=TrustStore([identity.chain_der[0]])).path == (identity.chain_der[0],)


def test_certificates_that_do_not_belong_to_the_path_do_no_harm() -> None:
    identity, other = server_identity(), pki(KeyKind.ECDSA_P384).intermediate.certificate
    muddled = Identity(
        identity.kind, identity.key, (identity.chain[0], other, *identity.chain[1:]), identity.root
    )
    assert verify(muddled).path == (*identity.chain_der, identity.root_der)


NO_USAGE = {
    "digital_signature": False,
    "content_commitment": False,
    "key_encipherment": False,
    "data_encipherment": False,
    "key_agreement": False,
    "key_cert_sign": False,
    "crl_sign": False,
    "encipher_only": False,
    "decipher_only": False,
}


def bare_authority(**usage: bool) -> Authority:
    """A CA as old tools make them: no key identifiers, no key usage."""
    key = pki().root.key
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bare")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    if usage:
        builder = builder.add_extension(x509.KeyUsage(**(NO_USAGE | usage)), critical=True)
    return Authority(key, builder.sign(key, hashes.SHA256()))


def test_a_ca_needs_neither_key_identifiers_nor_key_usage() -> None:
    authority = bare_authority()
    identity = authority.issue()
    verify(identity, trust=TrustStore([authority.certificate.public_bytes(Encoding.DER)]))


def test_a_ca_whose_key_usage_forbids_it_is_none() -> None:
    authority = bare_authority(digital_signature=True)
    with pytest.raises(UnknownCa):
        verify(authority.issue(), trust=TrustStore([authority.certificate.public_bytes(Encoding.DER)]))


def leaf(**options) -> Identity:
    return pki().intermediate.issue(**options)


def below_leaf() -> Identity:
    """A chain in which a leaf plays the CA."""
    first = leaf()
    authority = Authority(first.key, first.certificate, (pki().intermediate, pki().root))
    return authority.issue()


def too_long() -> Identity:
    authority = pki().root
    for _ in range(10):
        authority = authority.sub_authority(path_length=None)
    return authority.issue()


UNKNOWN_EXTENSION = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\0")

REFUSALS = {
    "expired": (lambda: leaf(not_after=NOW - DAY), CertificateExpired, "expired on"),
    "not yet valid": (lambda: leaf(not_before=NOW + DAY), CertificateExpired, "not valid before"),
    "expired CA": (
        lambda: pki().root.sub_authority(not_after=NOW - timedelta(hours=1)).issue(),
        CertificateExpired,
        "a CA certificate of the server expired",
    ),
    "another name": (lambda: leaf(name="other.example"), CertificateUnknown, "is for other.example"),
    "no name": (lambda: leaf(dns_names=()), CertificateUnknown, "no subjectAltName"),
    "wildcard over two labels": (lambda: leaf(dns_names=("*.example.org",)), CertificateUnknown, "is for"),
    "for clients": (lambda: leaf(usage=Usage.CLIENT), UnsupportedCertificate, "not for TLS servers"),
    "unknown CA": (lambda: Authority.self_signed("stranger").issue(), UnknownCa, "CN=stranger"),
    "signed by a leaf": (below_leaf, UnknownCa, "no path"),
    "path length exceeded": (
        lambda: pki().intermediate.sub_authority().issue(),
        UnknownCa,
        "no path",
    ),
    "long chain": (too_long, UnknownCa, "no path"),
    "unknown critical extension": (
        lambda: leaf(
            extensions=[(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\0"), True)]
        ),
        PeerError,
        "no path",
    ),
}


@pytest.mark.parametrize("case", REFUSALS, ids=str)
def test_a_chain_is_refused_with_its_reason(case: str) -> None:
    make, error, text = REFUSALS[case]
    with pytest.raises(error, match=text):
        verify(make())


def test_ca_certificates_are_not_servers() -> None:
    authority = pki().intermediate
    chain = Identity(KeyKind.ECDSA_P256, authority.key, authority.path, authority.root)
    with pytest.raises(PeerError):
        verify(chain)


@pytest.mark.parametrize(
    "chain", [(), (b"",), (b"\x30\x03\x02\x01\x01",), (server_identity().chain_der[0][:-1],)]
)
def test_what_is_no_certificate_is_refused(chain: tuple[bytes, ...]) -> None:
    trust = TrustStore([server_identity().root_der])
    with pytest.raises(BadCertificate):
        CertificateVerifier(SERVER_NAME, subject_of(SERVER_NAME), trust, NOW).verify(chain)


def test_names_in_messages_cannot_drive_a_terminal() -> None:
    with pytest.raises(UnknownCa) as caught:
        verify(Authority.self_signed("evil\x1b[2J\nline").issue())
    assert str(caught.value).isprintable()


def test_a_signature_of_another_key_proves_nothing() -> None:
    identity = server_identity()
    trust = TrustStore([identity.root_der])
    verifier = CertificateVerifier(SERVER_NAME, subject_of(SERVER_NAME), trust, NOW)
    certified = verifier.verify(identity.chain_der)
    stranger = leaf()
    scheme = SignatureScheme.ECDSA_SECP256R1_SHA256
    with pytest.raises(DecryptError):
        certified.prove(scheme, ProtocolVersion.TLS_1_3, sign(stranger.key, scheme, b"x"), b"x")


def test_nobody_else_makes_a_verified_server() -> None:
    with pytest.raises(TypeError):
        VerifiedServer("server.example", (b"",), (b"",), NOW, object())


@pytest.mark.parametrize("anchors", [[], [b"no certificate"]])
def test_a_trust_store_needs_anchors_that_parse(anchors: list[bytes]) -> None:
    with pytest.raises(ValueError):
        TrustStore(anchors)


# A path that is known


def test_a_known_path_is_not_verified_again(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = leaf()
    trust = TrustStore([identity.root_der])
    first = verify(identity, trust=trust)
    monkeypatch.setattr(CertificateVerifier, "_verifier", None)
    assert verify(identity, trust=trust) == first


@pytest.mark.parametrize(
    ("name", "time", "error"),
    [
        (SERVER_NAME, NOW + 40 * DAY, CertificateExpired),
        (SERVER_NAME, NOW - 2 * DAY, CertificateExpired),
        ("other.example", NOW, CertificateUnknown),
    ],
)
def test_a_known_path_does_not_stand_for_another_time_or_name(name, time, error) -> None:
    identity = leaf()
    trust = TrustStore([identity.root_der])
    verify(identity, trust=trust)
    with pytest.raises(error):
        verify(identity, trust=trust, name=name, time=time)


def test_a_known_path_does_not_stand_for_other_octets_or_anchors() -> None:
    identity = leaf()
    trust = TrustStore([identity.root_der])
    verify(identity, trust=trust)
    without_intermediate = Identity(identity.kind, identity.key, identity.chain[:1], identity.root)
    with pytest.raises(UnknownCa):
        verify(without_intermediate, trust=trust)
    with pytest.raises(UnknownCa):
        verify(identity, trust=TrustStore([Authority.self_signed().certificate.public_bytes(Encoding.DER)]))


def test_a_trust_store_remembers_no_more_than_its_limit() -> None:
    trust = TrustStore([pki().root.certificate.public_bytes(Encoding.DER)])
    for _ in range(3 * MAX_KNOWN_PATHS):
        verify(leaf(), trust=trust)
    assert len(trust._known) <= MAX_KNOWN_PATHS


def test_the_staple_of_a_known_path_is_verified_each_time() -> None:
    identity = leaf()
    trust = TrustStore([identity.root_der])
    verifier = CertificateVerifier(SERVER_NAME, subject_of(SERVER_NAME), trust, NOW)
    good = pki().intermediate.ocsp_response(identity.certificate)
    revoked = pki().intermediate.ocsp_response(identity.certificate, ocsp.OCSPCertStatus.REVOKED)
    verifier.verify(identity.chain_der, (good,))
    with pytest.raises(CertificateRevoked):
        verifier.verify(identity.chain_der, (revoked,))


def test_a_certificate_that_demands_a_staple_is_refused_without_one() -> None:
    """RFC 7633."""
    feature = x509.TLSFeature([x509.TLSFeatureType.status_request])
    identity = leaf(extensions=[(feature, False)])
    verifier = CertificateVerifier(SERVER_NAME, subject_of(SERVER_NAME), TrustStore([identity.root_der]), NOW)
    staple = pki().intermediate.ocsp_response(identity.certificate)
    verifier.verify(identity.chain_der, (staple, None))
    for staples in ((), (None,), (None, staple)):
        with pytest.raises(BadCertificateStatusResponse):
            verifier.verify(identity.chain_der, staples)


def issued_by_hand(key, digest) -> Identity:
    """A leaf that an honest CA signed although it is weak."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(pki().intermediate.certificate.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=True)
    )
    certificate = builder.sign(pki().intermediate.key, digest)
    return Identity(KeyKind.ECDSA_P256, key, (certificate, *pki().intermediate.path), pki().root.certificate)


WEAK = {
    "RSA of 1024 bits": lambda: issued_by_hand(rsa.generate_private_key(65537, 1024), hashes.SHA256()),
    "P-192": lambda: issued_by_hand(ec.generate_private_key(ec.SECP192R1()), hashes.SHA256()),
    "P-224": lambda: issued_by_hand(ec.generate_private_key(ec.SECP224R1()), hashes.SHA256()),
}


@pytest.mark.parametrize("case", WEAK, ids=str)
def test_a_weak_key_is_refused(case: str) -> None:
    identity = WEAK[case]()
    verifier = CertificateVerifier(SERVER_NAME, subject_of(SERVER_NAME), TrustStore([identity.root_der]), NOW)
    with pytest.raises(UnsupportedCertificate, match="weak"):
        verifier.verify(identity.chain_der)
