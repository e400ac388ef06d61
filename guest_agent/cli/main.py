"""Arguments, commands and exit codes of `vmtoken`: 0 done, 1 failed, 2 usage."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from guest_agent.cli.connect import ConnectOptions, connect
from guest_agent.cli.doctor import doctor
from guest_agent.cli.forward import forward
from guest_agent.cli.status import list_tokens, status
from guest_agent.client import DEFAULT_SOCKET
from guest_agent.config import DEFAULT_PATH
from vmtoken.errors import VmTokenError
from vmtoken.v1 import tls_service_pb2 as pb
from vmtoken.v1 import token_pb2
from vmtoken.version import VERSION

Command = Callable[[argparse.Namespace], Awaitable[int]]

_VERSIONS = {"1.2": token_pb2.TLS_VERSION_1_2, "1.3": token_pb2.TLS_VERSION_1_3}


def main(arguments: list[str] | None = None) -> int:
    """Run one command."""
    options = _parser().parse_args(arguments)
    command: Command = options.command
    try:
        return asyncio.run(_run(command(options)))
    except VmTokenError as error:
        return complain(error)
    except (asyncio.CancelledError, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except BrokenPipeError:
        _forget_output()
        return 1
    except OSError as error:
        print(f"vmtoken: {error}", file=sys.stderr)
        return 1


def complain(error: VmTokenError) -> int:
    """Say what went wrong, for a person and for whoever searches the documentation."""
    hint = "" if error.retry_after is None else f" Try again in {error.retry_after:g} s."
    print(f"vmtoken: {error.message}{hint} [{error.reason}]", file=sys.stderr)
    return 1


async def _run(command: Awaitable[int]) -> int:
    """Ctrl-C cancels it between two steps of the loop.

    `asyncio.run` alone cancels wherever the interpreter is, also where a future is about to get its result.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job in the background
        return await command
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        return await command
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _forget_output() -> None:
    """Nobody reads our output any more; Python must not complain of that when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vmtoken", description="vmtoken: TLS sessions with the identity of this machine."
    )
    parser.add_argument("--version", action="version", version=f"vmtoken {VERSION}")
    parser.add_argument(
        "--socket",
        type=Path,
        default=Path(os.environ.get("VMTOKEN_AGENT", DEFAULT_SOCKET)),
        help=f"the agent's socket (default: VMTOKEN_AGENT, or {DEFAULT_SOCKET})",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_connect(commands)
    _add_forward(commands)
    for name, command, help_text in (
        ("status", status, "is the agent up, does the broker answer, are the tokens ready"),
        ("list", list_tokens, "the tokens of this machine"),
    ):
        child = _add(commands, name, command, help_text)
        child.add_argument("--json", action="store_true", help="print JSON")
    _add_doctor(commands)
    return parser


_Commands = argparse._SubParsersAction  # the only name that argparse has for it


def _add(
    commands: _Commands[argparse.ArgumentParser], name: str, command: Command, text: str
) -> argparse.ArgumentParser:
    child = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    child.add_argument("--socket", type=Path, default=argparse.SUPPRESS, help="the agent's socket")
    child.set_defaults(command=command)
    return child


def _add_doctor(commands: _Commands[argparse.ArgumentParser]) -> None:
    child = _add(commands, "doctor", doctor, "what is wrong here, and what to do; exit code 1 if anything is")
    child.add_argument("--json", action="store_true", help="print JSON")
    child.add_argument("--config", type=Path, default=DEFAULT_PATH, metavar="FILE", help="the agent's")


def _add_connect(commands: _Commands[argparse.ArgumentParser]) -> None:
    child = _add(
        commands,
        "connect",
        _connect,
        "open a TLS session: standard input goes to the server, its answer to standard output",
    )
    _add_target(child)
    child.add_argument("--msg", action="store_true", help="show the records of the handshake")
    child.add_argument("--resume", action="store_true", help="open, wait for the ticket, close, open again")
    child.add_argument("--json", action="store_true", help="print the session as JSON, on standard error")
    child.add_argument("--quiet", action="store_true", help="print no summary")


def _add_forward(commands: _Commands[argparse.ArgumentParser]) -> None:
    child = _add(
        commands, "forward", _forward, "listen, and lead every connection to a server in a TLS session"
    )
    child.add_argument("listen", metavar="LISTEN", help="[ADDRESS:]PORT, or unix:PATH")
    _add_target(child)


def _add_target(child: argparse.ArgumentParser) -> None:
    child.add_argument("server", type=host_and_port, metavar="HOST:PORT", help="the server")
    child.add_argument("--token", default="", metavar="NAME", help="which token, when there is more than one")
    child.add_argument("--alpn", default="", metavar="NAMES", help="ALPN names, best first, with commas")
    child.add_argument("--servername", default="", metavar="NAME", help="name to verify if not HOST")
    child.add_argument("--no-resumption", action="store_true", help="always make a full handshake")
    child.add_argument("--timeout", type=_seconds, default=30.0, metavar="SECONDS", help="default: 30")
    version = child.add_mutually_exclusive_group()
    version.add_argument("--tls1_2", dest="version", action="store_const", const="1.2", help="TLS 1.2 only")
    version.add_argument("--tls1_3", dest="version", action="store_const", const="1.3", help="TLS 1.3 only")


def host_and_port(text: str) -> tuple[str, int]:
    """HOST:PORT, an IPv6 address in brackets."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise argparse.ArgumentTypeError(f"'{text}' is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds")
    return seconds


def _request(options: argparse.Namespace) -> pb.ConnectRequest:
    host, port = options.server
    version = _VERSIONS.get(options.version, token_pb2.TLS_VERSION_UNSPECIFIED)
    return pb.ConnectRequest(
        host=host,
        port=port,
        token=options.token,
        alpn=[name for name in options.alpn.split(",") if name],
        min_version=version,
        max_version=version,
        server_name=options.servername,
        no_resumption=options.no_resumption,
    )


async def _connect(options: argparse.Namespace) -> int:
    request = _request(options)
    request.trace = options.msg
    return await connect(
        ConnectOptions(
            socket=options.socket,
            request=request,
            timeout=options.timeout,
            messages=options.msg,
            resume=options.resume,
            as_json=options.json,
            quiet=options.quiet,
        )
    )


async def _forward(options: argparse.Namespace) -> int:
    return await forward(options.socket, options.listen, _request(options), options.timeout)
