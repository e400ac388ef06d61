"""broker.toml to a frozen BrokerConfig, checked when read."""

from __future__ import annotations

import enum
import os
import stat
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from vmtoken.settings import SettingsError, load
from vmtoken.transport.vchan import READ_RING, WRITE_RING

Seconds = Annotated[float, Meta(ge=0.01, le=3600)]
Count = Annotated[int, Meta(ge=1, le=100_000)]
Ring = Annotated[int, Meta(ge=1024, le=1 << 20)]

_LONGEST_RUNTIME_DIR = 107 - len("/vms/") - 63 - len("/broker.sock")
"""Octets: the path of the socket of a VM with the longest name still fits into `sun_path` (unix(7))."""


class AuditSync(enum.Enum):
    """When a record of the audit log is forced to the disk."""

    ALWAYS = "always"
    """Before the decision takes effect: no record is lost when the power fails."""

    INTERVAL = "interval"
    """Once a second: a crash of the broker loses nothing, a power failure the last second."""

    NEVER = "never"
    """When the kernel likes."""


class LogConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[log]`."""

    level: Literal["traffic", "debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class AuditConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[audit]`."""

    path: str = "audit/audit.jsonl"
    """Inside `state_dir` unless absolute."""

    sync: AuditSync = AuditSync.INTERVAL


class UnixConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[unix]`: a socket a VM, for trials on one machine and for relays."""

    enabled: bool = True
    group: str = ""
    """Group that may open the sockets of the VMs; empty: only the broker's own user."""


class TcpConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[tcp]`: mutual TLS 1.3 with enrolment certificates."""

    listen: str = ""
    """HOST:PORT or [IPV6]:PORT; empty: no TCP."""

    names: tuple[str, ...] = ()
    """DNS names and addresses at which agents know the broker; the listen address if empty."""


class VchanConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[vchan]`: one Xen vchan for each VM whose domain runs."""

    enabled: bool | Literal["auto"] = "auto"
    """`"auto"`: when this machine runs on Xen."""

    read_ring: Ring = READ_RING
    """Octets of the ring from the VM."""

    write_ring: Ring = WRITE_RING
    """Octets of the ring to the VM."""


class SoftConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[soft]`: software elements."""

    apdus: Literal["short", "extended", "t0"] = "short"
    """What the elements take and the broker sends: as a card of that kind would."""


class PcscConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[pcsc]]`: a pcscd with its readers; several, where one does not take enough of them."""

    socket: str = ""
    """Of the pcscd; empty: the usual one."""

    timeout: Seconds = 15.0
    """A card that does not answer one APDU for so long hangs, and is left alone."""

    reset_command: tuple[str, ...] = ()
    """Program and arguments that get a hung reader of this pcscd going again; no shell reads them."""


class MetricsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[metrics]`."""

    textfile: str = ""
    """For the textfile collector of node_exporter: absolute, ending in .prom; empty: none is written."""

    interval: Annotated[float, Meta(ge=1, le=3600)] = 15.0
    """Seconds between two writings."""


class Pkcs11Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[pkcs11]`: libraries of HSMs, USB tokens, TPMs, each in a process of its own."""

    modules: tuple[Path, ...] = ()
    """Absolute paths; tokens are looked for in these."""

    timeout: Seconds = 25.0
    """A module that does not answer one call for so long hangs, and is loaded anew."""


class CertificatesConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[certificates]`: those of tokens, and the trust anchors that were installed."""

    warn_days: Annotated[int, Meta(ge=0, le=3650)] = 30
    """So many days before one ends there is a warning a day in the log, and one in every status."""


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[limits]`: numbers that keep one VM, or one card, from taking everything."""

    queue: Count = 1024
    """Handshakes that may wait for one token."""

    vm_handshakes: Count = 256
    """Handshakes that one VM may have open or waiting, over all its tokens."""

    vm_streams: Count = 512
    """Calls that one VM may have open; more wait in its own HTTP/2 connection."""

    vm_rate: Count = 1000
    """Calls and handshake steps a second that one VM gets; a faster one is slowed down."""

    vm_tickets: Count = 256
    """Resumable sessions kept for one VM."""

    handshake_timeout: Seconds = 60.0
    """The longest timeout that a handshake may ask for; a longer one is cut to it."""

    token_hold: Seconds = 15.0
    """The longest that one handshake may hold a token, slow servers and slow guests included."""

    card_timeout: Seconds = 30.0
    """A card that does not answer for so long is set aside until it does."""

    pin_reserve: Annotated[int, Meta(ge=0, le=15)] = 1
    """Tries of a PIN that the broker never spends: with so many left it does not try."""

    drain: Seconds = 20.0
    """What handshakes under way get to finish when the broker stops."""


class BrokerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """broker.toml. Paths are relative to the file that names them."""

    state_dir: Path = Path("/var/lib/vmtoken")
    runtime_dir: Path = Path("/run/vmtoken")
    policy_dir: Path = Path("/etc/vmtoken/policy.d")
    log: LogConfig = field(default_factory=LogConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    unix: UnixConfig = field(default_factory=UnixConfig)
    tcp: TcpConfig = field(default_factory=TcpConfig)
    vchan: VchanConfig = field(default_factory=VchanConfig)
    soft: SoftConfig = field(default_factory=SoftConfig)
    pcsc: tuple[PcscConfig, ...] = (PcscConfig(),)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    pkcs11: Pkcs11Config = field(default_factory=Pkcs11Config)
    certificates: CertificatesConfig = field(default_factory=CertificatesConfig)
    limits: Limits = field(default_factory=Limits)

    @property
    def database(self) -> Path:
        """The store."""
        return self.state_dir / "broker.sqlite"

    @property
    def audit_path(self) -> Path:
        """The audit log."""
        return self.state_dir / self.audit.path

    @property
    def admin_socket(self) -> Path:
        """Where vmtokenctl finds the broker."""
        return self.runtime_dir / "admin.sock"

    @property
    def private_dir(self) -> Path:
        """Sockets to which only our own front door leads."""
        return self.runtime_dir / "private"

    def link_socket(self, vm_name: str) -> Path:
        """The Unix socket of a VM."""
        return self.runtime_dir / "vms" / vm_name / "broker.sock"


def read_config(path: Path) -> BrokerConfig:
    """Read and check broker.toml. Raises `SettingsError` with one sentence for a person."""
    config = located(path)
    _check_writers(path, "The configuration file")
    _check_values(config, path)
    return config


def located(path: Path) -> BrokerConfig:
    """Read broker.toml for those who only look for the broker's files. Raises `SettingsError`."""
    config = load(path, BrokerConfig)
    home = path.absolute().parent
    return replace(
        config,
        state_dir=home / config.state_dir,
        runtime_dir=home / config.runtime_dir,
        policy_dir=home / config.policy_dir,
    )


def check_directories(config: BrokerConfig, *, for_another_user: bool = False) -> None:
    """Refuse directories that others could read secrets from or plant rules in; raises `SettingsError`.

    Root may check `for_another_user`, whose state belongs to that user.
    """
    if config.state_dir.exists():
        _check_private(config.state_dir, for_another_user)
    if not config.policy_dir.is_dir():
        raise SettingsError(
            f"policy_dir {config.policy_dir} is not a directory; make it, or correct the path."
        )
    _check_writers(config.policy_dir, "The policy directory")
    for rules in sorted(config.policy_dir.glob("*.policy")):
        _check_writers(rules, "The policy file")


def split_address(address: str) -> tuple[str, int]:
    """HOST:PORT or [IPV6]:PORT in two parts. Raises `ValueError`."""
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdecimal() and int(port) < 1 << 16):
        raise ValueError(f"'{address}' is not HOST:PORT")
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], int(port)
    if not host or ":" in host:
        raise ValueError(f"'{address}' is not HOST:PORT; an IPv6 address goes into brackets")
    return host, int(port)


def _check_values(config: BrokerConfig, path: Path) -> None:
    if config.tcp.listen:
        try:
            split_address(config.tcp.listen)
        except ValueError as error:
            raise SettingsError(f"{path}: tcp.listen: {error}.") from error
    textfile = config.metrics.textfile
    if textfile and not (textfile.startswith("/") and textfile.endswith(".prom")):
        raise SettingsError(f"{path}: metrics.textfile: not an absolute path that ends in .prom; correct it.")
    if len(os.fsencode(config.runtime_dir)) > _LONGEST_RUNTIME_DIR and config.unix.enabled:
        raise SettingsError(
            f"{path}: runtime_dir: longer than {_LONGEST_RUNTIME_DIR} octets: sockets of VMs would not fit."
        )
    sockets = [each.socket for each in config.pcsc]
    if len(sockets) != len(set(sockets)):
        raise SettingsError(f"{path}: pcsc: two entries with the same socket; give each pcscd its own.")
    for module in config.pkcs11.modules:
        if not module.is_absolute():
            raise SettingsError(f"{path}: pkcs11.modules: '{module}' is not absolute; give the whole path.")
    if config.limits.vm_streams < config.limits.vm_handshakes:
        raise SettingsError(f"{path}: limits.vm_streams: less than limits.vm_handshakes; raise it.")


def _check_private(directory: Path, for_another_user: bool) -> None:
    status = directory.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise SettingsError(f"state_dir {directory} is not a directory; remove it, or correct the path.")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise SettingsError(
            f"state_dir {directory} is open to others (mode {mode:04o}); run: chmod 0700 {directory}"
        )
    if status.st_uid != os.geteuid() and not for_another_user:
        raise SettingsError(f"state_dir {directory} belongs to user {status.st_uid}, not the broker's.")


def _check_writers(path: Path, what: str) -> None:
    status = path.stat()
    if status.st_mode & 0o022:
        mode = stat.S_IMODE(status.st_mode)
        raise SettingsError(
            f"{what} {path} can be written by others (mode {mode:04o}); run: chmod go-w {path}"
        )
    if status.st_uid not in {0, os.geteuid()}:
        raise SettingsError(f"{what} {path} belongs to user {status.st_uid}, not to root or the broker.")
