"""What a broker uses in dom0, as those count it who give it: the kernel, Xen, xenstored.

A program for dom0, with the broker's process number; it prints JSON, for `Counts` in tests/xen/counts.py.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

LSEVTCHN = "/usr/lib/xen-4.17/bin/lsevtchn"
LINKS = "/local/domain/0/data/vmtoken"
GRANTS_IN_FRAME = 512
"""Entries of version 1, 8 octets each, in a page."""


def descriptors(process: int) -> Counter[str]:
    """By kind: `socket`, `/dev/xen/gntalloc`, ..."""
    kinds: Counter[str] = Counter()
    for each in Path(f"/proc/{process}/fd").iterdir():
        try:
            kinds[re.sub(r":?\[?\d+\]?$", "", os.readlink(each))] += 1
        except FileNotFoundError:  # closed meanwhile
            continue
    return kinds


def status(process: int, field: str) -> int:
    """A number in /proc/PID/status."""
    found = re.search(rf"^{field}:\s+(\d+)", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    assert found, field
    return int(found[1])


def kernel_numbers(*names: str) -> list[int]:
    """Variables of the kernel of 32 bits, through /proc/kcore, an ELF file whose segments are its memory."""
    symbols = [line.split() for line in Path("/proc/kallsyms").read_text().splitlines()]
    addresses = {symbol[2]: int(symbol[0], 16) for symbol in symbols if symbol[2] in names}
    with open("/proc/kcore", "rb", buffering=0) as memory:
        header = memory.read(64)
        at, (size, count) = int.from_bytes(header[32:40], "little"), struct.unpack_from("<HH", header, 54)
        memory.seek(at)
        table = memory.read(size * count)
        segments = [struct.unpack_from("<IIQQQQ", table, number * size) for number in range(count)]
        return [_number_at(addresses[name], segments, memory.fileno()) for name in names]


def _number_at(address: int, segments: list[tuple[int, ...]], memory: int) -> int:
    for _, _, offset, start, _, length in segments:
        if start <= address < start + length:
            return int.from_bytes(os.pread(memory, 4, offset + address - start), "little")
    raise LookupError(f"{address:#x} is not in /proc/kcore")


def output(*command: str) -> list[str]:
    """Lines that a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()


def main() -> None:
    """Count everything once."""
    broker = int(sys.argv[1])
    (xenstored,) = map(int, output("pidof", "oxenstored", "xenstored")[0].split())
    nodes = [line.split(" = ")[0] for line in output("xenstore-ls", "-f", LINKS) if " = " in line]
    granted, free, frames = kernel_numbers("gref_size", "gnttab_free_count", "nr_grant_frames")
    domains = [line.split() for line in output("xl", "list")[1:]]
    counts = {
        "descriptors": descriptors(broker),
        "memory": status(broker, "VmRSS"),
        "threads": status(broker, "Threads"),
        "links": sorted({int(node.split("/")[6]) for node in nodes if node.count("/") == 6}),
        "nodes": len(nodes),
        "granted": granted,
        "grants": frames * GRANTS_IN_FRAME - free,
        "event_channels": sum(" Interdomain" in line or " Unbound" in line for line in output(LSEVTCHN, "0")),
        "domains": sorted(int(fields[1]) for fields in domains if fields[0] not in ("Domain-0", "(null)")),
        "dead": sum(fields[0] == "(null)" for fields in domains),
        "xenstored_descriptors": descriptors(xenstored).total(),
        "xenstored_memory": status(xenstored, "VmRSS"),
    }
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
