"""`vmtokenctl token add | remove`: which tokens the broker knows."""

from __future__ import annotations

import argparse

from dom0_broker.ctl.connection import admin
from dom0_broker.ctl.output import say, show_facts
from dom0_broker.ctl.prompts import secret
from dom0_broker.ctl.tokens.arguments import Commands, named
from dom0_broker.ctl.tokens.listing import row
from dom0_broker.ctl.tokens.pins import known_pins
from vmtoken.v1 import admin_service_pb2 as pb


def register(group: Commands) -> None:
    """Add the subcommands."""
    add = named(group, "add", "make an existing token known; asks for its PIN")
    add.add_argument("uri", help="where it is")
    add.add_argument("--no-pin", action="store_true", help="the token needs none")
    add.set_defaults(run=_add)
    remove = named(group, "remove", "forget a token that no VM has")
    remove.add_argument("--destroy", action="store_true", help="destroy the element and its key too")
    remove.set_defaults(run=_remove)


async def _add(arguments: argparse.Namespace) -> None:
    async with admin(arguments) as broker:
        known = await known_pins(broker, arguments.uri)
        pin = b"" if arguments.no_pin or pb.PIN_ROLE_USER in known else secret("User PIN")
        request = pb.AddTokenRequest(name=arguments.name, uri=arguments.uri, user_pin=pin)
        response = await broker.AddToken(request)
    show_facts(row(response.token), as_json=arguments.json)


async def _remove(arguments: argparse.Namespace) -> None:
    async with admin(arguments) as broker:
        await broker.RemoveToken(pb.RemoveTokenRequest(name=arguments.name, destroy=arguments.destroy))
    say(f"Token '{arguments.name}' is {'destroyed' if arguments.destroy else 'forgotten'}.")
