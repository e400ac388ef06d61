"""What the broker remembers of handshakes: sessions that may be resumed, and what happened lately.

No secret is here: a resumption is a handle, its secret stays in the token. Nothing is on disk: after a
restart the first handshake is a full one. Used from the event loop only.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime

from vmtoken.clock import Clock
from vmtoken.tls.codes import ProtocolVersion
from vmtoken.token import Assurance, CertificateMode, Resumption

LONGEST_LIFETIME = 24 * 3600
"""Seconds; RFC 8446 section 4.6.1 allows a week, but a revoked certificate should not live on for so long."""

ENOUGH_RESUMPTIONS = 4
"""Kept for one purpose: so many connections at once can resume. More would only cost card time."""


@dataclass(frozen=True, slots=True)
class Purpose:
    """What must be the same for a session to be resumed."""

    token: str
    server_name: str
    port: int
    alpn: tuple[str, ...]
    min_version: ProtocolVersion
    max_version: ProtocolVersion
    certificate: CertificateMode = CertificateMode.IF_ASKED


@dataclass(slots=True)
class Session:
    """A session that a VM has, as far as a later ticket needs it."""

    purpose: Purpose
    token_session: bytes
    """Names it inside the token."""

    tickets_left: int = ENOUGH_RESUMPTIONS


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of a handshake, for the operator."""

    session_id: bytes
    started: datetime
    vm: str
    vm_uuid: uuid.UUID
    token: str
    server_name: str
    port: int
    outcome: str
    """`complete`, or the reason of the error."""

    rule: str = ""
    version: ProtocolVersion | None = None
    cipher_suite: str = ""
    group: str = ""
    resumed: bool = False
    assurance: Assurance | None = None
    total: float = 0.0
    queue: float = 0.0
    in_token: float = 0.0
    leaf_sha256: bytes = b""


@dataclass(slots=True)
class _Kept:
    purpose: Purpose
    resumption: Resumption
    expires: float


@dataclass(slots=True)
class _VmMemory:
    sessions: OrderedDict[bytes, Session] = field(default_factory=OrderedDict)
    resumptions: OrderedDict[tuple[Purpose, bytes], _Kept] = field(default_factory=OrderedDict)


class Sessions:
    """The memory of all VMs, each bounded by itself."""

    def __init__(self, *, per_vm: int, clock: Clock, history: int = 1000) -> None:
        self._per_vm = per_vm
        self._clock = clock
        self._vms: defaultdict[uuid.UUID, _VmMemory] = defaultdict(_VmMemory)
        self._history: deque[Summary] = deque(maxlen=history)

    def begin(self, vm: uuid.UUID, session_id: bytes, session: Session) -> None:
        """Remember a session of a VM, so that its tickets are taken; the oldest one is forgotten."""
        sessions = self._vms[vm].sessions
        sessions[session_id] = session
        if len(sessions) > self._per_vm:
            sessions.popitem(last=False)

    def session(self, vm: uuid.UUID, session_id: bytes) -> Session | None:
        """A session of this VM, None when it is not its own, forgotten, or has had its tickets."""
        session = self._vms[vm].sessions.get(session_id) if vm in self._vms else None
        return session if session is not None and session.tickets_left > 0 else None

    def wanted(self, vm: uuid.UUID, purpose: Purpose) -> int:
        """How many more resumable sessions for a purpose are worth having; old ones do not count."""
        if vm not in self._vms:
            return ENOUGH_RESUMPTIONS
        now, fresh = self._clock.monotonic(), 0
        for each in self._vms[vm].resumptions.values():
            half_life = min(each.resumption.lifetime, LONGEST_LIFETIME) / 2
            fresh += each.purpose == purpose and each.expires - now > half_life
        return max(ENOUGH_RESUMPTIONS - fresh, 0)

    def keep(self, vm: uuid.UUID, purpose: Purpose, resumption: Resumption) -> None:
        """Keep a resumable session; the VM's oldest one is dropped when it has too many."""
        kept = self._vms[vm].resumptions
        lifetime = min(resumption.lifetime, LONGEST_LIFETIME)
        kept[purpose, resumption.handle] = _Kept(purpose, resumption, self._clock.monotonic() + lifetime)
        if len(kept) > self._per_vm:
            kept.popitem(last=False)

    def candidates(self, vm: uuid.UUID, purpose: Purpose) -> Iterator[Resumption]:
        """Resumable sessions for a purpose, newest first; one yielded is gone if it is for single use."""
        if vm not in self._vms:
            return
        kept = self._vms[vm].resumptions
        for key, each in reversed(list(kept.items())):
            if each.expires <= self._clock.monotonic():
                del kept[key]
            elif each.purpose == purpose:
                if each.resumption.single_use:
                    del kept[key]
                yield each.resumption

    def resumable(self, vm: uuid.UUID, purpose: Purpose) -> bool:
        """Whether there is a session to resume, however it was to be with our certificate."""
        if vm not in self._vms:
            return False
        now = self._clock.monotonic()
        return any(
            each.expires > now and replace(each.purpose, certificate=purpose.certificate) == purpose
            for each in self._vms[vm].resumptions.values()
        )

    def drop(self, vm: uuid.UUID, purpose: Purpose, handle: bytes) -> None:
        """Forget one resumable session, if it is still there."""
        if vm in self._vms:
            self._vms[vm].resumptions.pop((purpose, handle), None)

    def forget_vm(self, vm: uuid.UUID) -> None:
        """Forget everything of a VM."""
        self._vms.pop(vm, None)

    def forget_token(self, token: str) -> None:
        """Forget every session of a token."""
        for memory in self._vms.values():
            for session_id in [key for key, each in memory.sessions.items() if each.purpose.token == token]:
                del memory.sessions[session_id]
            for key in [key for key in memory.resumptions if key[0].token == token]:
                del memory.resumptions[key]

    def note(self, summary: Summary) -> None:
        """Put a handshake that has ended into the history."""
        self._history.append(summary)

    def history(self, limit: int, vm: uuid.UUID | None = None) -> list[Summary]:
        """The latest handshakes, newest first."""
        wanted = (each for each in reversed(self._history) if vm in (None, each.vm_uuid))
        return [summary for summary, _ in zip(wanted, range(limit), strict=False)]
