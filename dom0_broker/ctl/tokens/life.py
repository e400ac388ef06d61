"""`vmtokenctl token enroll | renew | generate-key | retire`: from the first certificate to the end."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from dom0_broker.ctl.ca import CRL_DAYS, DEFAULT_DAYS, add_days, days, revoked
from dom0_broker.ctl.connection import admin
from dom0_broker.ctl.files import read_certificates, request_pem
from dom0_broker.ctl.lab_ca import LONGEST_LEAF, REASONS, LabCa, serial_text
from dom0_broker.ctl.output import say, show_facts
from dom0_broker.ctl.prompts import has_terminal, says_yes
from dom0_broker.ctl.tokens.arguments import Commands, named
from dom0_broker.ctl.tokens.personalisation import ALGORITHMS, add_algorithm, add_names, install
from dom0_broker.ctl.tokens.readable import readable
from vmtoken.errors import InvalidRequest
from vmtoken.v1 import admin_service_pb2 as pb

if TYPE_CHECKING:
    from vmtoken.v1.admin_service_pb2_grpc import AdminServiceAsyncStub


def register(group: Commands) -> None:
    """Add the subcommands."""
    _register_enroll(group)
    _register_renew(group)
    generate = named(group, "generate-key", "make a key pair in a token that has no certificate")
    add_algorithm(generate)
    _add_force(generate, "replace the key although there is a certificate, which is of no use afterwards")
    generate.set_defaults(run=_generate_key)
    _register_retire(group)


def _register_enroll(group: Commands) -> None:
    enroll = named(group, "enroll", "have the lab CA sign the token's certificate, and install it, in one go")
    enroll.description = "For other CAs: 'token csr', have it signed, 'token install-cert'."
    enroll.add_argument("--ca", type=Path, required=True, metavar="DIRECTORY", help="of 'vmtokenctl ca init'")
    add_names(enroll)
    enroll.add_argument(
        "--trust", type=Path, metavar="FILE", help="CAs of servers, PEM; the lab CA itself if not given"
    )
    add_days(enroll, DEFAULT_DAYS, LONGEST_LEAF)
    enroll.set_defaults(run=_enroll)


def _register_renew(group: Commands) -> None:
    renew = named(group, "renew", "a new certificate with the subject and DNS names of the present one")
    renew.description = (
        "Handshakes under way and those that wait go on, and the next one uses the new certificate; sessions "
        "made before are not resumed. A certificate that is no good is refused and the present one stays."
    )
    issuer = renew.add_mutually_exclusive_group(required=True)
    issuer.add_argument("--ca", type=Path, metavar="DIRECTORY", help="the lab CA signs, and it is installed")
    issuer.add_argument(
        "--csr", type=Path, metavar="FILE", help="write a request for another CA; then 'token install-cert'"
    )
    renew.add_argument(
        "--new-key",
        action="store_true",
        help="make a new key pair too; until the certificate is installed the token has none, and its "
        "handshakes are refused or made by other cards of its pool",
    )
    add_algorithm(renew)
    add_days(renew, DEFAULT_DAYS, LONGEST_LEAF)
    _add_force(renew, "do not ask before a new key is made")
    renew.set_defaults(run=_renew)


def _register_retire(group: Commands) -> None:
    retire = named(group, "retire", "the end: take a token off its VMs, destroy its key, keep a record of it")
    _add_force(retire, "do not ask; and retire it although its key cannot be destroyed")
    retire.add_argument("--ca", type=Path, metavar="DIRECTORY", help="revoke its certificate in this lab CA")
    retire.add_argument("--reason", choices=list(REASONS), default="cessationOfOperation")
    retire.set_defaults(run=_retire)


def _add_force(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--force", action="store_true", help=what)


async def _enroll(arguments: argparse.Namespace) -> None:
    ca = LabCa.load(arguments.ca)
    trust = read_certificates(arguments.trust or arguments.ca / "ca.pem")
    request = pb.CreateCertificateRequestRequest(
        name=arguments.name, subject=arguments.subject, dns_names=arguments.dns
    )
    async with admin(arguments) as broker:
        csr = (await broker.CreateCertificateRequest(request)).certificate_request
        await install(broker, arguments.name, [_signed(ca, csr, arguments)], trust)


async def _renew(arguments: argparse.Namespace) -> None:
    ca = LabCa.load(arguments.ca) if arguments.ca else None
    if arguments.csr:
        arguments.csr.touch()  # a place that cannot be written is found before a new key is made
    if arguments.new_key and not arguments.force:
        _confirm(
            f"Token '{arguments.name}' has no certificate from now until the new one is installed. Go on?"
        )
    request = pb.CreateCertificateRequestRequest(
        name=arguments.name,
        renewal=True,
        new_key=arguments.new_key,
        algorithm=ALGORITHMS[arguments.algorithm],
    )
    async with admin(arguments) as broker:
        csr = (await broker.CreateCertificateRequest(request)).certificate_request
        if ca is not None:
            await install(broker, arguments.name, [_signed(ca, csr, arguments)])
        else:
            arguments.csr.write_text(request_pem(csr))
            say(f"Have {arguments.csr} signed, then 'vmtokenctl token install-cert {arguments.name} CHAIN'.")


async def _generate_key(arguments: argparse.Namespace) -> None:
    request = pb.GenerateKeyRequest(
        name=arguments.name, algorithm=ALGORITHMS[arguments.algorithm], replace=arguments.force
    )
    async with admin(arguments) as broker:
        response = await broker.GenerateKey(request)
    show_facts({"name": arguments.name, "public_key": response.public_key.hex()}, as_json=arguments.json)


async def _retire(arguments: argparse.Namespace) -> None:
    if arguments.ca is not None:
        LabCa.load(arguments.ca)  # a slip is found before the key is gone
    async with admin(arguments) as broker:
        if not arguments.force:
            await _confirm_retirement(broker, arguments.name)
        request = pb.RetireTokenRequest(name=arguments.name, unbind=True, despite_key=arguments.force)
        answer = await broker.RetireToken(request)
    what = "its key is destroyed" if answer.token.key_destroyed else "its key is NOT destroyed"
    say(f"Token '{arguments.name}' is retired; {what}. {answer.key_stays_because}".rstrip())
    if leaf := readable(answer.token.certificate):
        _end_certificate(leaf, arguments)


async def _confirm_retirement(broker: AdminServiceAsyncStub, name: str) -> None:
    (token,) = (await broker.ListAllTokens(pb.ListAllTokensRequest(name=name))).tokens
    bound = f" It is bound to VM {', '.join(token.vms)}." if token.vms else ""
    _confirm(f"Token '{name}' ({token.uri}) and its key will be gone for good.{bound} Go on?")


def _end_certificate(leaf: x509.Certificate, arguments: argparse.Namespace) -> None:
    """Revoke it, or say how."""
    if arguments.ca is not None:
        line = revoked(arguments.ca, leaf.serial_number, arguments.reason, days(CRL_DAYS))
        say(f"Certificate {line.serial} is revoked; servers need {arguments.ca / 'crl.pem'}.")
    elif leaf.not_valid_after_utc > datetime.now(UTC):
        serial, issuer = serial_text(leaf.serial_number), leaf.issuer.rfc4514_string()
        say(f"Its certificate {serial} is still valid: have {issuer} revoke it.")


def _signed(ca: LabCa, request: bytes, arguments: argparse.Namespace) -> bytes:
    return ca.sign(request, datetime.now(UTC), arguments.days).public_bytes(Encoding.DER)


def _confirm(question: str) -> None:
    """Raises `InvalidRequest` unless a person at a terminal says yes."""
    if not has_terminal():
        why = question.rpartition(" Go on?")[0].rstrip(".")
        raise InvalidRequest(f"Nobody can be asked here; add --force if this is meant: {why}.")
    if not says_yes(question):
        raise InvalidRequest("Nothing was done.")
