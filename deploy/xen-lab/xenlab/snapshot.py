"""A lab that is up, in files: memory of the host, disk of dom0. From them it goes on in seconds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from xenlab import lab, qemu, recipe, remote
from xenlab.cache import cached, digest
from xenlab.host import run
from xenlab.images import BUILD, Images
from xenlab.lab import Lab

DOMAINS = ("web01", "web02", "own")
"""The domUs in it: two VMs, and one that may be done anything to."""

_MEMORY = "memory"
_WARM = ["vmtoken", "--version"]
"""Brings what every program of the product imports into the cache of a machine."""


def of(images: Images) -> Images:
    """The images for a lab in which `DOMAINS` are up; booted once, when they are not there yet."""
    code = (Path(module.__file__) for module in (lab, qemu, recipe, remote) if module.__file__)
    key = digest([images.dom0.parent.name, *DOMAINS, *code, _emulator()])
    entry = cached(BUILD, "snapshot", key, lambda directory: _make(images, directory))
    return replace(images, dom0=entry / images.dom0.name, memory=entry / _MEMORY, domains=DOMAINS)


def _make(images: Images, directory: Path) -> None:
    print("xen-lab: booting dom0 and domUs for a snapshot", flush=True)
    disk = directory / images.dom0.name
    run(["cp", "--sparse=always", images.dom0, disk])
    with Lab.boot(replace(images, dom0=disk), directory, lasting=True) as booted:
        booted.prepare(*DOMAINS)
        with ThreadPoolExecutor() as pool:
            machines = [booted.dom0, *pool.map(booted.domu, DOMAINS)]
            list(pool.map(lambda machine: machine.run(_WARM), machines))
        booted.save(directory / _MEMORY)


def _emulator() -> str:
    """QEMU, and the processor whose clock the guests have measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line for line in lines if line.startswith("model name")), "")
    return run(["qemu-system-x86_64", "--version"]) + processor
