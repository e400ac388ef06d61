"""PKCS#11 keys in SoftHSM: found by URI, made, used; judged by OpenSC, GnuTLS and OpenSSL."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from dom0_broker.backends.base import Kept, Pins
from dom0_broker.backends.pkcs11.backend import Pkcs11Backend
from dom0_broker.backends.pkcs11.codes import Mechanism
from dom0_broker.backends.pkcs11.key import Pkcs11Key
from dom0_broker.backends.pkcs11.uri import Pkcs11Uri
from tests.contract.test_signing_key import VERIFY
from tests.support.pkcs11 import (
    ALGORITHMS,
    LABEL,
    PIN,
    SO_PIN,
    WRONG_PIN,
    Pkcs11Token,
    initialise,
    personalised,
    softhsm,
)
from tests.support.pki import KeyKind, client_identity
from vmtoken.cards.codes import KeyAlgorithm
from vmtoken.errors import (
    Conflict,
    InvalidRequest,
    PinMissing,
    PinRejected,
    TokenNotReady,
    TokenUnavailable,
)
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import SignatureScheme
from vmtoken.token import Assurance

pytestmark = pytest.mark.pkcs11

USER = SecretBytes(PIN)
SOFTHSM2 = "/usr/lib/softhsm/libsofthsm2.so"


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pkcs11Token]:
    with softhsm(tmp_path_factory.mktemp("softhsm"), (LABEL, "other")) as token:
        yield token


def pkcs11_tool(token: Pkcs11Token, *arguments: str, check: bool = True) -> str:
    login = ("--token-label", LABEL, "--login", "--pin", PIN.decode())
    return token.tool("pkcs11-tool", "--module", SOFTHSM2, *login, *arguments, check=check)


def p11tool(token: Pkcs11Token, *arguments: str) -> str:
    return token.tool("p11tool", "--provider", SOFTHSM2, *arguments)


def locator_of(uri: str) -> str:
    return uri.removeprefix("pkcs11:")


# Finding ------------------------------------------------------------------------------------------------


def test_uris_of_p11tool_are_ours_and_ours_are_its(token: Pkcs11Token) -> None:
    holder = personalised(token, name="named / by #1")
    login = ("--login", "--set-pin", PIN.decode(), "pkcs11:token=lab%20one")
    printed = re.findall(r"URL: (\S+)", p11tool(token, "--list-all", *login))
    ours = [uri for uri in map(Pkcs11Uri.parse, printed) if uri.object == "named / by #1"]
    assert {uri.type for uri in ours} == {"private", "public", "cert"}
    for uri in ours:
        with closing(token.backend.open_key(locator_of(str(uri)), USER)) as key:
            assert tuple(key.certificate_chain)[:1] == holder.identity.chain_der[:1]
        assert str(uri.object) in p11tool(token, "--list-all", *login[:3], str(replace(uri, type=None)))


def test_key_is_found_by_each_attribute_alone(token: Pkcs11Token) -> None:
    holder = personalised(token, name="found")
    with closing(token.backend.open_issuer(holder.locator, None, USER)) as issuer:
        key = issuer._session.find(Pkcs11Uri(object="found"))
    serial = re.search(r"serial=(\w+);token=lab", p11tool(token, "--list-tokens"))
    assert key is not None
    assert serial is not None
    identifier = "".join(f"%{octet:02x}" for octet in key.id)
    for place in ("token=lab%20one", f"serial={serial[1]}"):
        for name in ("object=found", f"id={identifier}", f"id={identifier};object=found;type=private"):
            with closing(token.backend.open_key(f"{place};{name}", USER)) as found:
                assert found.certificate_chain


@pytest.mark.parametrize(
    ("locator", "error", "reason"),
    [
        ("object=web01", InvalidRequest, "which token is meant"),
        ("token=lab%20one;slot-id=0", InvalidRequest, "slot"),
        ("token=lab%20one;slot-description=x", InvalidRequest, "slot"),
        ("token=lab%20one;type=data", InvalidRequest, "no key pair"),
        ("token=lab%20one?pin-source=|/bin/echo%201234", InvalidRequest, "not run"),
        ("token=lab%20one;object=nothing", TokenNotReady, "no key at this URI"),
        ("token=lab%20one", Conflict, "several keys"),
        ("token=nothing;object=web01", TokenUnavailable, "No PKCS#11 module shows"),
        ("token=lab%20one;library-version=1;object=x", TokenUnavailable, "No PKCS#11 module shows"),
        ("token=lab%20one;object=x?module-name=nothing", InvalidRequest, "has the name 'nothing'"),
    ],
)
def test_what_is_not_there_or_not_clear_is_said(
    token: Pkcs11Token, locator: str, error: type[Exception], reason: str
) -> None:
    personalised(token, name="one")
    personalised(token, name="two")
    with pytest.raises(error, match=reason):
        token.backend.open_key(locator, USER)


def test_discover_tells_keys_without_a_pin(token: Pkcs11Token) -> None:
    holder = personalised(token, name="discovered")
    found = {each.certificate: each for each in token.backend.discover()}
    entry = found[holder.identity.chain_der[0]]
    assert "ECDSA_SECP256R1_SHA256" in entry.capabilities
    assert "personalisation" in entry.capabilities
    with closing(token.backend.open_key(locator_of(entry.uri), USER)) as key:
        assert tuple(key.certificate_chain) == holder.identity.chain_der[:1]
    empty = [each for each in token.backend.discover() if "token=other" in each.uri]
    assert [bool(each.problem) for each in empty] == [True]


# Using ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [KeyKind.ECDSA_P256, KeyKind.RSA_2048])
def test_openssl_verifies_what_the_key_signs(token: Pkcs11Token, kind: KeyKind, tmp_path: Path) -> None:
    holder = personalised(token, kind, "judged")
    (tmp_path / "key.pem").write_bytes(
        holder.identity.certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "content").write_bytes(b"content")
    with closing(holder.key()) as key:
        (tmp_path / "signature").write_bytes(key.sign(key.schemes[0], b"content"))
    command = ["openssl", "dgst", "-sha256", "-verify", "key.pem", "-signature", "signature"]
    if kind is KeyKind.RSA_2048:
        command += ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32"]
    subprocess.run([*command, "content"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("mechanism", list(Mechanism), ids=lambda mechanism: mechanism.name)
def test_each_mechanism_alone_makes_signatures_that_verify(token: Pkcs11Token, mechanism: Mechanism) -> None:
    """As in modules that have less than SoftHSM; it has no CKM_ECDSA_SHA256."""
    kinds = {"ECDSA_SHA384": KeyKind.ECDSA_P384, "ECDSA": KeyKind.ECDSA_P256, "EDDSA": KeyKind.ED25519}
    kind = next((kinds[name] for name in kinds if name in mechanism.name), KeyKind.RSA_2048)
    holder = personalised(token, kind, "restricted")
    module, info = token.backend._place(Pkcs11Uri.parse(f"pkcs11:{holder.locator}"))
    session = module.open(replace(info, mechanisms=frozenset({int(mechanism)})), USER)
    key = Pkcs11Key.find(session, Pkcs11Uri(object="restricted"), USER, holder.kept)
    with closing(key):
        assert key.schemes
        if mechanism not in info.mechanisms:
            with pytest.raises(TokenNotReady, match=f"lists {mechanism.name}, but does not sign"):
                key.sign(key.schemes[0], b"content")
            return
        for scheme in key.schemes:
            VERIFY[scheme](holder.identity.certificate.public_key(), key.sign(scheme, b"content"), b"content")


def test_token_of_softhsm_is_software(token: Pkcs11Token) -> None:
    with closing(personalised(token, name="assured").token()) as opened:
        description = opened.describe()
    assert description.assurance is Assurance.SOFTWARE
    assert description.application == "PKCS#11, SoftHSM v2"
    assert re.fullmatch("[0-9a-f]{16}", description.serial)


def test_pin_is_asked_for_each_signature_of_a_key_that_wants_it(token: Pkcs11Token) -> None:
    """CKA_ALWAYS_AUTHENTICATE; without the PIN, C_Sign says CKR_USER_NOT_LOGGED_IN."""
    options = ("--key-type", "EC:prime256v1", "--label", "strict", "--id", "77", "--always-auth")
    pkcs11_tool(token, "--keypairgen", *options)
    with closing(token.backend.open_key(token.locator("strict"), USER)) as key:
        for _ in range(3):
            assert key.sign(SignatureScheme.ECDSA_SECP256R1_SHA256, b"content")
        assert key._pin is not None
        assert len(key._pin) == len(PIN)
    assert len(key._pin) == 0


_PUBLIC_KEY = f"""
import sys, pkcs11
from pkcs11 import Attribute, KeyType, MechanismFlag
token = pkcs11.lib({SOFTHSM2!r}).get_token(token_label={LABEL!r})
with token.open(rw=True, user_pin={PIN.decode()!r}) as session:
    p256 = bytes.fromhex("06082a8648ce3d030107")
    domain = session.create_domain_parameters(KeyType.EC, {{Attribute.EC_PARAMS: p256}}, local=True)
    domain.generate_keypair(label="open", id=b"\\x55", store=True, capabilities=MechanismFlag.SIGN
        | MechanismFlag.VERIFY, private_template={{Attribute.PRIVATE: False}})
"""


def test_key_that_is_not_private_needs_no_pin(token: Pkcs11Token) -> None:
    """CKA_PRIVATE is false. It is made in another process, since ours loads no module."""
    subprocess.run([sys.executable, "-c", _PUBLIC_KEY], env={**os.environ, **token.environment}, check=True)
    with closing(token.backend.open_key(token.locator("open"), None)) as key:
        assert key.schemes == (SignatureScheme.ECDSA_SECP256R1_SHA256,)


def test_key_behind_a_pin_is_not_opened_without(token: Pkcs11Token) -> None:
    holder = personalised(token, name="behind")
    with pytest.raises(PinMissing, match="needs its user PIN"):
        token.backend.open_key(holder.locator, None)


def test_pin_of_a_file_comes_before_another(token: Pkcs11Token, tmp_path: Path) -> None:
    holder = personalised(token, name="sourced")
    pin = tmp_path / "lab.pin"
    pin.touch(0o600)
    pin.write_bytes(PIN + b"\n")
    locator = f"{holder.locator}?pin-source=file:{pin}"
    for given in (None, SecretBytes(WRONG_PIN)):
        with closing(token.backend.open_key(locator, given)) as key:
            assert key.schemes


def test_kept_chain_of_another_key_is_not_shown(token: Pkcs11Token) -> None:
    holder = personalised(token, name="kept")
    other = client_identity()
    with closing(token.backend.open_key(holder.locator, USER, Kept(other.chain_der))) as key:
        assert tuple(key.certificate_chain) == holder.identity.chain_der[:1]


# Making ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [*ALGORITHMS.values(), KeyAlgorithm.RSA_3072], ids=lambda a: a.name)
def test_key_is_made_and_its_request_is_signed_inside(
    token: Pkcs11Token, algorithm: KeyAlgorithm, tmp_path: Path
) -> None:
    with closing(token.backend.open_issuer(token.locator("made"), None, USER)) as issuer:
        info = issuer.generate_key(algorithm)
        assert issuer.public_key() == info
        request = issuer.certificate_request("CN=web01,O=Example", ["web01.example"])
    parsed = x509.load_der_x509_csr(request)
    assert parsed.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == info
    (tmp_path / "request.der").write_bytes(request)
    command = ["openssl", "req", "-inform", "DER", "-in", tmp_path / "request.der", "-verify", "-noout"]
    subprocess.run(command, check=True, capture_output=True)


def test_key_may_sign_and_nothing_else_and_never_leaves(token: Pkcs11Token) -> None:
    with closing(token.backend.open_issuer(token.locator("guarded"), None, USER)) as issuer:
        issuer.generate_key(KeyAlgorithm.RSA_2048)
    listed = pkcs11_tool(token, "--list-objects", "--type", "privkey")
    entry = next(each for each in listed.split("Private Key Object") if "guarded" in each)
    assert re.search(r"Usage: +sign\n", entry)
    assert re.search(r"Access: +sensitive, always sensitive, never extract", entry)


def test_new_key_takes_the_place_of_the_old_one_only(token: Pkcs11Token) -> None:
    bystander, replaced = personalised(token, name="bystander"), personalised(token, name="replaced")
    with closing(token.backend.open_issuer(replaced.locator, None, USER)) as issuer:
        before = issuer.public_key()
        assert issuer.generate_key(KeyAlgorithm.ECDSA_P384) != before
    with closing(token.backend.open_key(replaced.locator, USER, replaced.kept)) as key:
        assert tuple(key.certificate_chain) == ()
    with closing(bystander.key()) as key:
        assert key.sign(key.schemes[0], b"content")


def test_key_that_is_not_named_is_not_made(token: Pkcs11Token) -> None:
    with (
        closing(token.backend.open_issuer("token=other", None, USER)) as issuer,
        pytest.raises(InvalidRequest, match="add object= or id="),
    ):
        issuer.generate_key(KeyAlgorithm.ECDSA_P256)


def test_id_of_the_uri_becomes_that_of_the_key(token: Pkcs11Token) -> None:
    with closing(token.backend.open_issuer("token=lab%20one;id=%ca%fe", None, USER)) as issuer:
        issuer.generate_key(KeyAlgorithm.ECDSA_P256)
    assert "ID:         cafe" in pkcs11_tool(token, "--list-objects", "--type", "privkey")


def test_algorithm_that_pkcs11_lacks_is_a_conflict(token: Pkcs11Token) -> None:
    with (
        closing(token.backend.open_issuer(token.locator("quantum"), None, USER)) as issuer,
        pytest.raises(Conflict, match="ML_DSA_65"),
    ):
        issuer.generate_key(KeyAlgorithm.ML_DSA_65)


def test_certificate_of_another_key_is_refused_and_the_old_one_stays(token: Pkcs11Token) -> None:
    holder = personalised(token, name="installed")
    with closing(token.backend.open_issuer(holder.locator, None, USER)) as issuer:
        for chain in (client_identity().chain_der, holder.identity.chain_der[::-1], (b"nonsense",), ()):
            with pytest.raises(Conflict, match="belongs to another key"):
                issuer.install_certificate_chain(chain)
    with closing(token.backend.open_key(holder.locator, USER)) as key:
        assert tuple(key.certificate_chain) == holder.identity.chain_der[:1]


def test_new_certificate_takes_the_place_of_the_old_one_in_the_token(token: Pkcs11Token) -> None:
    holder = personalised(token, name="renewed")
    with closing(token.backend.open_issuer(holder.locator, None, USER)) as issuer:
        issuer.install_certificate_chain(holder.identity.chain_der)
        issuer.install_certificate_chain(holder.identity.chain_der)
    assert pkcs11_tool(token, "--list-objects", "--type", "cert").count("label:      renewed") == 1


def test_destroyed_key_is_gone_with_all_that_belongs_to_it(token: Pkcs11Token) -> None:
    holder = personalised(token, name="doomed")
    with closing(token.backend.open_issuer(holder.locator, None, USER)) as issuer:
        issuer.destroy_key()
        with pytest.raises(Conflict, match="no key"):
            issuer.destroy_key()
        with pytest.raises(Conflict, match="no key"):
            issuer.public_key()
    assert "doomed" not in pkcs11_tool(token, "--list-objects")


def test_pins_of_a_token_are_not_ours_to_choose(token: Pkcs11Token) -> None:
    with pytest.raises(Conflict, match="vmtokenctl token create"):
        token.backend.create(token.locator("created"), Pins(SecretBytes(b"random"), SecretBytes(b"random")))


def test_key_is_made_under_a_pin_of_a_file_and_deleted_so(token: Pkcs11Token, tmp_path: Path) -> None:
    pin = tmp_path / "lab.pin"
    pin.touch(0o600)
    pin.write_bytes(PIN)
    locator = f"{token.locator('created')}?pin-source=file:{pin}"
    with closing(token.backend.open_issuer(locator, None, None)) as issuer:
        issuer.generate_key(KeyAlgorithm.ECDSA_P256)
    assert "created" in pkcs11_tool(token, "--list-objects")
    with pytest.raises(Conflict, match="PIN"):
        token.backend.delete(token.locator("created"))
    token.backend.delete(locator)
    assert "created" not in pkcs11_tool(token, "--list-objects")


def test_personalisation_needs_the_pin(token: Pkcs11Token) -> None:
    with pytest.raises(PinMissing):
        token.backend.open_issuer(token.locator("made"), SecretBytes(SO_PIN), None)


# PINs -------------------------------------------------------------------------------------------------------


def test_user_pin_is_changed_and_unblocked(tmp_path: Path) -> None:
    with softhsm(tmp_path) as token:
        holder = personalised(token)
        backend, locator = token.backend, holder.locator
        backend.change_user_pin(locator, USER, SecretBytes(b"4321"))
        with pytest.raises(PinRejected):
            backend.change_user_pin(locator, USER, SecretBytes(b"1111"))
        backend.open_key(locator, SecretBytes(b"4321")).close()
        with pytest.raises(PinRejected, match="SO PIN"):
            backend.unblock_user_pin(locator, SecretBytes(b"000000"), SecretBytes(b"1111"))
        backend.unblock_user_pin(locator, SecretBytes(SO_PIN), USER)
        with closing(holder.key()) as key:
            assert key.sign(key.schemes[0], b"content")
        for new in (b"12", b"1" * 300):
            with pytest.raises(InvalidRequest, match="does not take such a new PIN"):
                backend.change_user_pin(locator, USER, SecretBytes(new))
        holder.key().close()


def test_key_in_use_survives_a_change_of_the_pin_and_heals_after_an_unblock(tmp_path: Path) -> None:
    with softhsm(tmp_path) as token:
        holder = personalised(token)
        with closing(holder.key()) as key:
            token.backend.change_user_pin(holder.locator, USER, SecretBytes(b"4321"))
            assert key.sign(key.schemes[0], b"content")
            token.backend.open_key(holder.locator, SecretBytes(b"4321")).close()
            token.backend.unblock_user_pin(holder.locator, SecretBytes(SO_PIN), SecretBytes(b"7777"))
            with pytest.raises(TokenUnavailable, match="opened anew"):
                key.sign(key.schemes[0], b"content")
        token.backend.open_key(holder.locator, SecretBytes(b"7777")).close()


def test_pin_in_a_file_is_not_changed_here(token: Pkcs11Token) -> None:
    locator = f"{token.locator()}?pin-source=file:/etc/lab.pin"
    with pytest.raises(Conflict, match="then in the file"):
        token.backend.change_user_pin(locator, USER, SecretBytes(b"4321"))
    with pytest.raises(Conflict, match="then in the file"):
        token.backend.unblock_user_pin(locator, SecretBytes(SO_PIN), SecretBytes(b"4321"))


def test_token_that_came_later_is_found(tmp_path: Path) -> None:
    """SoftHSM looks for tokens only when it is initialised."""
    with softhsm(tmp_path) as token:
        with pytest.raises(TokenUnavailable):
            token.backend.open_key("token=late;object=x", USER)
        initialise(token, "late")
        with pytest.raises(TokenNotReady):
            token.backend.open_key("token=late;object=x", USER)


def test_keys_of_one_token_have_their_pin_from_it(tmp_path: Path) -> None:
    with softhsm(tmp_path, ["lab", "other"]) as token:
        holder = token.backend.pin_holder("token=lab;object=web01")
        assert re.fullmatch(r"pkcs11:token=lab;manufacturer=SoftHSM%20project;serial=[0-9a-f]{16}", holder)
        whole = holder.removeprefix("pkcs11:")
        source = "pin-source=file:/etc/pin"
        assert token.backend.pin_holder("token=lab;id=%01") == holder
        assert token.backend.pin_holder("token=other") != holder
        assert token.backend.pin_holder(f"token=lab?{source}") == f"{holder}?{source}"
        with pytest.raises(TokenUnavailable):
            token.backend.pin_holder("token=lost")
    with closing(Pkcs11Backend()) as nobody:  # what says all is not asked for
        assert nobody.pin_holder(f"{whole};object=web01") == holder
