"""`vmtokenctl token ...`: which tokens there are, and the life of each."""

from __future__ import annotations

import argparse

from dom0_broker.ctl.tokens import discovery, life, listing, membership, personalisation, pins


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommands."""
    group = commands.add_parser("token", help="tokens and their personalisation").add_subparsers(
        required=True, metavar="COMMAND"
    )
    for part in (discovery, membership, listing, personalisation, life, pins):
        part.register(group)
