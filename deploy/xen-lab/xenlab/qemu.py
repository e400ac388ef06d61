"""QEMU with Xen and dom0 in it: one process, which ends with us or at its time limit, whatever happens."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from xenlab import recipe
from xenlab.errors import LabError
from xenlab.images import Images

MEMORY = 3072
"""MiB for Xen, dom0 and all domUs unless the caller needs more; taken from the host as it is used."""

DOM0_MEMORY = "1G"

PORTS = ("tests", "shell")
"""Lines to dom0's agent: one for tests, one for a person who looks on."""


class Qemu:
    """A running QEMU."""

    def __init__(self, images: Images, console: Path, lifetime: float, memory: int = MEMORY) -> None:
        self.console_path = console
        self._memory = memory
        self.directory = Path(tempfile.mkdtemp(prefix="xenlab-"))  # short: paths of sockets have 107 octets
        console.parent.mkdir(parents=True, exist_ok=True)
        # setpriv ends `timeout` when we end, and `timeout` ends QEMU; QEMU shares the machine with others.
        guard = [
            "setpriv",
            "--pdeathsig=TERM",
            "timeout",
            "--kill-after=5",
            f"{lifetime:.0f}",
            "nice",
            "-n",
            "10",
        ]
        self._process = subprocess.Popen(
            [*guard, *self._command(images)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    @property
    def console(self) -> str:
        """What Xen and dom0 have written on the serial line until now."""
        return self.console_path.read_text(errors="replace") if self.console_path.exists() else ""

    def port(self, name: str) -> Path:
        """The Unix socket of a line to dom0's agent."""
        return self.directory / name

    def check(self) -> None:
        """Raise LabError when QEMU has ended."""
        if self._process.poll() is not None:
            assert self._process.stderr
            raise LabError(
                f"QEMU ended with exit code {self._process.returncode}: {self._process.stderr.read()}"
            )

    def stop(self) -> None:
        """End it; its disks are thrown away."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stderr
        self._process.stderr.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _command(self, images: Images) -> list[str]:
        xen = f"{recipe.XEN_ARGUMENTS} dom0_mem={DOM0_MEMORY},max:{DOM0_MEMORY}"
        kernel = f"{images.kernel} {recipe.KERNEL_ARGUMENTS}"
        command = ["qemu-system-x86_64", "-machine", "q35", "-cpu", recipe.CPU, "-smp", "2"]
        command += ["-m", f"{self._memory}M"]
        command += ["-accel", "tcg,thread=multi,tb-size=512"]
        command += ["-display", "none", "-vga", "none", "-nic", "none", "-monitor", "none", "-no-reboot"]
        command += ["-serial", f"file:{self.console_path}", "-device", "virtio-rng-pci"]
        command += ["-kernel", str(images.xen), "-append", xen, "-initrd", f"{kernel},{images.initrd}"]
        command += _disk("dom0", images.dom0, "snapshot=on") + _disk("domu", images.domu, "readonly=on")
        command += ["-device", "virtio-serial-pci"]
        for name in PORTS:
            command += ["-chardev", f"socket,id={name},path={self.port(name)},server=on,wait=off"]
            command += ["-device", f"virtserialport,chardev={name},name=xenlab.{name}"]
        return command


def _disk(name: str, image: Path, access: str) -> list[str]:
    drive = f"id={name},file={image},if=none,format=raw,cache=unsafe,{access}"
    return ["-drive", drive, "-device", f"virtio-blk-pci,drive={name}"]
