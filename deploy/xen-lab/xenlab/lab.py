"""The lab as tests see it: dom0, domUs that come and go, what their consoles said.

with Lab.boot(images, directory) as lab:
    lab.dom0.run(["xl", "list"])
    web01 = lab.domu("web01")
    web01.run(["vmtoken", "--version"])
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from xenlab import recipe
from xenlab.errors import LabError
from xenlab.images import Images
from xenlab.qemu import MEMORY, Qemu
from xenlab.remote import PATIENCE, RUN_WITHIN, Channel, CommandFailed, Machine, Unreachable

BOOT_WITHIN = 300.0 * PATIENCE
"""Seconds for dom0 and for a domU to come up: ten times what they take on an idle machine with 2 cores."""

LIFETIME = 2900.0
"""Seconds after which a lab ends, whatever it does."""

_FIRST_ADDRESS = 10
Config = Mapping[str, str | int | list[str]]


class Lab:
    """A running Xen host."""

    def __init__(self, qemu: Qemu, channel: Channel) -> None:
        self._qemu = qemu
        self._channel = channel
        self._addresses: dict[str, str] = {}
        self._domains: dict[str, DomU] = {}
        self.dom0 = Machine(channel, "dom0")

    @classmethod
    @contextmanager
    def boot(
        cls,
        images: Images,
        directory: Path,
        lifetime: float = LIFETIME,
        memory: int = MEMORY,
        *,
        lasting: bool = False,
        reader: bool = False,
    ) -> Iterator[Lab]:
        """Boot Xen and dom0, and end both with the block; `directory` keeps consoles, `memory` is in MiB.

        `lasting` and `reader` as for `Qemu`.
        """
        console = directory / "xen-console.log"
        qemu = Qemu(images, console, lifetime, memory, lasting=lasting, reader=reader)
        try:
            channel = _connect(qemu)
            try:
                lab = cls(qemu, channel)
                lab.dom0.wait_until("systemctl is-active --quiet xen.service", BOOT_WITHIN)
                lab._go_on(images.domains)
                yield lab
            finally:
                channel.close()
        finally:
            qemu.stop()

    @property
    def sockets(self) -> Path:
        """The directory with the lines to dom0's agent."""
        return self._qemu.directory

    @property
    def reader(self) -> Path:
        """The socket of the card reader, in a lab that has one (`Qemu.reader`)."""
        return self._qemu.reader

    def domu(self, name: str) -> DomU:
        """A domU that tests share; made when it is first asked for, and again when it was destroyed."""
        self.prepare(name)
        domain = self._domains[name]
        domain.wait_until_up()
        return domain

    def prepare(self, *names: str) -> None:
        """Let domUs that tests share boot while the caller goes on."""
        for name in names:
            domain = self._domains.get(name)
            if domain is None or not domain.is_alive:
                self.define(name).create()

    def create(self, name: str, **options: object) -> DomU:
        """Make a domU and wait until it takes commands; options as for `DomU`."""
        domain = self.define(name, **options)
        domain.create()
        domain.wait_until_up()
        return domain

    def define(self, name: str, **options: object) -> DomU:
        """A domU that does not run yet; options as for `DomU`."""
        address = self._addresses.setdefault(name, f"10.77.0.{_FIRST_ADDRESS + len(self._addresses)}")
        self._domains[name] = domain = DomU(self.dom0, name, address, **options)  # type: ignore[arg-type]
        return domain

    def save(self, path: Path) -> None:
        """End the lab with all that is in its memory in a file (`Qemu.save`)."""
        self._channel.close()
        self._qemu.save(path)

    def check(self) -> None:
        """Raise LabError when Xen or dom0 is gone."""
        self._qemu.check()

    def press(self, key: str, last_line: str, seconds: float = RUN_WITHIN) -> str:
        """What Xen prints on its console for a key (`xl debug-keys`), up to a line that it ends with."""
        before = len(self._qemu.console)
        self.dom0.run(["xl", "debug-keys", key])
        deadline = time.monotonic() + seconds
        while last_line not in (printed := self._qemu.console[before:]):
            if time.monotonic() > deadline:
                raise LabError(f"Xen did not print {last_line!r} within {seconds:.0f} s of the key {key}")
            time.sleep(0.1)
        return printed

    def consoles(self, lines: int = 60) -> dict[str, str]:
        """The last lines of each console: Xen's with dom0's, and each domU's."""
        texts = {"Xen and dom0": "\n".join(self._qemu.console.splitlines()[-lines:])}
        for name, domain in self._domains.items():
            try:
                texts[name] = domain.console(lines)
            except LabError as error:
                texts[name] = str(error)
        return texts

    def _go_on(self, domains: Sequence[str]) -> None:
        """With domUs that were saved with the host; their clocks have stood still."""
        saved = [self.define(name) for name in domains]
        for machine in (self.dom0, *saved):
            machine.run(["date", "--set", f"@{time.time():.0f}"])


class DomU(Machine):
    """A domU: what `xl` does to it, and commands in it."""

    def __init__(
        self,
        dom0: Machine,
        name: str,
        address: str,
        *,
        identity: uuid.UUID | None = None,
        memory: int = 320,
        config: Config | None = None,
        systemd: bool = False,
        persistent: bool = False,
    ) -> None:
        """`config` replaces or adds lines of the xl configuration; `memory` is in MiB.

        Without systemd a domU has the lab's agent and nothing else, and is up a minute of emulation earlier.
        What a persistent one writes is on a disk of its own, and still there after a reboot.
        """
        super().__init__(dom0.channel, name, address)
        self.dom0 = dom0
        self.uuid = identity or uuid.uuid5(uuid.NAMESPACE_DNS, name)
        self.config_path = f"/etc/xen/{name}.cfg"
        self._persistent = persistent
        arguments = [recipe.KERNEL_ARGUMENTS, f"xenlab.address={address}", f"systemd.hostname={name}"]
        wishes = [*(["xenlab.init=minimal"] * (not systemd)), *(["xenlab.persistent"] * persistent)]
        self._config: dict[str, str | int | list[str]] = {
            "name": name,
            "uuid": str(self.uuid),
            "type": "pv",
            "memory": memory,
            "vcpus": 1,
            "kernel": "/boot/vmlinux",
            "ramdisk": "/boot/initrd",
            "extra": " ".join([*arguments, *wishes]),
            "disk": [_disk("xvda", "ro", "/dev/loop0")],
            "vif": ["bridge=xenbr0,script=/usr/lib/xenlab/hotplug"],
            "on_poweroff": "destroy",
            "on_reboot": "restart",
            "on_crash": "destroy",
            **(config or {}),
        }

    # What the operator does in dom0.

    def create(self) -> None:
        """`xl create`; the domain boots after it."""
        self._forget()
        if self._persistent:
            self._config["disk"] = [_disk("xvda", "ro", "/dev/loop0"), _disk("xvdb", "w", self._own_disk())]
        self.dom0.write(self.config_path, self.config)
        self.dom0.run(["xl", "create", self.config_path], seconds=BOOT_WITHIN)

    def destroy(self) -> None:
        """`xl destroy`: as if its power had failed."""
        self._xl("destroy")
        self._forget()

    def shut_down(self, seconds: float = BOOT_WITHIN) -> None:
        """`xl shutdown --wait`."""
        self.dom0.run(["xl", "shutdown", "--wait", self.name], seconds=seconds)
        self._forget()

    def reboot(self, seconds: float = BOOT_WITHIN) -> None:
        """`xl reboot`, and wait until it takes commands again: the domid is a new one, the UUID stays."""
        before = self.domid
        self._xl("reboot")
        deadline = time.monotonic() + seconds
        while self._domid() in (None, before):
            if time.monotonic() > deadline:
                raise LabError(f"{self} did not come back within {seconds:.0f} s of xl reboot")
            time.sleep(0.5)
        self._forget()
        self.wait_until_up(seconds)

    def pause(self) -> None:
        """`xl pause`: it gets no processor any more."""
        self._xl("pause")

    def unpause(self) -> None:
        """`xl unpause`."""
        self._xl("unpause")

    def save(self, path: str, *options: str) -> None:
        """`xl save`: its memory goes to a file in dom0, and it is gone."""
        self.dom0.run(["xl", "save", *options, self.name, path], seconds=BOOT_WITHIN)
        self._forget()

    def restore(self, path: str) -> None:
        """`xl restore`: it goes on, with a new domid unless `xl save -D` was told to keep the one it had.

        The file is removed, for dom0 has little room.
        """
        self._forget()
        at_once = {"LIBXL_DOMID_REUSE_TIMEOUT": "0"}
        self.dom0.run(["xl", "restore", path], seconds=BOOT_WITHIN, environment=at_once)
        self.dom0.run(["rm", path])
        self.wait_until_up()

    # What is known of it.

    @property
    def domid(self) -> int:
        """Its number now; LabError when it does not run."""
        domid = self._domid()
        if domid is None:
            raise LabError(f"{self} does not run")
        return domid

    @property
    def is_alive(self) -> bool:
        """Whether Xen knows it."""
        return self._domid() is not None

    @property
    def config(self) -> str:
        """Its configuration as xl reads it."""
        return "".join(f"{key} = {_spelled(value)}\n" for key, value in self._config.items())

    def console(self, lines: int = 200) -> str:
        """The last lines of its console, also when it is gone."""
        log = f"/var/log/xen/console/guest-{self.name}.log"
        return self.dom0.run(["tail", "-n", str(lines), log], check=False).stdout

    def wait_until_up(self, seconds: float = BOOT_WITHIN) -> None:
        """Wait until it takes commands."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.run(["true"], seconds=20)
                return
            except (Unreachable, CommandFailed) as error:
                if time.monotonic() > deadline:
                    raise LabError(f"{error}; its console:\n{self.console(40)}") from error
                time.sleep(0.3)

    def _own_disk(self) -> str:
        """The device in dom0 of an empty disk: the one of an earlier life may be in disorder."""
        file = f"/var/lib/{self.name}.disk"
        attached = f"losetup --associated {file} --noheadings --output NAME"
        detach = f"{attached} | xargs --no-run-if-empty losetup --detach"
        make = f"rm -f {file}; truncate --size=300M {file}; busybox mke2fs -F {file} >&2"
        return self.dom0.sh(f"{detach}; {make}; losetup --find --show {file}").strip()

    def _domid(self) -> int | None:
        answer = self.dom0.run(["xl", "domid", self.name], check=False)
        return int(answer.stdout) if answer.returncode == 0 else None

    def _xl(self, command: str) -> None:
        self.dom0.run(["xl", command, self.name], seconds=BOOT_WITHIN)

    def _forget(self) -> None:
        """Let dom0's agent close its connection: a domain that is destroyed does not."""
        self.channel.send({"op": "forget", "id": self.channel.new_id(), **self.route})


def _disk(name: str, access: str, device: str) -> str:
    """A disk of a domU, which is a device in dom0."""
    return f"vdev={name},access={access},script=/usr/lib/xenlab/hotplug,target={device}"


def _spelled(value: str | int | list[str]) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_spelled(each) for each in value)}]"
    return str(value) if isinstance(value, int) else f'"{value}"'


def _connect(qemu: Qemu) -> Channel:
    """Wait until dom0's agent answers."""
    deadline = time.monotonic() + BOOT_WITHIN
    while not qemu.port("tests").exists():
        qemu.check()
        time.sleep(0.05)
    channel = Channel(qemu.port("tests"))
    while not channel.greet(seconds=2):
        qemu.check()
        if time.monotonic() > deadline:
            channel.close()
            raise LabError(f"dom0 did not come up within {BOOT_WITHIN:.0f} s:\n{qemu.console[-4000:]}")
    return channel
