"""vmtoken-broker: owns the tokens, decides who may use them for what."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dom0_broker.app import App, run
from dom0_broker.audit import AuditError
from dom0_broker.config import BrokerConfig, check_directories, read_config
from dom0_broker.core_dumps import forbid_core_dumps
from dom0_broker.policy import PolicyError, read_policy
from dom0_broker.store import StoreError
from vmtoken import log
from vmtoken.errors import VmTokenError
from vmtoken.settings import SettingsError
from vmtoken.version import VERSION


def main(argv: Sequence[str] | None = None) -> int:
    """Run the broker; 0 is a clean end, 1 failure, 2 wrong usage or configuration."""
    arguments = _parser().parse_args(argv)
    try:
        config = read_config(arguments.config)
        check_directories(config, for_another_user=arguments.check_config and os.geteuid() == 0)
        if arguments.check_config:
            return _checked(config)
    except (SettingsError, PolicyError) as error:
        return _failed(str(error), 2)
    log.set_up(config.log.level, as_json=config.log.format == "json")
    forbid_core_dumps()
    try:
        asyncio.run(_serve(config, arguments.config))
    except (StoreError, AuditError, VmTokenError) as error:
        return _failed(str(error), 1)
    except OSError as error:
        return _failed(str(error), 1)
    return 0


async def _serve(config: BrokerConfig, path: Path) -> None:
    await run(App(config, config_path=path))


def _checked(config: BrokerConfig) -> int:
    rules = len(read_policy(config.policy_dir).rules)
    print(f"The configuration is in order; {rules} rules.")  # noqa: T201  # what --check-config is for
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vmtoken-broker", description=__doc__)
    parser.add_argument("--version", action="version", version=f"vmtoken-broker {VERSION}")
    default = Path("/etc/vmtoken/broker.toml")
    parser.add_argument("--config", type=Path, default=default, help="default: %(default)s")
    parser.add_argument(
        "--check-config", action="store_true", help="check configuration and policy, then exit"
    )
    return parser


def _failed(message: str, code: int) -> int:
    print(f"vmtoken-broker: {message}", file=sys.stderr)  # noqa: T201  # before, or instead of, the log
    return code


if __name__ == "__main__":
    sys.exit(main())
