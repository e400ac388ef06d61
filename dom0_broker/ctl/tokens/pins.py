"""`vmtokenctl token pin ...`: PINs come from a terminal or a pipe, never from argv or the environment."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dom0_broker.ctl.connection import admin
from dom0_broker.ctl.output import say, show_rows
from dom0_broker.ctl.prompts import has_terminal, secret
from dom0_broker.ctl.tokens.arguments import Commands, named
from dom0_broker.ctl.tokens.pin_states import pin_row
from vmtoken.errors import InvalidRequest
from vmtoken.v1 import admin_service_pb2 as pb

if TYPE_CHECKING:
    from vmtoken.v1.admin_service_pb2_grpc import AdminServiceAsyncStub


def register(group: Commands) -> None:
    """Add the subcommands."""
    pin = group.add_parser("pin", help="give, change, unblock PINs, and see what is left of their tries")
    commands = pin.add_subparsers(required=True, metavar="COMMAND")
    give = named(commands, "set", "give the broker the PIN that the token has; asks for it, tries it once")
    give.add_argument("--again", action="store_true", help="try it although the token refused it before")
    give.set_defaults(run=_set)
    source = named(commands, "source", "have the broker read the PIN from a file whenever it needs it")
    source.add_argument(
        "file", type=Path, help="its first line is the PIN; only root or the broker may read it"
    )
    source.set_defaults(run=_source)
    for each in (give, source):
        each.add_argument(
            "--operator", action="store_true", help="the operator PIN, or the management key of a PIV card"
        )
    change = named(commands, "change", "give the token another user PIN; asks for it")
    change.set_defaults(run=_change)
    unblock = named(commands, "unblock", "give the token another user PIN with all its tries; asks for it")
    unblock.add_argument(
        "--code",
        action="store_true",
        help="ask for operator PIN, PUK or SO PIN first; else the operator PIN that the broker keeps is used",
    )
    unblock.set_defaults(run=_unblock)
    named(commands, "status", "what is known of its PINs").set_defaults(run=_status)


async def known_pins(broker: AdminServiceAsyncStub, uri: str) -> Sequence[pb.PinRole.ValueType]:
    """Which PINs of what is to be made a token the broker has, since it has another key of that card."""
    found = await broker.FindPinSharers(pb.FindPinSharersRequest(uri=uri))
    if found.tokens and found.kept:
        roles = " and ".join("operator" if each == pb.PIN_ROLE_OPERATOR else "user" for each in found.kept)
        say(f"It has the {roles} PIN of token {_quoted(found.tokens)}, which the broker has.")
    return found.kept


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _new_pin() -> bytes:
    """Typed twice, since nobody sees it."""
    pin = secret("New user PIN")
    if has_terminal() and secret("New user PIN again") != pin:
        raise InvalidRequest("The two PINs are not the same; nothing was done.")
    return pin


def _role(arguments: argparse.Namespace) -> pb.PinRole.ValueType:
    return pb.PIN_ROLE_OPERATOR if arguments.operator else pb.PIN_ROLE_USER


async def _set(arguments: argparse.Namespace) -> None:
    pin = secret("Operator PIN" if arguments.operator else "User PIN")
    request = pb.SetTokenPinRequest(
        name=arguments.name, pin=pin, role=_role(arguments), again=arguments.again
    )
    async with admin(arguments) as broker:
        response = await broker.SetTokenPin(request)
    if response.untried_because:
        say(f"The PIN is kept, and tried when the token is opened next: {response.untried_because}")
    else:
        say(f"Token '{arguments.name}' took the PIN.")


async def _source(arguments: argparse.Namespace) -> None:
    source = str(arguments.file.absolute())
    request = pb.SetTokenPinSourceRequest(name=arguments.name, source=source, role=_role(arguments))
    async with admin(arguments) as broker:
        await broker.SetTokenPinSource(request)
    say(f"The PIN of token '{arguments.name}' is read from {source}.")


async def _change(arguments: argparse.Namespace) -> None:
    request = pb.ChangeTokenPinRequest(name=arguments.name, new_pin=_new_pin())
    async with admin(arguments) as broker:
        await broker.ChangeTokenPin(request)
    say(f"Token '{arguments.name}' has the new PIN, and the broker keeps it.")


async def _unblock(arguments: argparse.Namespace) -> None:
    code = secret("Operator PIN, PUK or SO PIN") if arguments.code else b""
    request = pb.UnblockTokenPinRequest(name=arguments.name, code=code, new_pin=_new_pin())
    async with admin(arguments) as broker:
        await broker.UnblockTokenPin(request)
    say(f"Token '{arguments.name}' has the new PIN with all its tries, and the broker keeps it.")


async def _status(arguments: argparse.Namespace) -> None:
    async with admin(arguments) as broker:
        response = await broker.ReadTokenPins(pb.ReadTokenPinsRequest(name=arguments.name))
    sharers = {"shared_with": list(response.shared_with)}
    rows = [{**pin_row(pin), **sharers} for pin in response.pins]
    columns = ("pin", "state", "tries", "told", "source", "shared_with")
    nothing = f"Nothing is known of PINs of token '{arguments.name}'."
    show_rows(rows, columns, as_json=arguments.json, nothing=nothing)
