"""`vmtokenctl token discover | reset`."""

from __future__ import annotations

import argparse

from dom0_broker.ctl.connection import admin
from dom0_broker.ctl.output import Row, moment, say, show_rows
from dom0_broker.ctl.tokens.arguments import Commands, named
from dom0_broker.ctl.tokens.readable import readable
from vmtoken.errors import TokenUnavailable
from vmtoken.v1 import admin_service_pb2 as pb


def register(group: Commands) -> None:
    """Add the subcommands."""
    discover = group.add_parser("discover", help="what is there and could be made a token, with its URI")
    discover.set_defaults(run=_discover)
    reset = named(group, "reset", "get a card that hangs going again, without pulling it out")
    reset.set_defaults(run=_reset)


async def _discover(arguments: argparse.Namespace) -> None:
    async with admin(arguments) as broker:
        response = await broker.DiscoverTokens(pb.DiscoverTokensRequest())
    columns = (
        "uri",
        "place",
        "atr",
        "application",
        "capabilities",
        "subject",
        "not_after",
        "pin_tries",
        "token",
        "problem",
    )
    nothing = "Nothing found; put a card into a reader, or make a software element with 'token create'."
    show_rows([_row(found) for found in response.tokens], columns, as_json=arguments.json, nothing=nothing)


async def _reset(arguments: argparse.Namespace) -> None:
    async with admin(arguments) as broker:
        response = await broker.ResetToken(pb.ResetTokenRequest(name=arguments.name))
    if not response.token.ready:
        raise TokenUnavailable(f"It was reset, but: {response.token.not_ready.message}")
    say(f"Token '{arguments.name}' was reset and is ready.")


def _row(found: pb.FoundToken) -> Row:
    leaf = readable(found.certificate)
    return {
        "uri": found.uri,
        "place": found.place,
        "atr": found.atr.hex(" ").upper(),
        "application": found.application,
        "capabilities": list(found.capabilities),
        "serial": found.serial,
        "subject": leaf.subject.rfc4514_string() if leaf else "",
        "not_after": moment(leaf.not_valid_after_utc) if leaf else "",
        "pin_tries": found.pin_tries_left if found.HasField("pin_tries_left") else None,
        "token": found.token,
        "problem": found.problem,
    }
