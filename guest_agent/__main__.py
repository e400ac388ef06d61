"""vmtoken-agent: opens TLS sessions for the applications of this VM with the VM's tokens."""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
from pathlib import Path

from guest_agent.allocator import keep_freed_blocks
from guest_agent.app import run
from guest_agent.config import DEFAULT_PATH, load_config
from vmtoken.log import set_up
from vmtoken.settings import SettingsError
from vmtoken.version import VERSION


def main(arguments: list[str] | None = None) -> int:
    """Run the agent; 0 when it was told to stop, 1 when it failed, 2 for usage and configuration."""
    options = _parser().parse_args(arguments)
    try:
        config = load_config(options.config)
    except SettingsError as error:
        return _complain(error, 2)
    if options.check_config:
        sys.stdout.write(f"{options.config}: good\n")
        return 0
    keep_freed_blocks()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # record keys do not go into core dumps
    set_up(config.log.level, as_json=config.log.format == "json")
    try:
        asyncio.run(run(config, options.config))
    except OSError as error:
        return _complain(error, 1)
    return 0


def _complain(error: Exception, exit_code: int) -> int:
    sys.stderr.write(f"vmtoken-agent: {error}\n")
    return exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vmtoken-agent", description=__doc__)
    parser.add_argument("--version", action="version", version=f"vmtoken-agent {VERSION}")
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_PATH, metavar="FILE", help=f"default: {DEFAULT_PATH}"
    )
    parser.add_argument(
        "--check-config", action="store_true", help="say whether the configuration is good, and exit"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
