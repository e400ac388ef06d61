"""What a monitoring system reads: its own parser judges the form, the numbers are counted by hand."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest
from cryptography import x509
from prometheus_client.parser import text_string_to_metric_families

from dom0_broker.metrics import Snapshot, TokenSample, exposition
from dom0_broker.sessions import Summary
from dom0_broker.store import NO_PIN, PinRecord, PinRole
from dom0_broker.tally import BOUNDS, Histogram, Tally
from tests.support.pki import client_identity
from vmtoken.token import Assurance

NOW = datetime(2026, 11, 26, 5, 0, tzinfo=UTC)
LEAF = client_identity().chain_der[0]


def summary(outcome: str, *, token: str = "web", resumed: bool = False, total: float = 0.02) -> Summary:
    return Summary(
        b"", NOW, "web01", uuid.UUID(int=1), token, "evil\n{server}", 443, outcome, resumed=resumed,
        assurance=Assurance.CARD_HANDSHAKE, total=total, queue=0.004, in_token=0.008,
    )  # fmt: skip


def sample(name: str, *, problem: str = "", leaf: bytes = LEAF, user: PinRecord = NO_PIN) -> TokenSample:
    pins = ((PinRole.USER, user), (PinRole.OPERATOR, NO_PIN))
    return TokenSample(name, "card-handshake", problem, not problem, 3, True, leaf, 2, pins)


def snapshot(tally: Tally, *tokens: TokenSample) -> Snapshot:
    return Snapshot(
        version="1.2.3",
        started=NOW,
        rules=4,
        policy_in_force=True,
        audit_sequence=99,
        handshakes=(("web01", 2), ("web02", 0)),
        tokens=tokens,
        endings=tuple(tally.endings.items()),
        durations=tuple(tally.durations.items()),
    )


def samples(snapshot: Snapshot) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by name and labels, as Prometheus reads them."""
    read = {}
    for family in text_string_to_metric_families(exposition(snapshot).decode()):
        assert family.documentation, family.name
        assert family.type != "unknown", family.name
        for each in family.samples:
            key = (each.name, tuple(sorted(each.labels.items())))
            assert key not in read, "each series once"
            read[key] = each.value
    return read


def labelled(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))


def test_handshakes_are_counted_by_what_became_of_them() -> None:
    tally = Tally()
    for each in (
        summary("complete"),
        summary("complete", resumed=True),
        summary("complete", resumed=True),
        summary("POLICY_DENIED"),
        summary("NO_TOKEN_BOUND", token=""),
    ):
        tally.count(each)
    read = samples(snapshot(tally))
    common = {"token": "web", "vm": "web01", "assurance": "card-handshake"}
    counter = "vmtoken_handshakes_total"
    assert read[labelled(counter, **common, outcome="complete", resumed="false")] == 1
    assert read[labelled(counter, **common, outcome="complete", resumed="true")] == 2
    assert read[labelled(counter, **common, outcome="POLICY_DENIED", resumed="")] == 1
    assert read[labelled(counter, **{**common, "token": ""}, outcome="NO_TOKEN_BOUND", resumed="")] == 1
    assert read[labelled("vmtoken_handshake_duration_seconds_count", token="web")] == 3


def test_durations_are_in_the_buckets_that_hold_them() -> None:
    tally = Tally()
    for total in (0.02, 0.025, 0.3, 60.0):
        tally.count(summary("complete", total=total))
    read = samples(snapshot(tally))
    name = "vmtoken_handshake_duration_seconds"
    buckets = {
        bound: read[labelled(f"{name}_bucket", token="web", le=bound)] for bound in ("0.025", "0.5", "+Inf")
    }
    assert buckets == {"0.025": 2, "0.5": 3, "+Inf": 4}
    assert read[labelled(f"{name}_sum", token="web")] == pytest.approx(60.345)
    assert read[labelled("vmtoken_handshake_queue_seconds_bucket", token="web", le="0.005")] == 4
    assert read[labelled("vmtoken_handshake_token_seconds_bucket", token="web", le="0.005")] == 0


def test_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram()
    for bound in BOUNDS:
        histogram.observe(bound)
    assert histogram.cumulative() == [*range(1, len(BOUNDS) + 1), len(BOUNDS)]


def test_tokens_and_their_pins_are_shown() -> None:
    told = PinRecord(rejected=True, tries_left=2, tries=3, told_at=1e9)
    read = samples(
        snapshot(Tally(), sample("web", user=told), sample("api", problem="TOKEN_UNAVAILABLE", leaf=b""))
    )
    not_after = x509.load_der_x509_certificate(LEAF).not_valid_after_utc.timestamp()
    pin = {"token": "web", "pin": "user"}
    for key, value in (
        (labelled("vmtoken_token_ready", token="web"), 1),
        (labelled("vmtoken_token_ready", token="api"), 0),
        (labelled("vmtoken_token_problem", token="api", reason="TOKEN_UNAVAILABLE"), 1),
        (labelled("vmtoken_token_queue_length", token="web"), 3),
        (labelled("vmtoken_token_info", token="web", assurance="card-handshake"), 1),
        (labelled("vmtoken_token_certificate_not_after_timestamp_seconds", token="web"), not_after),
        (labelled("vmtoken_token_certificates_expiring", token="web"), 2),
        (labelled("vmtoken_token_pin_tries_left", **pin), 2),
        (labelled("vmtoken_token_pin_tries", **pin), 3),
        (labelled("vmtoken_token_pin_rejected", **pin), 1),
        (labelled("vmtoken_token_pin_told_timestamp_seconds", **pin), 1e9),
        (labelled("vmtoken_vms"), 2),
        (labelled("vmtoken_vm_handshakes", vm="web01"), 2),
        (labelled("vmtoken_audit_records_total"), 99),
        (labelled("vmtoken_build_info", version="1.2.3"), 1),
        (labelled("vmtoken_policy_valid"), 1),
    ):
        assert read[key] == value, key
    assert labelled("vmtoken_token_problem", token="web", reason="") not in read
    assert labelled("vmtoken_token_certificate_not_after_timestamp_seconds", token="api") not in read
    assert labelled("vmtoken_token_pin_tries_left", token="api", pin="user") not in read


def test_nothing_that_a_server_or_a_guest_said_is_a_label() -> None:
    tally = Tally()
    tally.count(summary("complete"))
    assert b"evil" not in exposition(snapshot(tally, sample("web")))
