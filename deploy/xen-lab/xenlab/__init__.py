"""A real Xen host in QEMU, with a dom0 and domUs that run what an operator installs: docs/xen-lab.md."""

from xenlab.errors import LabError, LabUnavailable
from xenlab.lab import DomU, Lab
from xenlab.remote import CommandFailed, Completed, Machine, Process, Unreachable

__all__ = [
    "CommandFailed",
    "Completed",
    "DomU",
    "Lab",
    "LabError",
    "LabUnavailable",
    "Machine",
    "Process",
    "Unreachable",
]
