"""`vmtokenctl token list | show`."""

from __future__ import annotations

import argparse

from cryptography import x509

from dom0_broker.ctl.connection import admin
from dom0_broker.ctl.output import Row, moment, show_facts, show_rows
from dom0_broker.ctl.tokens.arguments import Commands, named
from dom0_broker.ctl.tokens.pin_states import pin_line, tries
from vmtoken.rpc.convert import assurance_from_pb
from vmtoken.v1 import admin_service_pb2 as pb
from vmtoken.v1 import token_pb2


def register(group: Commands) -> None:
    """Add the subcommands."""
    group.add_parser("list", help="all tokens").set_defaults(run=_list)
    named(group, "show", "everything about a token").set_defaults(run=_show)


async def _list(arguments: argparse.Namespace) -> None:
    async with admin(arguments) as broker:
        response = await broker.ListAllTokens(pb.ListAllTokensRequest())
    columns = (
        "name",
        "uri",
        "assurance",
        "ready",
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


async def _show(arguments: argparse.Namespace) -> None:
    async with admin(arguments) as broker:
        response = await broker.ListAllTokens(pb.ListAllTokensRequest(name=arguments.name))
    show_facts(row(response.tokens[0]), as_json=arguments.json)


def row(token: pb.TokenStatus) -> Row:
    """A token as it is listed."""
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
        "pin_tries": tries(next(iter(token.pins), None)),
        "pins": [pin_line(pin) for pin in token.pins],
        "vms": list(token.vms),
        "busy": token.busy,
        "waiting": token.waiting,
        "completed": token.completed,
        "failed": token.failed,
    }
