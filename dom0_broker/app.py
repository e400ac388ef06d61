"""Wiring: builds everything, runs it until a signal, takes it down in reverse."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

import msgspec

from dom0_broker.administration import VmAdministration, recorded
from dom0_broker.admission import Quotas
from dom0_broker.audit import AuditError, AuditLog, AuditNotes, Fields
from dom0_broker.backends.registry import (
    BackendSettings,
    PcscdSettings,
    Pkcs11Settings,
    TokenBackend,
    backend_for,
)
from dom0_broker.backends.software.sealing import load_sealing_key
from dom0_broker.broker import Broker
from dom0_broker.card_events import CardEvents
from dom0_broker.config import AuditSync, BrokerConfig, read_config, split_address
from dom0_broker.domains import DomainIdentity
from dom0_broker.elements import Elements
from dom0_broker.enrolment import EnrolmentCa
from dom0_broker.expiry import ExpiryWatch
from dom0_broker.handshake import Desk
from dom0_broker.inventory import Inventory, TokenState
from dom0_broker.listeners import AdminLink, Links, make_runtime_directories
from dom0_broker.metrics import Observer
from dom0_broker.personalisation import TokenAdministration
from dom0_broker.pin_administration import PinAdministration
from dom0_broker.pins import PinKeeper
from dom0_broker.policy import Policy, PolicyError, read_policy, read_policy_or_deny
from dom0_broker.pool import Probes
from dom0_broker.retirement import TokenRetirement
from dom0_broker.safe import Safe
from dom0_broker.services.admin_service import AdminService, BrokerControl
from dom0_broker.sessions import Sessions
from dom0_broker.store import Store
from dom0_broker.textfile import Textfile
from dom0_broker.vchan_links import Xen
from vmtoken.clock import Clock, SystemClock
from vmtoken.errors import VmTokenError
from vmtoken.notify import notify, watchdog_interval
from vmtoken.settings import SettingsError
from vmtoken.transport.vchan import on_xen

log = logging.getLogger(__name__)

Backends = Callable[[str, BackendSettings], TokenBackend]
"""The backend of a URI scheme; those of the registry, if nothing else is said."""

_HOUSEKEEPING: Final = 1.0
"""Seconds between two looks at what can wait: notes, the audit log's fsync, the health of tokens."""


class App:
    """A broker: `start`, then `stop`. Making it raises `StoreError`, `AuditError`, `Conflict`."""

    def __init__(
        self,
        config: BrokerConfig,
        *,
        backends: Backends = backend_for,
        config_path: Path | None = None,
        clock: Clock | None = None,
        xen: Xen | None = None,
    ) -> None:
        self.config = config
        self._config_path = config_path
        self._clock = clock or SystemClock()
        self._started = self._clock.now()
        self._xen = xen or Xen()
        self._vchan = "off"
        self._draining = False
        self._policy = read_policy_or_deny(config.policy_dir)
        config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        sealing_key = load_sealing_key(config.state_dir)
        safe = Safe(sealing_key)
        settings = BackendSettings(
            config.state_dir / "elements",
            sealing_key,
            apdus=config.soft.apdus,
            pin_reserve=config.limits.pin_reserve,
            pcsc=tuple(PcscdSettings(each.socket, each.timeout, each.reset_command) for each in config.pcsc),
            pkcs11=Pkcs11Settings(config.pkcs11.modules, config.pkcs11.timeout),
        )
        self._store = Store(config.database)
        reserve = config.limits.pin_reserve
        self._pins = PinKeeper(self._store, safe, self._clock, self._report, reserve=reserve)
        self._events = CardEvents(self._cards_changed)
        self._elements = elements = Elements(
            lambda scheme: backends(scheme, settings), self._pins, changed=self._events.changed
        )
        self._desk = self._new_desk(elements)
        self._probes = Probes(self._desk.inventory, self._clock)
        ahead = timedelta(days=config.certificates.warn_days)
        self._expiry = ExpiryWatch(self._desk.inventory, self._clock, ahead)
        self._observer = Observer(self._desk, self._pins, self._expiry, self._started)
        self._broker = Broker(self._desk)
        self._ca = EnrolmentCa.of(self._store, safe, self._started)
        self.links = Links(self._broker, config)
        self._admin = AdminLink(self._admin_service(elements), config)
        self._housekeeping: asyncio.Task[None] | None = None
        self._textfile: asyncio.Task[None] | None = None
        self._warm_up: asyncio.Future[list[TokenState]] | None = None
        """Every card is opened at the start, so that the first handshake does not wait for that."""

    async def start(self) -> None:
        """Open all links. Raises `OSError` when a socket cannot be had."""
        if self._policy.error:
            log.error("policy has an error, everything is denied", extra={"because": self._policy.error})
        make_runtime_directories(self.config)
        self._desk.audit.append("broker-started", {"rules": len(self._policy.rules)})
        for record in self._desk.inventory.vms():
            await self.links.open_vm(record.identity)
        if self.config.tcp.listen:
            await self._open_tcp()
        await self._open_vchan()
        await self._admin.open()
        self._warm_up = asyncio.gather(*(token.state() for token in self._desk.inventory.tokens()))
        self._housekeeping = asyncio.create_task(self._keep_house())
        if self.config.metrics.textfile:
            settings = self.config.metrics
            textfile = Textfile(Path(settings.textfile), settings.interval, self._observer.snapshot)
            self._textfile = asyncio.create_task(textfile.run())
        vms, tokens = len(self._desk.inventory.vms()), len(self._desk.inventory.tokens())
        log.info("broker started", extra={"vms": vms, "tokens": tokens, "rules": len(self._policy.rules)})

    async def stop(self) -> None:
        """Refuse what is new, let handshakes end under the limit, give cards back. May be called twice."""
        if self._draining:
            return
        self._draining = True
        await self.links.stop_accepting()
        drained = await self._broker.drain()
        log.info("drained" if drained else "handshakes were cut off")
        await self.links.close()
        await self._admin.close()
        await self._probes.close()
        self._events.close()
        await self._desk.inventory.close()
        await asyncio.to_thread(self._elements.close)
        for task in (self._warm_up, self._housekeeping, self._textfile):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        self._close_audit(drained=drained)
        self._store.close()

    @property
    def audit(self) -> AuditLog:
        """The audit log."""
        return self._desk.audit

    async def idle(self) -> None:
        """Wait until no handshake is under way or waiting."""
        await self._desk.quotas.idle.wait()

    def waiting(self, token: str) -> int:
        """How many handshakes wait for a token."""
        return self._desk.inventory.token(token).admission.waiting

    async def reload(self) -> tuple[Policy, list[str]]:
        """Read configuration and rules again; both must be valid before the rules are swapped.

        The options that changed and need a restart come back by name. Raises `PolicyError`, `SettingsError`.
        """
        changed = []
        if self._config_path is not None:
            changed = list(_differences(self.config, read_config(self._config_path)))
        self._policy = policy = read_policy(self.config.policy_dir)
        fields = {"rules": len(policy.rules)}
        await recorded(self._desk.audit, "policy-loaded", fields)
        return policy, changed

    def _cards_changed(self, scheme: str) -> None:
        self._desk.inventory.cards_changed(scheme, self._elements.is_present)

    def _new_desk(self, elements: Elements) -> Desk:
        config, clock = self.config, self._clock
        return Desk(
            inventory=Inventory(
                self._store, elements.open, config.limits, clock, pin_refused=self._pins.refused_later
            ),
            sessions=Sessions(per_vm=config.limits.vm_tickets, clock=clock),
            audit=AuditLog(config.audit_path, clock, sync_always=config.audit.sync is AuditSync.ALWAYS),
            notes=AuditNotes(clock),
            quotas=Quotas(config.limits.vm_handshakes),
            limits=config.limits,
            clock=clock,
            policy=lambda: self._policy,
        )

    def _admin_service(self, elements: Elements) -> AdminService:
        control = BrokerControl(
            started=self._started,
            draining=lambda: self._draining,
            reload=self.reload,
            tcp_address=lambda: self.links.tcp_address,
            vchan=lambda: self._vchan,
            snapshot=self._observer.snapshot,
            expiries=self._expiry.of,
        )
        one_at_a_time = asyncio.Lock()
        self.administration = vms = VmAdministration(
            self._store, self._desk, self.links, self._ca, one_at_a_time
        )
        tokens = TokenAdministration(self._store, self._desk, elements, self._pins, one_at_a_time)
        retirement = TokenRetirement(self._store, self._desk, elements, self._pins, one_at_a_time)
        pins = PinAdministration(self._desk, elements, self._pins, one_at_a_time)
        return AdminService(self._desk, vms, tokens, retirement, pins, control)

    def _report(self, event: str, fields: Fields) -> None:
        """What happened to a PIN has happened, recorded or not. Called in the threads of tokens."""
        try:
            self._desk.audit.append(event, fields)
        except AuditError as error:
            log.error("not in the audit log", extra={"event": event, "because": str(error)})  # noqa: TRY400

    async def _open_tcp(self) -> None:
        host, _ = split_address(self.config.tcp.listen)
        context = self._ca.server_context([*self.config.tcp.names, host], self._started)
        address = await self.links.open_tcp(context, self._desk.inventory.vm_of_certificate)
        log.info("listening", extra={"address": address})

    async def _open_vchan(self) -> None:
        """Raises `OSError` when it is demanded and cannot be had."""
        enabled = self.config.vchan.enabled
        if enabled is False or (enabled == "auto" and not on_xen()):
            return

        def vms() -> list[DomainIdentity]:
            return [record.identity for record in self._desk.inventory.vms()]

        try:
            await self.links.open_vchan(vms, self._desk.notes, self._xen)
            self._vchan = "on"
        except OSError as error:
            if enabled is True:
                raise
            self._vchan = str(error)
            log.warning("no links over vchan", extra={"because": str(error)})

    async def _keep_house(self) -> None:
        """Write what can wait, show how the tokens are, tell systemd that the event loop turns."""
        interval = min(_HOUSEKEEPING, watchdog_interval() or _HOUSEKEEPING)
        while True:
            await asyncio.sleep(interval)
            notify("WATCHDOG=1")
            self._probes.look()
            self._expiry.look()
            await self.show_health()
            try:
                await asyncio.to_thread(self._write_audit)
            except AuditError as error:
                log.error("audit log cannot be written", extra={"because": str(error)})  # noqa: TRY400

    def _close_audit(self, *, drained: bool) -> None:
        try:
            self._desk.notes.flush(self.audit)
            self.audit.append("broker-stopped", {"drained": drained})
            self.audit.close()
        except AuditError as error:
            log.error("the last records are not in the audit log", extra={"because": str(error)})  # noqa: TRY400

    async def show_health(self) -> None:
        """Let the health service say how each token is."""
        for token in self._desk.inventory.tokens():
            await self._admin.show_token(token.name, works=token.worker.problem is None)

    def _write_audit(self) -> None:
        audit = self._desk.audit
        audit.follow()
        self._desk.notes.flush(audit)
        if self.config.audit.sync is not AuditSync.NEVER:
            audit.sync()


async def run(app: App) -> None:
    """Run a broker until SIGTERM or SIGINT; SIGHUP reloads."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = loop.create_task(_reload(app))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    await app.start()
    gc.freeze()  # what the start made stays: it need not be looked through between handshakes
    notify("READY=1")
    await stopped.wait()
    notify("STOPPING=1")
    await app.stop()


async def _reload(app: App) -> None:
    try:
        policy, changed = await app.reload()
    except (PolicyError, SettingsError) as error:
        log.error("reload refused, the earlier policy stays", extra={"because": str(error)})  # noqa: TRY400
        return
    except VmTokenError as error:
        log.error("reloaded, but not recorded", extra={"because": str(error)})  # noqa: TRY400
        return
    log.info("reloaded", extra={"rules": len(policy.rules), "needs_restart": ",".join(changed)})


def _differences(old: msgspec.Struct, new: msgspec.Struct, prefix: str = "") -> Iterator[str]:
    """Names of the options that differ."""
    for name in old.__struct_fields__:
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, msgspec.Struct):
            yield from _differences(before, after, f"{prefix}{name}.")
        elif before != after:
            yield f"{prefix}{name}"
