"""`vmtokenctl token create | csr | install-cert | trust`: keys and certificates."""

from __future__ import annotations

import argparse
from pathlib import Path

from dom0_broker.ctl.connection import admin
from dom0_broker.ctl.files import read_certificates, request_pem
from dom0_broker.ctl.output import say, show_facts
from dom0_broker.ctl.tokens.arguments import Commands, named
from vmtoken.v1 import admin_service_pb2 as pb

_ALGORITHMS = {
    name.removeprefix("KEY_ALGORITHM_").lower().replace("_", "-"): number
    for name, number in pb.KeyAlgorithm.items()
    if number != pb.KEY_ALGORITHM_UNSPECIFIED
}


def register(group: Commands) -> None:
    """Add the subcommands."""
    create = named(group, "create", "make a new token with a key pair inside")
    create.add_argument("--uri", default="", help="where to make it; soft:NAME if not given")
    create.add_argument("--algorithm", choices=list(_ALGORITHMS), default="p256")
    create.set_defaults(run=_create)
    csr = named(group, "csr", "a certificate request, signed inside the token, to standard output")
    csr.add_argument("--subject", required=True, help="RFC 4514, such as CN=web01,O=Example")
    csr.add_argument(
        "--dns", action="append", default=[], metavar="NAME", help="for subjectAltName; repeatable"
    )
    csr.set_defaults(run=_csr)
    install = named(group, "install-cert", "store the certificate chain in the token")
    install.add_argument("chain", type=Path, help="PEM, leaf first")
    install.add_argument("--trust", type=Path, metavar="FILE", help="as 'token trust', in the same go")
    install.set_defaults(run=_install)
    trust = named(group, "trust", "store the CA certificates that the token trusts for servers")
    trust.add_argument("anchors", type=Path, help="PEM")
    trust.set_defaults(run=_trust)


async def _create(arguments: argparse.Namespace) -> None:
    request = pb.CreateTokenRequest(
        name=arguments.name, uri=arguments.uri, algorithm=_ALGORITHMS[arguments.algorithm]
    )
    async with admin(arguments) as broker:
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
        await broker.InstallCertificate(pb.InstallCertificateRequest(name=arguments.name, certificates=chain))
        if anchors:
            await broker.InstallTrust(pb.InstallTrustRequest(name=arguments.name, anchors=anchors))
    say(f"Token '{arguments.name}' has its certificate" + (" and its trust anchors." if anchors else "."))


async def _trust(arguments: argparse.Namespace) -> None:
    anchors = read_certificates(arguments.anchors)
    async with admin(arguments) as broker:
        await broker.InstallTrust(pb.InstallTrustRequest(name=arguments.name, anchors=anchors))
    say(f"Token '{arguments.name}' has its trust anchors.")
