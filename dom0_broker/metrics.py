"""What a monitoring system is told, in the text format of Prometheus.

`Observer.snapshot` copies numbers, in the event loop; `exposition` makes text of them, in any thread. Label
values are names of VMs and tokens, which the operator gave, and reasons of `docs/errors.md`; never what a
guest or a server said.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata

from cryptography import x509
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from dom0_broker.expiry import ExpiryWatch
from dom0_broker.handshake import Desk
from dom0_broker.inventory import Token
from dom0_broker.pins import PinKeeper
from dom0_broker.store import PinRecord, PinRole
from dom0_broker.tally import BOUNDS, COMPLETE, Durations, Ending, Histogram
from vmtoken.tls.ocsp import UNPARSABLE


@dataclass(frozen=True, slots=True)
class TokenSample:
    """A token at one moment."""

    name: str
    assurance: str
    """Empty while the token was not opened."""

    problem: str
    """The reason of what keeps it from being used; empty when it is ready."""

    ready: bool
    queue: int
    busy: bool
    leaf: bytes
    expiring: int
    """Certificates of chain and trust anchors that end soon, or have ended."""

    pins: tuple[tuple[PinRole, PinRecord], ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The broker at one moment."""

    version: str
    started: datetime
    rules: int
    policy_in_force: bool
    audit_sequence: int
    handshakes: tuple[tuple[str, int], ...]
    """Open or waiting now, by VM; all VMs are there."""

    tokens: tuple[TokenSample, ...]
    endings: tuple[tuple[Ending, int], ...]
    durations: tuple[tuple[str, Durations], ...]


class Observer:
    """Looks at the broker without touching a card. Used from the event loop only."""

    def __init__(self, desk: Desk, pins: PinKeeper, expiry: ExpiryWatch, started: datetime) -> None:
        self._desk = desk
        self._pins = pins
        self._expiry = expiry
        self._started = started
        self._version = metadata.version("vmtoken")

    def snapshot(self) -> Snapshot:
        """What is known now."""
        desk, policy = self._desk, self._desk.policy()
        vms = [record.identity for record in desk.inventory.vms()]
        return Snapshot(
            version=self._version,
            started=self._started,
            rules=len(policy.rules),
            policy_in_force=not policy.error,
            audit_sequence=desk.audit.head.sequence,
            handshakes=tuple((vm.name, desk.quotas.open(vm.uuid)) for vm in vms),
            tokens=tuple(map(self._token, desk.inventory.tokens())),
            endings=tuple(desk.tally.endings.items()),
            durations=tuple((name, each.copy()) for name, each in sorted(desk.tally.durations.items())),
        )

    def _token(self, token: Token) -> TokenSample:
        description, problem = token.worker.description, token.problem or token.missing
        return TokenSample(
            name=token.name,
            assurance=description.assurance.value if description else "",
            problem=problem.reason if problem else "",
            ready=problem is None and description is not None,
            queue=token.admission.waiting,
            busy=token.admission.busy,
            leaf=token.leaf or b"",
            expiring=len(self._expiry.of(token)),
            pins=tuple((role, self._pins.record(token.name, role)) for role in PinRole),
        )


def exposition(snapshot: Snapshot) -> bytes:
    """The text format of Prometheus, version 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(snapshot))
    return generate_latest(registry)


class _Families(Collector):
    """A registry wants a collector."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot
        yield from _broker(snapshot)
        yield from _handshakes(snapshot)
        yield from _tokens(snapshot.tokens)
        yield from _pins(snapshot.tokens)


def _broker(snapshot: Snapshot) -> Iterator[Metric]:
    yield InfoMetricFamily("vmtoken_build", "Version of the broker.", {"version": snapshot.version})
    started = snapshot.started.timestamp()
    yield _gauge("vmtoken_start_time_seconds", "When the broker started, Unix time.", started)
    yield _gauge("vmtoken_policy_rules", "Rules of the policy in force.", snapshot.rules)
    yield _gauge(
        "vmtoken_policy_valid",
        "1, or 0 while the policy has an error and everything is denied.",
        snapshot.policy_in_force,
    )
    yield CounterMetricFamily(
        "vmtoken_audit_records", "Number of the last record of the audit log.", snapshot.audit_sequence
    )
    yield _gauge("vmtoken_vms", "VMs that are known.", len(snapshot.handshakes))
    open_now = GaugeMetricFamily(
        "vmtoken_vm_handshakes", "Handshakes that a VM has open or waiting.", labels=["vm"]
    )
    for vm, count in snapshot.handshakes:
        open_now.add_metric([vm], count)
    yield open_now


def _handshakes(snapshot: Snapshot) -> Iterator[Metric]:
    ended = CounterMetricFamily(
        "vmtoken_handshakes",
        "Handshakes that ended; outcome is complete, aborted or a reason, resumed is for complete ones.",
        labels=["token", "vm", "outcome", "assurance", "resumed"],
    )
    for each, count in snapshot.endings:
        resumed = str(each.resumed).lower() if each.outcome == COMPLETE else ""
        ended.add_metric([each.token, each.vm, each.outcome, each.assurance, resumed], count)
    yield ended
    yield _histogram(
        "vmtoken_handshake_duration_seconds",
        "From the start message to the key block, complete handshakes.",
        ((token, durations.total) for token, durations in snapshot.durations),
    )
    yield _histogram(
        "vmtoken_handshake_queue_seconds",
        "Part of it in the token's queue.",
        ((token, durations.queue) for token, durations in snapshot.durations),
    )
    yield _histogram(
        "vmtoken_handshake_token_seconds",
        "Part of it in the token.",
        ((token, durations.in_token) for token, durations in snapshot.durations),
    )


def _tokens(tokens: Sequence[TokenSample]) -> Iterator[Metric]:
    yield _per_token(
        "vmtoken_token_ready",
        "1 if a handshake would find it ready now.",
        tokens,
        lambda it: it.ready,
    )
    problems = GaugeMetricFamily(
        "vmtoken_token_problem", "1 for what keeps a token from being used now.", labels=["token", "reason"]
    )
    known = InfoMetricFamily("vmtoken_token", "What a token is.", labels=["token"])
    for token in tokens:
        if token.problem:
            problems.add_metric([token.name, token.problem], 1)
        known.add_metric([token.name], {"assurance": token.assurance})
    yield problems
    yield known
    yield _per_token(
        "vmtoken_token_queue_length", "Handshakes that wait for it.", tokens, lambda it: it.queue
    )
    yield _per_token("vmtoken_token_busy", "1 while somebody holds it.", tokens, lambda it: it.busy)
    yield _per_token(
        "vmtoken_token_certificate_not_after_timestamp_seconds",
        "End of its certificate's validity, Unix time.",
        tokens,
        lambda it: _not_after(it.leaf),
    )
    yield _per_token(
        "vmtoken_token_certificates_expiring",
        "Certificates of chain and trust anchors that end within certificates.warn_days, or have ended.",
        tokens,
        lambda it: it.expiring,
    )


def _pins(tokens: Sequence[TokenSample]) -> Iterator[Metric]:
    yield _per_pin(
        "vmtoken_token_pin_tries_left", "Tries left, as it told last.", tokens, lambda it: it.tries_left
    )
    yield _per_pin("vmtoken_token_pin_tries", "Tries after a right PIN.", tokens, lambda it: it.tries)
    yield _per_pin(
        "vmtoken_token_pin_told_timestamp_seconds",
        "When it told its tries last, Unix time.",
        tokens,
        lambda it: it.told_at,
    )
    yield _per_pin(
        "vmtoken_token_pin_rejected",
        "1 when it refused a PIN, which was wiped.",
        tokens,
        lambda it: it.rejected,
    )


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, float(value))


def _per_token(
    name: str, what: str, tokens: Iterable[TokenSample], value: Callable[[TokenSample], float | None]
) -> Metric:
    family = GaugeMetricFamily(name, what, labels=["token"])
    for token in tokens:
        number = value(token)
        if number is not None:
            family.add_metric([token.name], float(number))
    return family


def _per_pin(
    name: str, what: str, tokens: Iterable[TokenSample], value: Callable[[PinRecord], float | None]
) -> Metric:
    family = GaugeMetricFamily(name, what, labels=["token", "pin"])
    for token in tokens:
        for role, record in token.pins:
            number = value(record)
            if number is not None:
                family.add_metric([token.name, role.value], float(number))
    return family


def _histogram(name: str, what: str, histograms: Iterable[tuple[str, Histogram]]) -> Metric:
    family = HistogramMetricFamily(name, what, labels=["token"])
    bounds = [*map(str, BOUNDS), "+Inf"]
    for token, histogram in histograms:
        counts = zip(bounds, histogram.cumulative(), strict=True)
        family.add_metric([token], [(bound, float(count)) for bound, count in counts], histogram.total)
    return family


@functools.lru_cache(maxsize=1024)
def _not_after(leaf: bytes) -> float | None:
    try:
        return x509.load_der_x509_certificate(leaf).not_valid_after_utc.timestamp() if leaf else None
    except UNPARSABLE:
        return None
