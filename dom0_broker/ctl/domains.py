"""Domains as their configuration and the toolstack show them: names, UUIDs, whether they run."""

from __future__ import annotations

import asyncio
import re
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dom0_broker.ctl.files import UnusableFile
from vmtoken.v1 import admin_service_pb2 as pb

_WORD: Final = re.compile(r"""#[^\n]*|"[^"\n]*"|'[^'\n]*'|[A-Za-z_]\w*|\n|[^\s]""")
"""The words of xl.cfg(5): comments, strings, names, ends of lines, anything else."""

_STATES: Final = (("d", "dying"), ("c", "crashed"), ("s", "shut down"), ("p", "paused"))
"""The letters of `xl list` (xl(1)), the one that says most first; a domain with none of them runs."""

_PATIENCE: Final = 5.0
"""Seconds for `xl list`: it waits while another xl holds its lock."""


@dataclass(frozen=True, slots=True)
class DomainConfig:
    """What a domain's configuration says of who it is; `uuid` is empty when xl makes up one at each start."""

    name: str
    uuid: str


def read_domain_config(path: Path) -> DomainConfig:
    """Name and UUID of a configuration in the format of xl.cfg(5). Raises `UnusableFile`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UnusableFile(f"{path}: cannot be read ({reason}).") from error
    settings = dict(_settings(text))
    if "name" not in settings:
        raise UnusableFile(f'{path}: has no line name = "..."; is it the configuration of a domain?')
    return DomainConfig(settings["name"], settings.get("uuid", ""))


def _settings(text: str) -> Iterator[tuple[str, str]]:
    """Statements that set a string: they begin on a line or after a semicolon; the last of a name counts."""
    words = ["\n", *_WORD.findall(text)]
    for before, name, equals, value in zip(words, words[1:], words[2:], words[3:], strict=False):
        if before in ("\n", ";") and equals == "=" and value[0] in "\"'":
            yield name, value[1:-1]


def state(vm: pb.Vm, states: dict[int, str]) -> str:
    """Running, paused, gone or another state of a VM's domain; unknown when neither broker nor xl says."""
    if not vm.domains_watched:
        return "unknown"
    if not vm.HasField("domid"):
        return "gone"
    return states.get(vm.domid, "unknown") + (", unlinked" if vm.unlinked else "")


async def domain_states() -> dict[int, str]:
    """The state of each domain by its domid, as `xl list` shows it; nothing where we may not ask."""
    xl = shutil.which("xl", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if xl is None:
        return {}
    process = await asyncio.create_subprocess_exec(xl, "list", stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
    try:
        async with asyncio.timeout(_PATIENCE):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return {}
    return parse_list(output.decode("utf-8", "replace"))


def parse_list(listing: str) -> dict[int, str]:
    """What `xl list` prints: name, domid, memory, VCPUs, six letters or hyphens, seconds."""
    states = {}
    for line in listing.splitlines()[1:]:
        words = line.rsplit(None, 5)
        if len(words) == 6 and words[1].isdecimal():
            letters = words[4]
            states[int(words[1])] = next((name for letter, name in _STATES if letter in letters), "running")
    return states
