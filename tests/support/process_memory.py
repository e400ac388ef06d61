"""What is in the memory of a running process."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MemoryImage:
    """All pages that the process can read or write, as they were at one moment."""

    regions: tuple[bytes, ...]

    @classmethod
    def of(cls, pid: int) -> MemoryImage:
        """Read /proc/PID/mem; the process goes on meanwhile."""
        regions = []
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for start, end in _mapped(pid):
                with contextlib.suppress(OSError, ValueError):  # [vvar] and what was unmapped since
                    memory.seek(start)
                    regions.append(memory.read(end - start) or b"")
        return cls(tuple(regions))

    def holds(self, secret: bytes) -> bool:
        return any(secret in region for region in self.regions)

    @property
    def size(self) -> int:
        return sum(map(len, self.regions))


def _mapped(pid: int) -> list[tuple[int, int]]:
    """Readable regions; of files too, because pages of them may have been written."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        addresses, permissions = line.split()[:2]
        if permissions.startswith("r"):
            start, end = (int(address, 16) for address in addresses.split("-"))
            found.append((start, end))
    return found
