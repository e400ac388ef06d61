"""`vmtokenctl ca ...`: a throw-away CA in a directory, for trials.

Its key is in a file: trust it nowhere else.
"""

from __future__ import annotations

import argparse
import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dom0_broker.ctl.files import UnusableFile, read_request, write_private
from dom0_broker.ctl.output import say

_LIFETIME = timedelta(days=30)
_MARK = "THROW-AWAY TRIAL CA"
_README = f"{_MARK}: whoever can read ca.key can make certificates. For trials on one machine only.\n"


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommands."""
    group = commands.add_parser("ca", help="a throw-away CA for trials").add_subparsers(
        required=True, metavar="COMMAND"
    )
    init = group.add_parser("init", help="make a CA: DIRECTORY/ca.pem and ca.key, valid for 30 days")
    init.add_argument("directory", type=Path)
    init.set_defaults(run=_init)
    sign = group.add_parser("sign", help="sign a certificate request; the chain goes to standard output")
    sign.add_argument("directory", type=Path)
    sign.add_argument("request", type=Path, help="PKCS#10, PEM or DER")
    sign.set_defaults(run=_sign)
    server = group.add_parser(
        "server", help="make a key and certificate for a trial server, server.pem and server.key"
    )
    server.add_argument("directory", type=Path)
    server.add_argument("names", nargs="+", metavar="NAME", help="DNS name or IP address")
    server.set_defaults(run=_server)


async def _init(arguments: argparse.Namespace) -> None:
    directory: Path = arguments.directory
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _MARK)])
    builder = _builder(name, name).public_key(key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    builder = builder.add_extension(_usage(ca=True), critical=True)
    _store(directory, "ca", builder.sign(key, SHA256()), key)
    (directory / "README").write_text(_README)
    say(f"A throw-away CA is in {directory}; trust {directory / 'ca.pem'} for trials only.")


async def _sign(arguments: argparse.Namespace) -> None:
    certificate, key = _load(arguments.directory)
    try:
        request = x509.load_der_x509_csr(read_request(arguments.request))
    except ValueError as error:
        raise UnusableFile(f"{arguments.request}: holds no certificate request.") from error
    if not request.is_signature_valid:
        raise UnusableFile(f"{arguments.request}: is not signed with its own key.")
    builder = _builder(request.subject, certificate.subject).public_key(request.public_key())
    names = [each for each in request.extensions if isinstance(each.value, x509.SubjectAlternativeName)]
    for extension in names:
        builder = builder.add_extension(extension.value, critical=False)
    leaf = _leaf(builder, key, ExtendedKeyUsageOID.CLIENT_AUTH)
    print((leaf.public_bytes(Encoding.PEM) + certificate.public_bytes(Encoding.PEM)).decode("ascii"), end="")


async def _server(arguments: argparse.Namespace) -> None:
    certificate, ca_key = _load(arguments.directory)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, arguments.names[0])])
    builder = _builder(name, certificate.subject).public_key(key.public_key())
    alternatives = x509.SubjectAlternativeName([_general_name(each) for each in arguments.names])
    builder = builder.add_extension(alternatives, critical=False)
    _store(arguments.directory, "server", _leaf(builder, ca_key, ExtendedKeyUsageOID.SERVER_AUTH), key)
    say(f"{arguments.directory / 'server.pem'} and server.key are for {', '.join(arguments.names)}.")


def _leaf(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, usage: x509.ObjectIdentifier
) -> x509.Certificate:
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(ca=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return builder.add_extension(issuer, critical=False).sign(key, SHA256())


def _builder(subject: x509.Name, issuer: x509.Name) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + _LIFETIME)


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _store(
    directory: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    octets = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_private(directory / f"{name}.key", octets)
    (directory / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))


def _load(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
        key = load_pem_private_key((directory / "ca.key").read_bytes(), None)
    except (OSError, ValueError) as error:
        raise UnusableFile(f"{directory}: holds no trial CA; make one with 'vmtokenctl ca init'.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UnusableFile(f"{directory / 'ca.key'}: is not a key of 'vmtokenctl ca init'.")
    return certificate, key
