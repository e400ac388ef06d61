"""What a broker uses in dom0, counted from outside of it, at one moment or another."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xenlab import Lab
from xenlab.remote import PATIENCE

_COUNTER = (Path(__file__).parent / "counter.py").read_text()

_LAST_LINE = "gnttab_usage_print_all ] done"
_OF_DOM0 = re.compile(r"grant-table for remote d0 .*?(?=grant-table for|gnttab_usage_print_all)", re.DOTALL)
_ENTRY = re.compile(r"^\(XEN\) \[0x[0-9a-f]+\] ", re.MULTILINE)


@dataclass(frozen=True)
class Counts:
    """Numbers as tests/xen/counter.py tells them."""

    descriptors: dict[str, int]
    """Of the broker, by kind."""

    memory: int
    """Resident, of the broker, KiB."""

    threads: int
    links: list[int]
    """Domids with nodes of a link in xenstore."""

    nodes: int
    """Nodes in xenstore at and below that of our links."""

    granted: int
    """Pages that the kernel's gntalloc counts against its limit."""

    grants: int
    """Entries of dom0's grant table that are not free."""

    event_channels: int
    """Of dom0, to other domains."""

    domains: list[int]
    dead: int
    """Domains that are gone but for what others still hold of them."""

    xenstored_descriptors: int
    """A connection each, with its watches."""

    xenstored_memory: int
    """Resident, KiB."""

    @classmethod
    def now(cls, lab: Lab, broker: int) -> Counts:
        """Of the process of a broker in dom0."""
        return cls(**json.loads(lab.dom0.python(_COUNTER, str(broker), seconds=300 * PATIENCE)))

    @property
    def numbers(self) -> dict[str, int]:
        """What may not have grown after everybody has left; memory has a rule of its own."""
        kinds = {f"descriptors: {kind}": count for kind, count in self.descriptors.items()}
        return kinds | {
            "descriptors": sum(self.descriptors.values()),
            "threads": self.threads,
            "links in xenstore": len(self.links),
            "nodes in xenstore": self.nodes,
            "pages granted (gntalloc)": self.granted,
            "grants (dom0's table)": self.grants,
            "event channels of dom0": self.event_channels,
            "domains": len(self.domains),
            "dead domains": self.dead,
            "connections of xenstored": self.xenstored_descriptors,
        }


def mapped_by_others(lab: Lab) -> int:
    """Grants of dom0 that other domains have mapped, as Xen itself says (`xl debug-keys g`)."""
    table = _OF_DOM0.search(lab.press("g", _LAST_LINE))
    assert table, "Xen shows the grant table of each domain"
    return len(_ENTRY.findall(table[0]))


def left_over(before: dict[str, int], after: dict[str, int]) -> Iterator[str]:
    """What there is more of."""
    for name in sorted(before.keys() | after.keys()):
        if after.get(name, 0) > before.get(name, 0):
            yield f"{name}: {before.get(name, 0)} before, {after[name]} after"
