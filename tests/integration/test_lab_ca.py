"""The lab CA, judged by OpenSSL and nginx."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from dom0_broker.ctl.files import UnusableFile
from dom0_broker.ctl.lab_ca import MARK, REASONS, LabCa, serial_text
from tests.support.pki import DAY, IdentityFiles, PrivateKey
from tests.support.sentences import is_sentence
from tests.support.servers import PROGRAMS, ServerOptions
from tests.support.tools import tool

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def ca(tmp_path: Path) -> LabCa:
    return LabCa.create(tmp_path / "ca", "trial", NOW, 365 * DAY)


def request_for(
    key: PrivateKey, name: str = "CN=web01,O=Example", extensions: Sequence[x509.ExtensionType] = ()
) -> bytes:
    builder = x509.CertificateSigningRequestBuilder(x509.Name.from_rfc4514_string(name))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    has_hash = isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    return builder.sign(key, hashes.SHA256() if has_hash else None).public_bytes(Encoding.DER)


def issued(ca: LabCa, name: str = "CN=web01", days: int = 30) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    return ca.sign(request_for(key, name), NOW, days * DAY)


def openssl(*arguments: str | Path, code: int = 0) -> str:
    done = subprocess.run(
        [tool("openssl"), *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def verified(ca: LabCa, certificate: x509.Certificate, *, crl: bool, code: int = 0) -> str:
    """What `openssl verify` says of a certificate as a client's."""
    path = ca.directory / "leaf.pem"
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    strict = ("-x509_strict", "-purpose", "sslclient", "-CAfile", ca.directory / "ca.pem")
    checked = ("-crl_check", "-CRLfile", ca.directory / "crl.pem") if crl else ()
    return openssl("verify", *strict, *checked, path, code=code)


KEYS = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
}


@pytest.mark.parametrize("kind", KEYS)
def test_certificate_is_one_for_clients_that_openssl_accepts(ca: LabCa, kind: str) -> None:
    key = KEYS[kind]()
    names = x509.SubjectAlternativeName([x509.DNSName("web01.example")])
    certificate = ca.sign(request_for(key, extensions=[names]), NOW, 30 * DAY)
    assert "OK" in verified(ca, certificate, crl=False)
    assert certificate.public_key() == key.public_key()
    text = openssl("x509", "-in", ca.directory / "leaf.pem", "-noout", "-text")
    assert "DNS:web01.example" in text
    assert "TLS Web Client Authentication" in text
    assert MARK in text


def test_post_quantum_keys_are_signed_too(ca: LabCa) -> None:
    """OpenSSL 3.0 cannot read them, so `cryptography` has to vouch."""
    key = mldsa.MLDSA65PrivateKey.generate()
    certificate = ca.sign(request_for(key), NOW, 30 * DAY)
    certificate.verify_directly_issued_by(ca.certificate)


def test_nothing_but_subject_key_and_names_is_taken_from_a_request(ca: LabCa) -> None:
    greedy = [
        x509.BasicConstraints(ca=True, path_length=None),
        x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]),
        x509.SubjectAlternativeName([x509.DNSName("a.example")]),
    ]
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = ca.sign(request_for(key, extensions=greedy), NOW, 30 * DAY)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert not constraints.ca
    assert list(usages) == [x509.ExtendedKeyUsageOID.CLIENT_AUTH]
    assert "OK" in verified(ca, certificate, crl=False)


def forged(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A request whose signature is by nobody."""
    request = bytearray(request_for(key))
    request[-1] ^= 1
    return bytes(request)


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (b"nonsense", "not PKCS#10"),
        (forged(ec.generate_private_key(ec.SECP256R1())), "not signed with its own key"),
        (request_for(rsa.generate_private_key(65537, 1024)), "too weak"),
        (request_for(ec.generate_private_key(ec.SECP256R1()), ""), "names nobody"),
    ],
    ids=["garbage", "forged", "weak", "nameless"],
)
def test_request_that_is_no_good_is_refused(ca: LabCa, request_: bytes, complaint: str) -> None:
    with pytest.raises(UnusableFile, match=complaint) as refusal:
        ca.sign(request_, NOW, DAY)
    assert is_sentence(str(refusal.value))
    assert ca.issued() == ()


@pytest.mark.parametrize(
    ("name", "complaint"), [("x" * 65, "too long"), ("", "none of a server"), ("b\u00fccher.example", "xn--")]
)
def test_server_name_that_no_certificate_can_hold_is_refused(ca: LabCa, name: str, complaint: str) -> None:
    with pytest.raises(UnusableFile, match=complaint) as refusal:
        ca.issue_server([name], NOW, DAY)
    assert is_sentence(str(refusal.value))
    assert ca.issued() == ()
    assert not (ca.directory / "server.key").exists()


def test_ca_with_a_name_that_is_too_long_is_not_begun(tmp_path: Path) -> None:
    with pytest.raises(UnusableFile, match="too long"):
        LabCa.create(tmp_path / "ca", "x" * 65, NOW, DAY)
    assert not (tmp_path / "ca").exists()


def test_names_alone_make_a_critical_extension(ca: LabCa) -> None:
    names = x509.SubjectAlternativeName([x509.DNSName("web01.example")])
    request = request_for(ec.generate_private_key(ec.SECP256R1()), "", [names])
    certificate = ca.sign(request, NOW, DAY)
    assert certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical
    assert "OK" in verified(ca, certificate, crl=False)


def test_certificate_does_not_outlive_its_ca_and_an_expired_ca_signs_nothing(tmp_path: Path) -> None:
    ca = LabCa.create(tmp_path / "ca", "short", NOW, 10 * DAY)
    assert issued(ca, days=90).not_valid_after_utc == NOW + 10 * DAY
    with pytest.raises(UnusableFile, match="the CA expired"):
        ca.sign(request_for(ec.generate_private_key(ec.SECP256R1())), NOW + 11 * DAY, DAY)


def test_second_init_leaves_the_first_ca_alone(ca: LabCa) -> None:
    with pytest.raises(UnusableFile, match="holds a CA already"):
        LabCa.create(ca.directory, "again", NOW, DAY)
    assert LabCa.load(ca.directory).certificate == ca.certificate
    assert (ca.directory / "ca.key").stat().st_mode & 0o777 == 0o600


def test_revoked_certificate_is_refused_by_openssl_and_the_others_are_not(ca: LabCa) -> None:
    good, bad = issued(ca, "CN=good"), issued(ca, "CN=bad")
    ca.publish_crl(NOW, 7 * DAY)
    assert "OK" in verified(ca, bad, crl=True)
    line = ca.revoke(bad.serial_number, x509.ReasonFlags.key_compromise, NOW)
    ca.publish_crl(NOW, 7 * DAY)
    assert "certificate revoked" in verified(ca, bad, crl=True, code=2)
    assert "OK" in verified(ca, good, crl=True)
    assert (line.subject, line.reason) == ("CN=bad", "keyCompromise")
    assert [bool(each.revoked) for each in ca.issued()] == [False, True]


def test_crl_says_what_rfc_5280_asks_for(ca: LabCa) -> None:
    revoked = {reason: issued(ca, f"CN={reason}") for reason in REASONS}
    for reason, certificate in revoked.items():
        ca.revoke(certificate.serial_number, REASONS[reason], NOW)
    for _ in range(2):
        ca.publish_crl(NOW, 7 * DAY)
    texts = [
        openssl("crl", "-in", ca.directory / f"crl.{form}", "-inform", form, "-noout", "-text")
        for form in ("pem", "der")
    ]
    openssl("crl", "-in", ca.directory / "crl.pem", "-noout", "-CAfile", ca.directory / "ca.pem", "-verify")
    assert texts[0] == texts[1]
    for words in ("Version 2", "X509v3 CRL Number: \n                2", "Authority Key Identifier"):
        assert words in texts[0]
    assert f"Next Update: {NOW + 7 * DAY:%b %e %H:%M:%S %Y} GMT" in texts[0]
    assert texts[0].count("Serial Number") == len(REASONS)
    assert texts[0].count("CRL Reason Code") == len(REASONS) - 1  # unspecified is left out
    for words in ("Key Compromise", "Superseded", "Cessation Of Operation", "Privilege Withdrawn"):
        assert words in texts[0]


def test_revocation_is_for_good_and_for_certificates_of_this_ca(ca: LabCa) -> None:
    serial = issued(ca).serial_number
    first = ca.revoke(serial, x509.ReasonFlags.superseded, NOW)
    assert ca.revoke(serial, x509.ReasonFlags.key_compromise, NOW + DAY) == first
    with pytest.raises(UnusableFile, match="has issued no certificate 0102"):
        ca.revoke(0x102, x509.ReasonFlags.unspecified, NOW)


def test_damaged_index_is_not_replaced_by_an_empty_one(ca: LabCa) -> None:
    issued(ca)
    (ca.directory / "index.json").write_text("{")
    with pytest.raises(UnusableFile, match="restore it from a backup"):
        issued(ca)


_SIGNER = """
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from dom0_broker.ctl.lab_ca import LabCa

ca, request = LabCa.load(Path(sys.argv[1])), Path(sys.argv[2]).read_bytes()
for _ in range(15):
    now = datetime.now(UTC)
    print(ca.sign(request, now, timedelta(days=1)).serial_number, flush=True)
    ca.publish_crl(now, timedelta(days=1))
"""


def test_two_processes_at_once_lose_no_serial_number(ca: LabCa) -> None:
    request = ca.directory / "request.der"
    request.write_bytes(request_for(ec.generate_private_key(ec.SECP256R1())))
    command = [sys.executable, "-c", _SIGNER, str(ca.directory), str(request)]
    signers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    texts = [signer.communicate(timeout=60)[0] for signer in signers]
    assert [signer.returncode for signer in signers] == [0, 0, 0]
    serials = sorted(serial_text(int(line)) for text in texts for line in text.split())
    assert len(serials) == 45
    assert sorted(each.serial for each in ca.issued()) == serials
    assert (
        LabCa.load(ca.directory)
        .publish_crl(NOW, DAY)
        .extensions.get_extension_for_class(x509.CRLNumber)
        .value.crl_number
        == 46
    )


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_nginx_refuses_a_revoked_client_and_no_other(ca: LabCa, tmp_path: Path, version: str) -> None:
    ca.issue_server(["localhost"], NOW, DAY)
    files = IdentityFiles(*(ca.directory / name for name in ("server.pem", "server.key", "ca.pem")))
    good, bad = client(ca, "good"), client(ca, "bad")
    statuses = []
    for revoked in (False, True):
        if revoked:
            certificate = x509.load_pem_x509_certificate(bad.with_suffix(".pem").read_bytes())
            ca.revoke(certificate.serial_number, x509.ReasonFlags.superseded, NOW)
        ca.publish_crl(NOW, DAY)
        crl = f"ssl_crl {ca.directory / 'crl.pem'};"
        options = ServerOptions(minimum=version, maximum=version, arguments=(crl,))
        with PROGRAMS["nginx"].serve(tmp_path / f"nginx-{revoked}", options, files) as server:
            statuses += [asked(ca, each, server.port) for each in (good, bad)]
    assert statuses == ["200", "200", "200", "400"]


def client(ca: LabCa, name: str) -> Path:
    """Files NAME.pem and NAME.key of a client; the path without suffix."""
    key = ec.generate_private_key(ec.SECP256R1())
    stem = ca.directory / name
    certificate = ca.sign(request_for(key, f"CN={name}"), NOW, DAY)
    stem.with_suffix(".pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    stem.with_suffix(".key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return stem


def asked(ca: LabCa, stem: Path, port: int) -> str:
    """The HTTP status that nginx has for a client; 400 when it refuses the certificate."""
    identity = ("--cert", stem.with_suffix(".pem"), "--key", stem.with_suffix(".key"))
    where = ("--cacert", ca.directory / "ca.pem", f"https://localhost:{port}/seen")
    command = [tool("curl"), "-s", "-o", "/dev/null", "-w", "%{http_code}", "--resolve"]
    command += [f"localhost:{port}:127.0.0.1", "--noproxy", "*", "--max-time", "20", *identity, *where]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
