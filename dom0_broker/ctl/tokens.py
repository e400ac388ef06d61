"""`vmtokenctl token ...`: which tokens there are, and personalisation of new ones."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path

from cryptography import x509

from dom0_broker.ctl.connection import admin
from dom0_broker.ctl.files import read_certificates, request_pem
from dom0_broker.ctl.output import Row, moment, say, show_facts, show_rows
from vmtoken.rpc.convert import assurance_from_pb
from vmtoken.v1 import admin_service_pb2 as pb
from vmtoken.v1 import token_pb2

_ALGORITHMS = {
    name.removeprefix("KEY_ALGORITHM_").lower().replace("_", "-"): number
    for name, number in pb.KeyAlgorithm.items()
    if number != pb.KEY_ALGORITHM_UNSPECIFIED
}


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommands."""
    group = commands.add_parser("token", help="tokens and their personalisation").add_subparsers(
        required=True, metavar="COMMAND"
    )
    create = group.add_parser("create", help="make a new token with a key pair inside")
    create.add_argument("name")
    create.add_argument("--uri", default="", help="where to make it; soft:NAME if not given")
    create.add_argument("--algorithm", choices=list(_ALGORITHMS), default="p256")
    create.set_defaults(run=_create)
    add = group.add_parser("add", help="make an existing token known; asks for its PIN")
    add.add_argument("name")
    add.add_argument("uri", help="where it is")
    add.add_argument("--no-pin", action="store_true", help="the token needs none")
    add.set_defaults(run=_add)
    group.add_parser("list", help="all tokens").set_defaults(run=_list)
    show = _named(group, "show", "everything about a token")
    show.set_defaults(run=_show)
    remove = _named(group, "remove", "forget a token that no VM has")
    remove.add_argument("--destroy", action="store_true", help="destroy the element and its key too")
    remove.set_defaults(run=_remove)
    _register_personalisation(group)


def _register_personalisation(group: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    csr = _named(group, "csr", "a certificate request, signed inside the token, to standard output")
    csr.add_argument("--subject", required=True, help="RFC 4514, such as CN=web01,O=Example")
    csr.add_argument(
        "--dns", action="append", default=[], metavar="NAME", help="for subjectAltName; repeatable"
    )
    csr.set_defaults(run=_csr)
    install = _named(group, "install-cert", "store the certificate chain in the token")
    install.add_argument("chain", type=Path, help="PEM, leaf first")
    install.add_argument("--trust", type=Path, metavar="FILE", help="as 'token trust', in the same go")
    install.set_defaults(run=_install)
    trust = _named(group, "trust", "store the CA certificates that the token trusts for servers")
    trust.add_argument("anchors", type=Path, help="PEM")
    trust.set_defaults(run=_trust)
    pin = _named(group, "pin", "give the broker the user PIN that the token has; asks for it, tries it once")
    pin.set_defaults(run=_set_pin)


def _named(
    group: argparse._SubParsersAction[argparse.ArgumentParser], command: str, what: str
) -> argparse.ArgumentParser:
    parser = group.add_parser(command, help=what)
    parser.add_argument("name")
    return parser


async def _create(arguments: argparse.Namespace) -> None:
    request = pb.CreateTokenRequest(
        name=arguments.name, uri=arguments.uri, algorithm=_ALGORITHMS[arguments.algorithm]
    )
    async with admin(arguments) as broker:
        response = await broker.CreateToken(request)
    facts = {"name": arguments.name, "uri": response.uri, "public_key": response.public_key.hex()}
    show_facts(facts, as_json=arguments.json)


async def _add(arguments: argparse.Namespace) -> None:
    pin = b"" if arguments.no_pin else _asked_pin()
    request = pb.AddTokenRequest(name=arguments.name, uri=arguments.uri, user_pin=pin)
    async with admin(arguments) as broker:
        response = await broker.AddToken(request)
    show_facts(_row(response.token), as_json=arguments.json)


async def _list(arguments: argparse.Namespace) -> None:
    async with admin(arguments) as broker:
        response = await broker.ListAllTokens(pb.ListAllTokensRequest())
    columns = (
        "name",
        "uri",
        "assurance",
        "ready",
        "vms",
        "waiting",
        "completed",
        "failed",
        "not_ready_because",
    )
    rows = [_row(token) for token in response.tokens]
    nothing = "No tokens; 'vmtokenctl token create NAME' makes one."
    show_rows(rows, columns, as_json=arguments.json, nothing=nothing)


async def _show(arguments: argparse.Namespace) -> None:
    async with admin(arguments) as broker:
        response = await broker.ListAllTokens(pb.ListAllTokensRequest(name=arguments.name))
    show_facts(_row(response.tokens[0]), as_json=arguments.json)


async def _remove(arguments: argparse.Namespace) -> None:
    async with admin(arguments) as broker:
        await broker.RemoveToken(pb.RemoveTokenRequest(name=arguments.name, destroy=arguments.destroy))
    say(f"Token '{arguments.name}' is {'destroyed' if arguments.destroy else 'forgotten'}.")


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


async def _set_pin(arguments: argparse.Namespace) -> None:
    async with admin(arguments) as broker:
        await broker.SetTokenPin(pb.SetTokenPinRequest(name=arguments.name, user_pin=_asked_pin()))
    say(f"Token '{arguments.name}' took the PIN.")


def _asked_pin() -> bytes:
    """From the terminal, or the first line of a pipe; never from argv or the environment."""
    if sys.stdin.isatty():
        return getpass.getpass("User PIN: ").encode()
    return sys.stdin.readline().rstrip("\n").encode()


def _row(token: pb.TokenStatus) -> Row:
    known = token.assurance != token_pb2.ASSURANCE_UNSPECIFIED
    leaf = x509.load_der_x509_certificate(token.certificates[0]) if token.certificates else None
    return {
        "name": token.name,
        "uri": token.uri,
        "assurance": assurance_from_pb(token.assurance).value if known else "",
        "ready": token.ready,
        "not_ready_because": token.not_ready.message,
        "serial": token.serial,
        "application": token.application,
        "subject": leaf.subject.rfc4514_string() if leaf else "",
        "not_after": moment(leaf.not_valid_after_utc) if leaf else "",
        "vms": list(token.vms),
        "busy": token.busy,
        "waiting": token.waiting,
        "completed": token.completed,
        "failed": token.failed,
    }
