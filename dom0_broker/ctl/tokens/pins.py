"""`vmtokenctl token pin`: PINs come from a terminal or a pipe, never from argv or the environment."""

from __future__ import annotations

import argparse
import getpass
import sys

from dom0_broker.ctl.connection import admin
from dom0_broker.ctl.output import say
from dom0_broker.ctl.tokens.arguments import Commands, named
from vmtoken.v1 import admin_service_pb2 as pb


def register(group: Commands) -> None:
    """Add the subcommands."""
    pin = named(group, "pin", "give the broker the user PIN that the token has; asks for it, tries it once")
    pin.set_defaults(run=_set_pin)


def asked_pin() -> bytes:
    """A PIN from the terminal, or the first line of a pipe."""
    if sys.stdin.isatty():
        return getpass.getpass("User PIN: ").encode()
    return sys.stdin.readline().rstrip("\n").encode()


async def _set_pin(arguments: argparse.Namespace) -> None:
    async with admin(arguments) as broker:
        await broker.SetTokenPin(pb.SetTokenPinRequest(name=arguments.name, user_pin=asked_pin()))
    say(f"Token '{arguments.name}' took the PIN.")
