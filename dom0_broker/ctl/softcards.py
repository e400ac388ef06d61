"""`vmtokenctl softcard ...`: software elements as cards in virtual readers, to try the way over PC/SC.

The elements are files of their own, apart from those of a broker, which may run beside.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import string
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dom0_broker.backends.base import Pins
from dom0_broker.backends.software.backend import SoftwareBackend
from dom0_broker.backends.software.element import Applications, ElementOptions
from dom0_broker.backends.software.piv_store import PivSecrets
from dom0_broker.backends.software.sealing import load_sealing_key
from dom0_broker.backends.software.vpcd import DEFAULT_PORT, VirtualCard
from dom0_broker.ctl.arguments import number_to
from dom0_broker.ctl.output import say
from dom0_broker.ctl.prompts import has_terminal, secret
from vmtoken.errors import InvalidRequest, TokenNotFound, TokenUnavailable, VmTokenError
from vmtoken.iso7816.atr import AnswerToReset
from vmtoken.secret import SecretBytes

_RETRY: Final = 1.0
"""Seconds between two looks for a reader that went away."""

_USER_DIGITS, _OPERATOR_DIGITS = 6, 8
_MANAGEMENT_KEY: Final = 32
"""Octets: AES-256."""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommands."""
    group = commands.add_parser("softcard", help="software cards in virtual readers").add_subparsers(
        required=True, metavar="COMMAND"
    )
    serve = group.add_parser(
        "serve",
        help="put a software card into a reader of pcscd's vpcd until Ctrl-C; it is made if there is none",
    )
    serve.add_argument(
        "--port",
        type=number_to(65535),
        default=DEFAULT_PORT,
        help="of the reader's slot (default: %(default)s)",
    )
    serve.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    serve.add_argument("--directory", type=Path, default=_default_directory(), help="default: %(default)s")
    serve.add_argument("--name", default="card", help="of the card's file (default: %(default)s)")
    serve.add_argument(
        "--applications",
        type=_applications,
        default=Applications.EAP_TLS,
        metavar="eap-tls,piv",
        help="what it can be used as (default: eap-tls)",
    )
    serve.add_argument("--apdus", choices=("short", "extended", "t0"), default="short", help="what it takes")
    serve.add_argument("--atr", type=_atr, help="answer to reset, hexadecimal, if not one that fits")
    serve.add_argument("--once", action="store_true", help="end when the reader goes away; else wait for it")
    serve.set_defaults(run=_serve)


async def _serve(arguments: argparse.Namespace) -> None:
    options = ElementOptions(
        arguments.applications, extended=arguments.apdus == "extended", t0=arguments.apdus == "t0"
    )
    backend, serial = _opened(arguments.directory, arguments.name, options)
    atr = arguments.atr or AnswerToReset.of_card(t0=options.t0, extended=options.extended).encode()

    def new_card() -> VirtualCard:
        return VirtualCard(backend.connect(arguments.name), atr, arguments.port, host=arguments.host)

    await _play(new_card, arguments.name, serial)
    while not arguments.once:
        say("The reader went away; the card waits for it.")
        await _reader_is_back(new_card, arguments.name, serial)


async def _reader_is_back(new_card: Callable[[], VirtualCard], name: str, serial: str) -> None:
    while True:
        await asyncio.sleep(_RETRY)
        try:
            return await _play(new_card, name, serial)
        except TokenUnavailable:
            continue


async def _play(new_card: Callable[[], VirtualCard], name: str, serial: str) -> None:
    """One insertion, from the first word of the reader to its last."""
    card = new_card()
    sentence = (
        f"The card '{name}' is in the reader at {card.slot}, as pcsc:serial={serial}; "
        "'vmtokenctl token discover' finds it. Ctrl-C takes it out."
    )
    try:
        await asyncio.to_thread(card.play, lambda: say(sentence))
    finally:
        card.remove()


def _opened(directory: Path, name: str, options: ElementOptions) -> tuple[SoftwareBackend, str]:
    """The card's backend and its serial number; the card is made if there is none."""
    for place in (directory, directory.parent):
        if (place / "broker.sqlite").exists():
            raise InvalidRequest(f"The directory {directory} is a broker's; give the card one of its own.")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    backend = SoftwareBackend(directory, load_sealing_key(directory), options=options)
    try:
        return backend, backend.serial(name)
    except TokenNotFound:
        _make(backend, name, with_piv=Applications.PIV in options.applications)
    say(f"The card '{name}' is new: {directory / name}.element")
    return backend, backend.serial(name)


def _make(backend: SoftwareBackend, name: str, *, with_piv: bool) -> None:
    """PIV has the same PIN, its PUK is the operator PIN, and it has a management key besides."""
    user = _new_secret("user PIN", lambda: _digits(_USER_DIGITS))
    operator = _new_secret("operator PIN", lambda: _digits(_OPERATOR_DIGITS))
    piv = PivSecrets(user, operator, _new_management_key()) if with_piv else None
    backend.create(name, Pins(user, operator), piv)


def _new_management_key() -> SecretBytes:
    digits = _new_secret("management key in hexadecimal digits", lambda: secrets.token_hex(_MANAGEMENT_KEY))
    try:
        return SecretBytes(bytes.fromhex(digits.reveal().decode()))
    except ValueError as error:
        raise InvalidRequest("The management key is not in hexadecimal digits; give it so.") from error


def _new_secret(name: str, make: Callable[[], str]) -> SecretBytes:
    """As a person types it, twice, or made up and shown this once; from a pipe, the next line."""
    if not has_terminal():
        line = secret(name)
        if not line:
            raise InvalidRequest(
                f"A new card needs a {name}: run this in a terminal, or give user PIN and operator PIN, and "
                "for PIV the management key, as lines of standard input."
            )
        return SecretBytes(line)
    typed = secret(f"New {name} (Enter alone makes one up)")
    if not typed:
        made = make()
        _show_once(f"The {name} is {made}; note it, it is not shown again.")
        return SecretBytes(made.encode())
    if secret(f"The {name} again") != typed:
        raise InvalidRequest(f"The two entries of the {name} differ; begin again.")
    return SecretBytes(typed)


def _digits(count: int) -> str:
    return "".join(secrets.choice(string.digits) for _ in range(count))


def _show_once(sentence: str) -> None:
    """To the terminal itself, so that no redirected output keeps it."""
    try:
        with open("/dev/tty", "w") as terminal:
            print(sentence, file=terminal)
    except OSError as error:
        raise VmTokenError("There is no terminal to show a PIN on; give the PIN yourself.") from error


def _applications(text: str) -> Applications:
    known = {"eap-tls": Applications.EAP_TLS, "piv": Applications.PIV}
    chosen = Applications(0)
    for name in text.split(","):
        if name not in known:
            raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(known)}")
        chosen |= known[name]
    return chosen


def _atr(text: str) -> bytes:
    try:
        octets = bytes.fromhex(text.replace(":", " "))
        AnswerToReset.decode(octets)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no answer to reset: {error}") from error
    return octets


def _default_directory() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(state) / "vmtoken/softcards"
