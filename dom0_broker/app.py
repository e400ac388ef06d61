"""Wiring: builds everything, runs it until a signal, takes it down in reverse."""

from __future__ import annotations

import asyncio
import logging

from dom0_broker.admission import Quotas
from dom0_broker.audit import AuditError, AuditLog, AuditNotes
from dom0_broker.broker import Broker
from dom0_broker.config import AuditSync, BrokerConfig
from dom0_broker.handshake import Desk
from dom0_broker.inventory import Inventory, OpenToken
from dom0_broker.listeners import Links, make_runtime_directories
from dom0_broker.policy import Policy, read_policy, read_policy_or_deny
from dom0_broker.sessions import Sessions
from dom0_broker.store import Store
from vmtoken.clock import Clock, SystemClock
from vmtoken.notify import notify, watchdog_interval

log = logging.getLogger(__name__)

_HOUSEKEEPING = 1.0
"""Seconds between two flushes of notes and syncs of the audit log."""


class App:
    """A broker: `start`, then `stop`. The parts are public to the admin service and to tests."""

    def __init__(self, config: BrokerConfig, open_token: OpenToken, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.policy = read_policy_or_deny(config.policy_dir)
        _make_state_directory(config)
        self.store = Store(config.database)
        sync_always = config.audit.sync is AuditSync.ALWAYS
        self.audit = AuditLog(config.audit_path, self.clock, sync_always=sync_always)
        self.notes = AuditNotes(self.clock)
        self.inventory = Inventory(self.store, open_token, config.limits, self.clock)
        self.sessions = Sessions(per_vm=config.limits.vm_tickets, clock=self.clock)
        self.quotas = Quotas(config.limits.vm_handshakes)
        self.broker = Broker(self._desk())
        self.links = Links(self.broker, config)
        self._housekeeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open all links. Raises `OSError` when a socket cannot be had."""
        if self.policy.error:
            log.error("policy has an error, everything is denied", extra={"because": self.policy.error})
        make_runtime_directories(self.config)
        self.audit.append("broker-started", {"rules": len(self.policy.rules)})
        for record in self.inventory.vms():
            await self.links.open_unix(record.identity)
        self._housekeeping = asyncio.create_task(self._keep_house())

    async def stop(self) -> None:
        """Refuse what is new, let handshakes end under the limit, give the cards back."""
        await self.links.stop_accepting()
        drained = await self.broker.drain()
        log.info("drained" if drained else "handshakes were cut off")
        await self.links.close()
        await self.inventory.close()
        if self._housekeeping is not None:
            self._housekeeping.cancel()
            await asyncio.wait([self._housekeeping])
        self.notes.flush(self.audit)
        self.audit.append("broker-stopped", {"drained": drained})
        self.audit.close()
        self.store.close()

    def reload_policy(self) -> Policy:
        """Read the rules again and swap them in. Raises `PolicyError`, and the earlier rules stay."""
        policy = read_policy(self.config.policy_dir)
        self.policy = policy
        self.audit.append("policy-loaded", {"rules": len(policy.rules)})
        return policy

    def _desk(self) -> Desk:
        return Desk(
            inventory=self.inventory,
            sessions=self.sessions,
            audit=self.audit,
            notes=self.notes,
            quotas=self.quotas,
            limits=self.config.limits,
            clock=self.clock,
            policy=lambda: self.policy,
        )

    async def _keep_house(self) -> None:
        """Write what can wait, and let systemd know that the event loop turns."""
        interval = min(_HOUSEKEEPING, watchdog_interval() or _HOUSEKEEPING)
        while True:
            await asyncio.sleep(interval)
            notify("WATCHDOG=1")
            try:
                await asyncio.to_thread(self._write_audit)
            except AuditError as error:
                log.error("audit log cannot be written", extra={"because": str(error)})  # noqa: TRY400

    def _write_audit(self) -> None:
        self.audit.follow()
        self.notes.flush(self.audit)
        if self.config.audit.sync is not AuditSync.NEVER:
            self.audit.sync()


def _make_state_directory(config: BrokerConfig) -> None:
    config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
