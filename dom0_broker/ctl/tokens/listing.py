"""`vmtokenctl token list | show`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from dom0_broker.certificates import days_left
from dom0_broker.ctl.connection import admin
from dom0_broker.ctl.lab_ca import serial_text
from dom0_broker.ctl.output import Row, moment, say, show_facts, show_rows
from dom0_broker.ctl.tokens.arguments import Commands, named
from dom0_broker.ctl.tokens.pin_states import pin_line, tries
from dom0_broker.ctl.tokens.readable import readable
from vmtoken.rpc.convert import assurance_from_pb
from vmtoken.v1 import admin_service_pb2 as pb
from vmtoken.v1 import token_pb2


def register(group: Commands) -> None:
    """Add the subcommands."""
    listed = group.add_parser("list", help="all tokens")
    listed.add_argument("--retired", action="store_true", help="those that have been")
    listed.set_defaults(run=_list)
    named(group, "show", "everything about a token").set_defaults(run=_show)


async def _list(arguments: argparse.Namespace) -> None:
    if arguments.retired:
        await _list_retired(arguments)
        return
    async with admin(arguments) as broker:
        response = await broker.ListAllTokens(pb.ListAllTokensRequest())
    columns = (
        "name",
        "uri",
        "assurance",
        "ready",
        "days_left",
        "pin_tries",
        "vms",
        "waiting",
        "completed",
        "failed",
        "not_ready_because",
    )
    rows = [row(token) for token in response.tokens]
    nothing = "No tokens; 'vmtokenctl token create NAME' makes one."
    show_rows(rows, columns, as_json=arguments.json, nothing=nothing)
    for warning in warnings(response.tokens):
        say(f"Warning: {warning}")


async def _list_retired(arguments: argparse.Namespace) -> None:
    async with admin(arguments) as broker:
        response = await broker.ListRetiredTokens(pb.ListRetiredTokensRequest())
    columns = ("name", "uri", "retired", "key_destroyed", "certificate_serial", "subject", "not_after")
    rows = [_retired_row(token) for token in response.tokens]
    show_rows(rows, columns, as_json=arguments.json, nothing="No token was ever retired.")


async def _show(arguments: argparse.Namespace) -> None:
    async with admin(arguments) as broker:
        response = await broker.ListAllTokens(pb.ListAllTokensRequest(name=arguments.name))
    show_facts(row(response.tokens[0]), as_json=arguments.json)


def warnings(tokens: Iterable[pb.TokenStatus]) -> list[str]:
    """What of the tokens' certificates ends soon or has ended, one sentence each."""
    return [f"Token '{token.name}': {warning}" for token in tokens for warning in token.warnings]


def row(token: pb.TokenStatus) -> Row:
    """A token as it is listed."""
    known = token.assurance != token_pb2.ASSURANCE_UNSPECIFIED
    return {
        "name": token.name,
        "uri": token.uri,
        "assurance": assurance_from_pb(token.assurance).value if known else "",
        "ready": token.ready,
        "not_ready_because": token.not_ready.message,
        "serial": token.serial,
        "application": token.application,
        **_certificate_facts(token),
        "pin_tries": tries(next(iter(token.pins), None)),
        "pins": [pin_line(pin) for pin in token.pins],
        "shares_pins_with": list(token.shares_pins_with),
        "vms": list(token.vms),
        "bindings": [_use(use) for use in token.uses],
        "busy": token.busy,
        "waiting": token.waiting,
        "completed": token.completed,
        "failed": token.failed,
        "warnings": list(token.warnings),
    }


def _certificate_facts(token: pb.TokenStatus) -> Row:
    chain = [readable(each) for each in token.certificates]
    leaf = chain[0] if chain else None
    return {
        "subject": leaf.subject.rfc4514_string() if leaf else "",
        "alternative_names": _alternative_names(leaf) if leaf else [],
        "key": _key(leaf) if leaf else "",
        "certificate_serial": serial_text(leaf.serial_number) if leaf else "",
        "issuer": leaf.issuer.rfc4514_string() if leaf else "",
        "not_before": moment(leaf.not_valid_before_utc) if leaf else "",
        "not_after": moment(leaf.not_valid_after_utc) if leaf else "",
        "days_left": days_left(leaf.not_valid_after_utc, datetime.now(UTC)) if leaf else None,
        "chain": [each.subject.rfc4514_string() if each else "unreadable" for each in chain],
        "trust_anchors": len(token.trust_anchors) or None,
    }


def _use(use: pb.TokenUse) -> str:
    """`web01 as login`, with the other cards of a pool."""
    pool = f" (with {', '.join(use.pool)})" if len(use.pool) > 1 else ""
    return f"{use.vm} as {use.name}{pool}"


def _retired_row(token: pb.RetiredToken) -> Row:
    leaf = readable(token.certificate)
    return {
        "name": token.name,
        "uri": token.uri,
        "serial": token.serial,
        "retired": moment(token.retired.ToDatetime(UTC)),
        "key_destroyed": token.key_destroyed,
        "certificate_serial": serial_text(leaf.serial_number) if leaf else "",
        "subject": leaf.subject.rfc4514_string() if leaf else "",
        "not_after": moment(leaf.not_valid_after_utc) if leaf else "",
    }


def _alternative_names(leaf: x509.Certificate) -> list[str]:
    found = [each.value for each in leaf.extensions if isinstance(each.value, x509.SubjectAlternativeName)]
    return [str(name.value) for names in found for name in names]


def _key(leaf: x509.Certificate) -> str:
    """`ECDSA secp256r1`, `RSA 3072`, `Ed25519`, `ML-DSA-65`."""
    match leaf.public_key():
        case ec.EllipticCurvePublicKey() as key:
            return f"ECDSA {key.curve.name}"
        case rsa.RSAPublicKey() as key:
            return f"RSA {key.key_size}"
        case ed25519.Ed25519PublicKey():
            return "Ed25519"
        case key:
            return type(key).__name__.removesuffix("PublicKey").replace("MLDSA", "ML-DSA-")
