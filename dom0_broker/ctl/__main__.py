"""vmtokenctl: dom0's operator talks to the broker."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from dom0_broker.audit import AuditError
from dom0_broker.ctl import ca, doctor, sessions, softcards, tokens, vms
from dom0_broker.ctl.connection import DEFAULT_CONFIG
from dom0_broker.ctl.files import UnusableFile
from vmtoken.errors import VmTokenError
from vmtoken.rpc.status import from_rpc_error
from vmtoken.settings import SettingsError
from vmtoken.version import VERSION


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 is success, 1 failure, 2 wrong usage or configuration."""
    arguments = _parser().parse_args(argv)
    try:
        outcome: Any = asyncio.run(arguments.run(arguments))
    except SettingsError as error:
        return _failed(str(error), 2)
    except (VmTokenError, AuditError, UnusableFile) as error:
        return _failed(str(error), 1)
    except grpc.RpcError as error:
        return _failed(_sentence(from_rpc_error(error)), 1)
    except OSError as error:
        return _failed(f"{error.filename or 'input or output'}: {error.strerror}", 1)
    except KeyboardInterrupt:
        return 130
    return int(outcome or 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vmtokenctl", description=__doc__)
    parser.add_argument("--version", action="version", version=f"vmtokenctl {VERSION}")
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, help="the broker's (default: %(default)s)"
    )
    parser.add_argument(
        "--socket", type=Path, help="the broker's admin socket, if not that of its configuration"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (sessions, vms, tokens, ca, softcards, doctor):
        group.register(commands)
    _accept_json_anywhere(commands)
    return parser


def _accept_json_anywhere(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """People write `vm list --json` as well as `--json vm list`."""
    for parser in commands.choices.values():
        inner = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
        for group in inner:
            _accept_json_anywhere(group)
        if not inner:
            parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")


def _sentence(error: VmTokenError) -> str:
    again = f" Try again in {error.retry_after:g} seconds." if error.retry_after else ""
    return error.message + again


def _failed(message: str, code: int) -> int:
    print(f"vmtokenctl: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
