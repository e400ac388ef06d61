"""Logging: a fixed sentence with fields, as text for people or as JSON for machines."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any, Final

TRAFFIC: Final = 5
"""Below DEBUG: the bytes of APDUs and records; data of VERIFY and of key exports not even here."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up(level: str = "info", *, as_json: bool = False) -> None:
    """Log to standard error from now on. `level` is one of traffic, debug, info, warning, error."""
    logging.addLevelName(TRAFFIC, "TRAFFIC")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if as_json else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def redacted(command: bytes) -> str:
    """A command APDU in hexadecimal, without its data field if that may hold a PIN or a key.

    Header octets are CLA INS P1 P2; 20 VERIFY, 24 CHANGE REFERENCE DATA, 26/28 ENABLE/DISABLE,
    2C RESET RETRY COUNTER (ISO/IEC 7816-4 section 11.6); DA/DB PUT DATA (section 11.4).
    """
    secret = len(command) > 5 and command[1] in {0x20, 0x24, 0x26, 0x28, 0x2A, 0x2C, 0xDA, 0xDB}
    return f"{command[:5].hex()}.. ({len(command) - 5} octets)" if secret else command.hex()


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the base class's name
        fields = "".join(f" {key}={value}" for key, value in _extra(record).items())
        return super().formatMessage(record) + fields


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
