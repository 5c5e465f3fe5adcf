"""Which channel gets what: severities, a rate each, digests, and an outbox with bounds."""

from typing import Any

import msgspec

from alerts.notification import Notification, NotificationKind
from alerts.outbox import GIVE_UP_MS, LONGEST_RETRY_S, MAX_WAITING, Entry, Outbox, retry_s
from alerts.routing import ChannelState, Router
from tests.alert_samples import T0, book, notification, numbered

HOUR_MS = 3_600_000


def router(state: dict[str, ChannelState] | None = None, **channels: dict[str, Any]) -> Router:
    return Router(book(channel=channels), channels, new_id=numbered(), state=state)


def sent(found: list[tuple[str, Notification]]) -> list[tuple[str, str]]:
    return [(channel, note.key) for channel, note in found]


def test_each_channel_takes_what_is_severe_enough() -> None:
    both = router(chat={"least_severity": "warning"}, file={"per_hour": 0})
    assert sent(both.route(notification("a", "info"), T0)) == [("file", "a")]
    assert sent(both.route(notification("b", "warning"), T0)) == [("chat", "b"), ("file", "b")]
    mixed = msgspec.structs.replace(
        notification("c"),
        items=(*notification("x", "info").items, *notification("y", "error").items),
    )
    chat, file = both.route(mixed, T0)
    assert [len(note.items) for _, note in (chat, file)] == [1, 2]


def test_beyond_its_rate_a_channel_gets_one_digest_that_counts_everything() -> None:
    one = router(chat={"per_hour": 60, "burst": 2})
    found = [sent(one.route(notification(f"n{n}", name="whale"), T0 + n)) for n in range(5)]
    found.append(sent(one.route(notification("other", name="burst"), T0 + 5)))
    assert found == [[("chat", "n0")], [("chat", "n1")], [], [], [], []]
    assert one.digests(T0 + 30_000) == []
    ((channel, digest),) = one.digests(T0 + 61_000)
    assert (channel, digest.kind) == ("chat", NotificationKind.DIGEST)
    assert digest.held_back == {"whale BTCUSDT": 3, "burst BTCUSDT": 1}
    assert digest.held_since_ms == T0 + 2
    assert one.digests(T0 + HOUR_MS) == []
    assert sent(one.route(notification("later"), T0 + HOUR_MS)) == [("chat", "later")]


def test_errors_are_never_held_back() -> None:
    one = router(chat={"per_hour": 1, "burst": 1})
    found = [one.route(notification(f"n{n}", "error"), T0) for n in range(5)]
    assert [len(f) for f in found] == [1] * 5


def test_the_allowance_and_what_was_held_back_survive_a_restart() -> None:
    given: dict[str, Any] = {"per_hour": 60, "burst": 1}
    before = router(chat=given)
    before.route(notification("a"), T0)
    before.route(notification("b"), T0)
    saved = msgspec.json.decode(msgspec.json.encode(before.state), type=dict[str, ChannelState])
    after = router(saved, chat=given)
    assert after.route(notification("c"), T0 + 1_000) == []
    ((_, digest),) = after.digests(T0 + 60_000)
    assert digest.held_back == {"whale BTCUSDT": 2}


def test_an_hour_never_brings_more_than_the_rate_and_the_burst() -> None:
    one = router(chat={"per_hour": 30, "burst": 6})
    count = 0
    for second in range(3_600):
        at_ms = T0 + second * 1_000
        count += len(one.digests(at_ms)) + len(one.route(notification(str(second)), at_ms))
    assert 30 <= count <= 36


def outbox(*keys: str) -> tuple[Outbox, list[tuple[str, str]]]:
    lost: list[tuple[str, str]] = []
    entries = [Entry(channel="chat", notification=notification(key)) for key in keys]
    return Outbox(entries, lambda e, why: lost.append((e.notification.key, why))), lost


def test_the_outbox_gives_in_order_and_forgets_only_what_is_done() -> None:
    box, lost = outbox("a", "b")
    box.add("file", notification("a"))
    head = box.head("chat")
    assert head is not None
    assert head.notification.key == "a"
    assert box.head("chat") is head
    box.done(head)
    assert [(e.channel, e.notification.key) for e in box.entries()] == [
        ("chat", "b"),
        ("file", "a"),
    ]
    assert lost == []


def test_what_cannot_be_kept_is_named() -> None:
    box, lost = outbox()
    for number in range(MAX_WAITING + 2):
        box.add("chat", notification(str(number)))
    assert [key for key, _ in lost] == ["0", "1"]
    box.expire(T0 + GIVE_UP_MS)
    assert len(box.entries()) == MAX_WAITING
    box.expire(T0 + GIVE_UP_MS + 1)
    assert box.entries() == ()
    assert box.statistics()["chat.lost"] == MAX_WAITING + 2


def test_retries_back_off_to_a_cap_with_jitter() -> None:
    assert [retry_s(n, 1.0, lambda: 1.0) for n in (1, 2, 3, 9, 10, 10**9)] == [
        *(1, 2, 4, 256),
        *(LONGEST_RETRY_S, LONGEST_RETRY_S),
    ]
    assert retry_s(3, 1.0, lambda: 0.0) == 2
