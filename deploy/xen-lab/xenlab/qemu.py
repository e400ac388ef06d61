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

SAVE_WITHIN = 120.0
"""Seconds for a gigabyte, on a busy disk."""

PORTS = ("tests", "shell")
"""Lines to dom0's agent: one for tests, one for a person who looks on."""

USB_CONTROLLER = "00:10.0"
"""Where on the PCI bus a lab with a card reader has the controller that the reader is behind."""

_READER = "reader"


class Qemu:
    """A running QEMU."""

    def __init__(
        self,
        images: Images,
        console: Path,
        lifetime: float,
        memory: int = MEMORY,
        *,
        lasting: bool = False,
        reader: bool = False,
    ) -> None:
        """With `lasting` what dom0 writes goes to the file of its disk, and is not thrown away at the end.

        With `reader` the host has a USB card reader, and an IOMMU, without which Xen passes nothing through.
        """
        self.console_path = console
        self._dom0_access = "snapshot=off" if lasting else "snapshot=on"
        self._memory = memory
        self._has_reader = reader
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
            [*guard, *self._command(images)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def console(self) -> str:
        """What Xen and dom0 have written on the serial line until now."""
        return self.console_path.read_text(errors="replace") if self.console_path.exists() else ""

    def port(self, name: str) -> Path:
        """The Unix socket of a line to dom0's agent."""
        return self.directory / name

    @property
    def reader(self) -> Path:
        """The Unix socket of the card reader, to which who plays a card connects."""
        assert self._has_reader
        return self.port(_READER)

    def check(self) -> None:
        """Raise LabError when QEMU has ended."""
        if self._process.poll() is not None:
            assert self._process.stderr
            raise LabError(
                f"QEMU ended with exit code {self._process.returncode}: {self._process.stderr.read()}"
            )

    def save(self, path: Path) -> None:
        """End it with its memory and the state of its devices in a file, which is for `Images.memory`."""
        commands = f"""migrate_set_parameter max-bandwidth 100G\nmigrate "exec:cat > {path}"\nquit\n"""
        try:
            said, _ = self._process.communicate(commands, SAVE_WITHIN)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"QEMU did not save its memory within {SAVE_WITHIN:.0f} s") from error
        if "Error" in said or self._process.returncode:
            raise LabError(f"QEMU did not save its memory: {said}")

    def stop(self) -> None:
        """End it."""
        with self._process:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _command(self, images: Images) -> list[str]:
        xen = f"{recipe.XEN_ARGUMENTS} dom0_mem={DOM0_MEMORY},max:{DOM0_MEMORY}"
        kernel = f"{images.kernel} {recipe.KERNEL_ARGUMENTS}"
        command = ["qemu-system-x86_64", "-machine", "q35", "-cpu", recipe.CPU, "-smp", "2"]
        command += ["-m", f"{self._memory}M"]
        command += ["-accel", "tcg,thread=multi,tb-size=512"]
        command += ["-display", "none", "-vga", "none", "-nic", "none", "-monitor", "stdio", "-no-reboot"]
        command += ["-serial", f"file:{self.console_path}", "-device", "virtio-rng-pci"]
        command += ["-kernel", str(images.xen), "-append", xen, "-initrd", f"{kernel},{images.initrd}"]
        command += _disk("dom0", images.dom0, self._dom0_access) + _disk("domu", images.domu, "readonly=on")
        command += ["-device", "virtio-serial-pci"]
        for name in PORTS:
            command += [*self._socket(name), "-device", f"virtserialport,chardev={name},name=xenlab.{name}"]
        if self._has_reader:
            slot = USB_CONTROLLER.removeprefix("00:")
            command += ["-device", "intel-iommu,intremap=on", "-device", f"qemu-xhci,id=usb,addr={slot}"]
            command += ["-device", "usb-ccid,id=ccid,bus=usb.0", *self._socket(_READER)]
            command += ["-device", f"ccid-card-passthru,bus=ccid.0,chardev={_READER}"]
        if images.memory:
            command += ["-incoming", f"exec:cat {images.memory}"]
        return command

    def _socket(self, name: str) -> list[str]:
        return ["-chardev", f"socket,id={name},path={self.port(name)},server=on,wait=off"]


def _disk(name: str, image: Path, access: str) -> list[str]:
    drive = f"id={name},file={image},if=none,format=raw,cache=unsafe,{access}"
    return ["-drive", drive, "-device", f"virtio-blk-pci,drive={name}"]
