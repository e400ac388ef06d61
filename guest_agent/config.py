"""agent.toml: how the agent reaches its broker, whom it serves, and within which limits."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, field

from vmtoken.settings import SettingsError, load

DEFAULT_PATH = Path("/etc/vmtoken/agent.toml")

_LAST_DOMID = 0x7FEF
"""DOMID_FIRST_RESERVED - 1 (xen/include/public/xen.h)."""

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]


@dataclass(frozen=True, slots=True)
class UnixLink:
    """The broker serves on a Unix socket of this machine."""

    path: Path


@dataclass(frozen=True, slots=True)
class TcpLink:
    """The broker serves over TCP with mutual TLS."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class VchanLink:
    """The broker serves over Xen's vchan, in domain `domid`; None for the one that dom0 names, else dom0."""

    domid: int | None = None


Link = UnixLink | TcpLink | VchanLink


class Enrolment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The files that `vmtokenctl vm enroll` made for this VM; needed by a TCP link."""

    ca: Path
    """Certificate of the authority that the broker's certificate must come from, PEM."""

    certificate: Path
    """The VM's enrolment certificate, PEM."""

    key: Path
    """Its private key, PEM; readable by its owner alone."""

    server_name: str = ""
    """Name in the broker's certificate when it is not the host of the link."""


class BrokerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the agent reaches its broker."""

    link: str = "vchan:"
    """`vchan:`, `vchan:DOMID`, `unix:PATH` or `tcp:HOST:PORT`."""

    enrolment: Enrolment | None = None
    connect_timeout: Seconds = 5.0
    """Seconds to wait for a broker that is away before a handshake fails with BROKER_UNAVAILABLE."""

    warm_streams: Annotated[int, Meta(ge=0, le=64)] = 2
    """Handshake streams kept open ahead of use."""

    handshakes: Annotated[int, Meta(ge=1, le=4096)] = 64
    """Handshakes under way at once; more of them wait for their turn."""

    def __post_init__(self) -> None:
        is_tcp = isinstance(parse_link(self.link), TcpLink)
        if is_tcp and self.enrolment is None:
            raise ValueError("a tcp link needs the table [broker.enrolment] with ca, certificate and key")
        if not is_tcp and self.enrolment is not None:
            raise ValueError("the table [broker.enrolment] is for tcp links; this link needs none")


class ApplicationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whom the agent serves."""

    socket: Path = Path("/run/vmtoken-agent/agent.sock")
    mode: Annotated[int, Meta(ge=0, le=0o777)] = 0o666
    """Permissions of the socket. Every user may connect by default: a session is its own user's."""

    sessions_per_user: Count = 256
    sessions: Count = 4096
    calls_per_user: Count = 1024
    """gRPC calls that one user may have open at once."""


class SessionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Times and sizes of sessions with servers."""

    handshake_timeout: Seconds = 30.0
    """Seconds for name resolution, TCP and the handshake when the call has no deadline of its own."""

    idle_timeout: Seconds = 900.0
    """Seconds after which a session that nobody reads from or writes to is closed."""

    linger: Seconds = 1.0
    """Seconds to wait, after close_notify, for the server's tickets and its own end."""

    ticket_timeout: Seconds = 5.0
    """Seconds for handing one session ticket back to the token."""

    receive_buffer: Annotated[int, Meta(ge=16_384, le=16_777_216)] = 262_144
    """Octets of plaintext a session holds for a slow application before it stops reading from the server."""

    drain_timeout: Seconds = 10.0
    """Seconds that open sessions get to end when the agent stops."""


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What goes to standard error."""

    level: Literal["traffic", "debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of agent.toml."""

    broker: BrokerSettings = field(default_factory=BrokerSettings)
    applications: ApplicationSettings = field(default_factory=ApplicationSettings)
    sessions: SessionSettings = field(default_factory=SessionSettings)
    log: LogSettings = field(default_factory=LogSettings)


def load_config(path: Path) -> AgentConfig:
    """Read and check agent.toml and the permissions of the files that it names.

    Raises `SettingsError` with one sentence that says what, where and what to do.
    """
    config = load(path, AgentConfig)
    if config.broker.enrolment is not None:
        _check_enrolment(config.broker.enrolment, path)
    return config


def parse_link(text: str) -> Link:
    """A link as written in agent.toml. Raises `ValueError` for anything else."""
    scheme, colon, rest = text.partition(":")
    if scheme == "vchan" and colon and (not rest or (rest.isdecimal() and int(rest) <= _LAST_DOMID)):
        return VchanLink(int(rest) if rest else None)
    if scheme == "unix" and rest.startswith("/"):
        return UnixLink(Path(rest))
    host, _, port = rest.rpartition(":")
    if scheme == "tcp" and host and port.isdecimal() and 0 < int(port) < 65_536:
        return TcpLink(host.strip("[]"), int(port))
    raise ValueError(f"'{text}' is no link; write vchan:, vchan:DOMID, unix:/ABSOLUTE/PATH or tcp:HOST:PORT")


def _check_enrolment(enrolment: Enrolment, path: Path) -> None:
    for key in ("ca", "certificate", "key"):
        file: Path = getattr(enrolment, key)
        try:
            mode = file.stat().st_mode
        except OSError as error:
            raise SettingsError(f"{path}: broker.enrolment.{key}: {file}: {error.strerror}.") from error
        if key == "key" and stat.S_IMODE(mode) & 0o077:
            raise SettingsError(
                f"{path}: broker.enrolment.key: {file} may be read by others; run 'chmod 600 {file}'."
            )
