"""The PIV application of the software element, judged by OpenSC and yubico-piv-tool over pcscd and vpcd."""

from __future__ import annotations

import contextlib
import gzip
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from dom0_broker.backends.software.backend import SoftwareBackend
from dom0_broker.backends.software.piv_store import PivSecrets
from tests.support.cards import NAME
from tests.support.pcscd import Pcscd, pcscd
from tests.support.piv import YUBIKEY_4_ATR, PivHolder, certified, personalised, piv_backend, piv_issuer
from tests.support.pki import KeyKind, client_identity
from tests.support.tools import tool
from vmtoken.cards.codes import KeyAlgorithm
from vmtoken.cards.piv import PivCard
from vmtoken.cards.piv_codes import Slot
from vmtoken.secret import SecretBytes

pytestmark = pytest.mark.pcsc

PIN, PUK, KEY = "123456", "12345678", "010203040506070801020304050607080102030405060708"
"""Those of the factory: some tools know no others for the management key."""

SLOTS = {
    Slot.AUTHENTICATION: KeyKind.ECDSA_P256,
    Slot.SIGNATURE: KeyKind.ECDSA_P384,
    Slot.KEY_MANAGEMENT: KeyKind.RSA_2048,
    Slot.CARD_AUTHENTICATION: KeyKind.ECDSA_P256,
    Slot.RETIRED_1: KeyKind.RSA_2048,
}

Run = Callable[..., str]
"""Runs a program beside the card, demands an exit code (0 unless said, None for any), gives its output."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pcscd]:
    with pcscd(tmp_path_factory.mktemp("pcscd"), readers=2) as daemon:
        yield daemon


def runner(daemon: Pcscd, directory: Path) -> Run:
    environment = {**os.environ, **daemon.environment, "XDG_CACHE_HOME": str(directory), "LC_ALL": "C"}

    def run(*command: str, code: int | None = 0, env: dict[str, str] | None = None) -> str:
        tool(command[0])
        done = subprocess.run(
            command,
            env=environment | (env or {}),
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert code in (None, done.returncode), done.stdout
        return done.stdout

    return run


@pytest.fixture(scope="module")
def holders(tmp_path_factory: pytest.TempPathFactory) -> dict[Slot, PivHolder]:
    backend = piv_backend(tmp_path_factory.mktemp("elements"), PivSecrets.well_known())
    owner = PivSecrets.well_known()
    return {slot: personalised(backend, kind, slot, owner) for slot, kind in SLOTS.items()}


@pytest.fixture(scope="module")
def run(
    daemon: Pcscd, holders: dict[Slot, PivHolder], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Run]:
    """Beside a card with keys in `SLOTS`, whose secrets nobody changes."""
    card = next(iter(holders.values())).connect()
    with daemon.readers[0].holding(card, YUBIKEY_4_ATR):
        yield runner(daemon, tmp_path_factory.mktemp("tools"))


@pytest.fixture
def blank(tmp_path: Path) -> SoftwareBackend:
    return piv_backend(tmp_path / "elements", PivSecrets.well_known())


@pytest.fixture
def change(daemon: Pcscd, blank: SoftwareBackend, tmp_path: Path) -> Iterator[Run]:
    """Beside a card of its own, without keys."""
    with daemon.readers[1].holding(blank.connect(NAME), YUBIKEY_4_ATR):
        yield runner(daemon, tmp_path)


def public_key(holder: PivHolder) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    key = holder.identity.certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
    return key


def test_opensc_knows_the_card(run: Run) -> None:
    assert "Personal Identity Verification Card" in run("opensc-tool", "-r", "0", "-n")


def test_opensc_lists_certificates_keys_and_pins(run: Run) -> None:
    listed = run("pkcs15-tool", "-r", "0", "--list-certificates", "--list-keys", "--list-pins")
    for name in ("PIV AUTH key", "SIGN key", "KEY MAN key", "CARD AUTH key", "PIV PUK"):
        assert f"[{name}]" in listed
    assert listed.count("X.509 Certificate [") == 4


def test_opensc_reads_the_certificate(run: Run, holders: dict[Slot, PivHolder]) -> None:
    pem = run("pkcs15-tool", "-r", "0", "--read-certificate", "01")
    begin = pem.index("-----BEGIN")
    assert x509.load_pem_x509_certificate(pem[begin:].encode()) == (
        holders[Slot.AUTHENTICATION].identity.certificate
    )


def test_pkcs11_tool_finds_no_errors(run: Run) -> None:
    """Signatures, verification, decryption and random numbers, over OpenSC's PKCS#11 module."""
    assert "No errors" in run("pkcs11-tool", "--slot", "0", "--login", "--pin", PIN, "--test")


@pytest.mark.parametrize(
    ("slot", "object_id", "digest"),
    [
        (Slot.AUTHENTICATION, "01", hashes.SHA256()),
        (Slot.SIGNATURE, "02", hashes.SHA384()),
        (Slot.CARD_AUTHENTICATION, "04", hashes.SHA256()),
    ],
    ids=str,
)
def test_pkcs11_tool_signs_with_ecdsa(
    run: Run,
    holders: dict[Slot, PivHolder],
    tmp_path: Path,
    slot: Slot,
    object_id: str,
    digest: hashes.HashAlgorithm,
) -> None:
    content = os.urandom(digest.digest_size)
    (tmp_path / "digest").write_bytes(content)
    pkcs11_sign(run, tmp_path, "ECDSA", object_id, "digest")
    both = (tmp_path / "signature").read_bytes()
    half = len(both) // 2
    signature = encode_dss_signature(int.from_bytes(both[:half], "big"), int.from_bytes(both[half:], "big"))
    key = public_key(holders[slot])
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(signature, content, ec.ECDSA(Prehashed(digest)))


def test_pkcs11_tool_signs_with_rsa(run: Run, holders: dict[Slot, PivHolder], tmp_path: Path) -> None:
    (tmp_path / "content").write_bytes(b"what the handshake signs")
    key = public_key(holders[Slot.KEY_MANAGEMENT])
    assert isinstance(key, rsa.RSAPublicKey)
    pkcs11_sign(run, tmp_path, "SHA256-RSA-PKCS", "03", "content")
    signature = (tmp_path / "signature").read_bytes()
    key.verify(signature, b"what the handshake signs", padding.PKCS1v15(), hashes.SHA256())


def pkcs11_sign(run: Run, directory: Path, mechanism: str, object_id: str, name: str) -> None:
    files = ("--input-file", str(directory / name), "--output-file", str(directory / "signature"))
    chosen = ("--slot", "0", "--login", "--pin", PIN, "--sign", "-m", mechanism, "--id", object_id)
    run("pkcs11-tool", *chosen, *files)


def yubico(run: Run, *options: str, reader: str = "Virtual 00 00 00", code: int = 0) -> str:
    return run("yubico-piv-tool", "-r", reader, *options, code=code)


def test_yubico_piv_tool_reads_the_whole_card(run: Run, holders: dict[Slot, PivHolder]) -> None:
    status = yubico(run, "-a", "status")
    for slot, holder in holders.items():
        fingerprint = holder.identity.certificate.fingerprint(hashes.SHA256()).hex()
        assert fingerprint in status.partition(f"Slot {slot:02x}:")[2]
    assert holders[Slot.AUTHENTICATION].key().serial in status


@pytest.mark.parametrize("slot", SLOTS, ids=str)
def test_yubico_piv_tool_takes_the_signatures(run: Run, slot: Slot) -> None:
    name = f"{slot:02x}"
    yubico(run, "-a", "read-certificate", "-s", name, "-o", f"{name}.pem")
    proof = ("-a", "test-signature", "-s", name, "-i", f"{name}.pem")
    assert "Successful" in yubico(run, "-a", "verify-pin", "-P", PIN, *proof)


def test_yubico_piv_tool_decrypts(run: Run) -> None:
    yubico(run, "-a", "read-certificate", "-s", "9d", "-o", "d.pem")
    proof = ("-a", "test-decipher", "-s", "9d", "-i", "d.pem")
    assert "Successfully performed RSA decryption" in yubico(run, "-a", "verify-pin", "-P", PIN, *proof)


def test_key_of_card_authentication_needs_no_pin_and_the_others_do(run: Run) -> None:
    for name, code in (("9e", 0), ("9a", 1)):
        yubico(run, "-a", "read-certificate", "-s", name, "-o", f"{name}.pem")
        yubico(run, "-a", "test-signature", "-s", name, "-i", f"{name}.pem", code=code)


SECOND = "Virtual 00 00 01"


@pytest.mark.parametrize("algorithm", ["ECCP256", "ECCP384", "RSA2048"])
def test_yubico_piv_tool_generates_and_imports(change: Run, tmp_path: Path, algorithm: str) -> None:
    generated = ("-a", "generate", "-s", "9a", "-A", algorithm, "-o", "key.pem")
    assert "Successfully generated" in yubico(change, f"-k{KEY}", *generated, reader=SECOND)
    key = load_pem_public_key((tmp_path / "key.pem").read_bytes())
    identity = certified(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    (tmp_path / "certificate.pem").write_bytes(identity.certificate.public_bytes(Encoding.PEM))
    imported = ("-a", "import-certificate", "-s", "9a", "-i", "certificate.pem")
    yubico(change, f"-k{KEY}", *imported, reader=SECOND)
    proof = ("-a", "test-signature", "-s", "9a", "-i", "certificate.pem")
    assert "Successful" in yubico(change, "-a", "verify-pin", "-P", PIN, *proof, reader=SECOND)
    yubico(change, f"-k{KEY}", "-a", "delete-certificate", "-s", "9a", reader=SECOND)
    yubico(change, "-a", "read-certificate", "-s", "9a", reader=SECOND, code=1)


def test_wrong_management_key_changes_nothing(change: Run) -> None:
    generated = ("-a", "generate", "-s", "9a", "-A", "ECCP256")
    refused = yubico(change, f"-k{'00' * 24}", *generated, reader=SECOND, code=1)
    assert "Failed authentication" in refused


def test_yubico_piv_tool_changes_and_unblocks_pins(change: Run) -> None:
    for left in (2, 1):
        refused = yubico(change, "-a", "verify-pin", "-P", "999999", reader=SECOND, code=1)
        assert f"{left} tries left" in refused
    yubico(change, "-a", "verify-pin", "-P", "999999", reader=SECOND, code=1)
    assert "blocked" in yubico(change, "-a", "verify-pin", "-P", PIN, reader=SECOND, code=1)
    yubico(change, "-a", "unblock-pin", "-P", PUK, "-N", "222222", reader=SECOND)
    yubico(change, "-a", "change-pin", "-P", "222222", "-N", "33333333", reader=SECOND)
    yubico(change, "-a", "change-puk", "-P", PUK, "-N", "87654321", reader=SECOND)
    yubico(change, "-a", "unblock-pin", "-P", PUK, "-N", "444444", reader=SECOND, code=1)
    assert "Successfully verified" in yubico(change, "-a", "verify-pin", "-P", "33333333", reader=SECOND)


def test_yubico_piv_tool_sets_another_chuid(change: Run) -> None:
    before = yubico(change, "-a", "status", reader=SECOND)
    assert "PIN tries left:\t3" in before
    yubico(change, f"-k{KEY}", "-a", "set-chuid", "-a", "set-ccc", reader=SECOND)
    after = yubico(change, "-a", "status", reader=SECOND)
    for name in ("CHUID:", "CCC:"):
        assert before.partition(name)[2].splitlines()[0] != after.partition(name)[2].splitlines()[0]


def test_opensc_changes_and_unblocks_the_pin(change: Run) -> None:
    chosen = ("pkcs15-tool", "-r", "1", "--auth-id", "01")
    change(*chosen, "--change-pin", "--pin", PIN, "--new-pin", "222222")
    change(*chosen, "--unblock-pin", "--puk", PUK, "--new-pin", "333333")
    yubico(change, "-a", "verify-pin", "-P", "333333", reader=SECOND)


@pytest.mark.parametrize("load", ["-C", "-Z"], ids=["plain", "gzip"])
def test_piv_tool_stores_a_certificate(
    change: Run, blank: SoftwareBackend, tmp_path: Path, load: str
) -> None:
    """Under mutual authentication; our driver reads what OpenSC wrote, compressed or not."""
    (tmp_path / "key").write_text(":".join(KEY[i : i + 2] for i in range(0, len(KEY), 2)))
    certificate = client_identity().certificate
    compressed = gzip.compress(certificate.public_bytes(Encoding.DER))
    (tmp_path / "file-C").write_bytes(certificate.public_bytes(Encoding.PEM))
    (tmp_path / "file-Z").write_bytes(compressed)
    administrator = ("piv-tool", "-r", "1", "-A", "M:9B:03")
    environment = {"PIV_EXT_AUTH_KEY": "key"}
    change(*administrator, load, "9A", "-i", f"file{load}", env=environment, code=None)  # octets written
    card = PivCard(blank.connect(NAME), SecretBytes(PIN.encode()))
    assert card.certificate_chain == client_identity().chain_der[:1]
    card.close()


def test_opensc_reads_a_certificate_that_we_compressed(change: Run, blank: SoftwareBackend) -> None:
    with contextlib.closing(piv_issuer(blank, owner=PivSecrets.well_known())) as issuer:
        identity = certified(
            issuer.generate_key(KeyAlgorithm.ECDSA_P256), dns_names=[f"web{i}.example" for i in range(200)]
        )
        issuer.install_certificate_chain(identity.chain_der)
    assert len(identity.chain_der[0]) > 1856
    pem = change("pkcs15-tool", "-r", "1", "--read-certificate", "01")
    read = x509.load_pem_x509_certificate(pem[pem.index("-----BEGIN") :].encode())
    assert read == identity.certificate
