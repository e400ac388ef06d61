"""`vmtokenctl token create | csr | install-cert | trust`: keys and certificates."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dom0_broker.ctl.connection import admin
from dom0_broker.ctl.files import read_certificates, request_pem
from dom0_broker.ctl.output import say, show_facts
from dom0_broker.ctl.prompts import secret
from dom0_broker.ctl.tokens.arguments import Commands, named
from dom0_broker.ctl.tokens.pins import known_pins
from vmtoken.v1 import admin_service_pb2 as pb

if TYPE_CHECKING:
    from vmtoken.v1.admin_service_pb2_grpc import AdminServiceAsyncStub

ALGORITHMS = {
    name.removeprefix("KEY_ALGORITHM_").lower().replace("_", "-"): number
    for name, number in pb.KeyAlgorithm.items()
    if number != pb.KEY_ALGORITHM_UNSPECIFIED
}


def register(group: Commands) -> None:
    """Add the subcommands."""
    create = named(group, "create", "make a key pair in a new token, or in a card that has none yet")
    create.add_argument(
        "--uri",
        default="",
        help="a software element to be made, soft:NAME if not given; or a card that is there, whose PINs are "
        "asked for then: user PIN, and operator PIN or management key (empty: none)",
    )
    add_algorithm(create)
    create.add_argument("--no-pin", action="store_true", help="the card needs none")
    create.set_defaults(run=_create)
    csr = named(group, "csr", "a certificate request, signed inside the token, to standard output")
    add_names(csr)
    csr.set_defaults(run=_csr)
    install = named(group, "install-cert", "store the certificate chain in the token")
    install.add_argument("chain", type=Path, help="PEM, leaf first")
    install.add_argument("--trust", type=Path, metavar="FILE", help="as 'token trust', in the same go")
    install.set_defaults(run=_install)
    trust = named(group, "trust", "store the CA certificates that the token trusts for servers")
    trust.add_argument("anchors", type=Path, help="PEM")
    trust.set_defaults(run=_trust)


def add_names(parser: argparse.ArgumentParser) -> None:
    """The options that say for whom a certificate is to be."""
    parser.add_argument("--subject", required=True, help="RFC 4514, such as CN=web01,O=Example")
    parser.add_argument(
        "--dns", action="append", default=[], metavar="NAME", help="for subjectAltName; repeatable"
    )


def add_algorithm(parser: argparse.ArgumentParser) -> None:
    """The option that says what key to make."""
    parser.add_argument(
        "--algorithm", choices=list(ALGORITHMS), default="p256", help="of the key pair (default: %(default)s)"
    )


async def _create(arguments: argparse.Namespace) -> None:
    existing = bool(arguments.uri) and not arguments.uri.startswith("soft:")
    request = pb.CreateTokenRequest(
        name=arguments.name,
        uri=arguments.uri,
        algorithm=ALGORITHMS[arguments.algorithm],
        existing=existing,
    )
    async with admin(arguments) as broker:
        if existing and not arguments.no_pin:
            known = await known_pins(broker, arguments.uri)
            if pb.PIN_ROLE_USER not in known:
                request.user_pin = secret("User PIN")
            if pb.PIN_ROLE_OPERATOR not in known:
                request.operator_pin = secret("Operator PIN or management key")
        response = await broker.CreateToken(request)
    facts = {"name": arguments.name, "uri": response.uri, "public_key": response.public_key.hex()}
    show_facts(facts, as_json=arguments.json)


async def _csr(arguments: argparse.Namespace) -> None:
    request = pb.CreateCertificateRequestRequest(
        name=arguments.name, subject=arguments.subject, dns_names=arguments.dns
    )
    async with admin(arguments) as broker:
        response = await broker.CreateCertificateRequest(request)
    print(request_pem(response.certificate_request), end="")


async def _install(arguments: argparse.Namespace) -> None:
    chain = read_certificates(arguments.chain)
    anchors = read_certificates(arguments.trust) if arguments.trust else []
    async with admin(arguments) as broker:
        await install(broker, arguments.name, chain, anchors)


async def install(
    broker: AdminServiceAsyncStub, name: str, chain: Sequence[bytes], anchors: Sequence[bytes] = ()
) -> None:
    """Store a chain, and trust anchors if there are some; tell of what is unusual."""
    request = pb.InstallCertificateRequest(name=name, certificates=chain)
    for warning in (await broker.InstallCertificate(request)).warnings:
        say(f"Warning: {warning}")
    if anchors:
        await broker.InstallTrust(pb.InstallTrustRequest(name=name, anchors=anchors))
    say(f"Token '{name}' has its certificate" + (" and its trust anchors." if anchors else "."))


async def _trust(arguments: argparse.Namespace) -> None:
    anchors = read_certificates(arguments.anchors)
    async with admin(arguments) as broker:
        await broker.InstallTrust(pb.InstallTrustRequest(name=arguments.name, anchors=anchors))
    say(f"Token '{arguments.name}' has its trust anchors.")
