"""The lab from a shell: `make xen-lab`, `make test-xen`, `make xen-shell`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from xenlab import images, shell, snapshot, suite
from xenlab.errors import LabError
from xenlab.lab import Lab


def main() -> int:
    """Run one command; 0 when it did what it should, 1 with a sentence when not."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return int(arguments.command(arguments) or 0)
    except LabError as error:
        print(f"xen-lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xenlab", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    boot = commands.add_parser("boot", help="build the images, boot Xen with dom0 and domUs, and stay")
    boot.add_argument("domains", nargs="*", metavar="DOMU", help="names of domUs to start")
    boot.set_defaults(command=_boot)
    test = commands.add_parser("test", help="run the tests marked xen in a lab that is booted for them")
    test.add_argument("arguments", nargs="*", metavar="PYTEST_ARGUMENT")
    test.set_defaults(command=lambda given: suite.run(given.arguments))
    open_shell = commands.add_parser("shell", help="a shell in the lab that runs, or in one booted for it")
    open_shell.add_argument("machine", nargs="?", default="dom0", metavar="MACHINE")
    open_shell.set_defaults(command=_shell)
    return parser


def _boot(arguments: argparse.Namespace) -> None:
    """Stay until somebody presses Ctrl-C or the lab ends."""
    began = time.monotonic()
    with _lab_for_people() as lab:
        for name in arguments.domains:
            lab.domu(name)
        seconds = time.monotonic() - began
        print(f"xen-lab: up after {seconds:.0f} s; `make xen-shell` opens a shell, Ctrl-C ends it")
        while True:
            lab.check()
            time.sleep(0.5)


def _shell(arguments: argparse.Namespace) -> int:
    if shell.is_offered():
        return shell.attach(arguments.machine)
    with _lab_for_people() as lab:
        if arguments.machine != "dom0":
            lab.domu(arguments.machine)
        return shell.attach(arguments.machine)


@contextmanager
def _lab_for_people() -> Iterator[Lab]:
    start = snapshot.of(images.build())
    with Lab.boot(start, shell.RUNNING.parent, lifetime=shell.LIFETIME) as lab, shell.offered(lab):
        yield lab


if __name__ == "__main__":
    sys.exit(main())
