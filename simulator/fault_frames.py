"""Frame faults: which frames a fault takes, and what each socket then sends instead.

Consumes frames in feed order → produces marks on them (``FaultDesk``, once for all sockets) and the
wire bytes of one socket (``Outbox``). Deterministic: the same plan and feed give the same bytes.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable

import msgspec

from simulator.faults import AppliedFault, Fault, FaultKind
from simulator.frames import Frame, FrameKind, text_frame

_REORDER_PATIENCE_NS = 2_000_000_000
_ROUTE_OF = {FrameKind.TRADE: "trades", FrameKind.DEPTH: "depth"}


class Action(enum.Enum):
    """What happens to a claimed frame."""

    DROP = enum.auto()
    REPEAT = enum.auto()
    SHUFFLE = enum.auto()
    CORRUPT = enum.auto()
    HOLD = enum.auto()


class FrameMark(msgspec.Struct, frozen=True, kw_only=True):
    """One fault's claim on one frame. ``target`` is a socket number, None for all sockets."""

    action: Action
    target: int | None
    number: int  # the fault's place in the plan
    position: int  # 0-based among the frames this fault claimed
    is_last: bool
    mode: str = ""
    release_ns: int = 0


class _ActiveFault(msgspec.Struct, kw_only=True):
    fault: Fault
    number: int
    target: int | None
    record: AppliedFault
    end_ns: int
    claimed_count: int = 0


_ACTIONS = {
    FaultKind.MISSING: Action.DROP,
    FaultKind.REST_LOST_TRADES: Action.DROP,
    FaultKind.DUPLICATED: Action.REPEAT,
    FaultKind.REORDERED: Action.SHUFFLE,
    FaultKind.CORRUPTED: Action.CORRUPT,
    FaultKind.DELAYED: Action.HOLD,
}


class FaultDesk:
    """Hands each frame to the first active fault that wants it."""

    def __init__(self) -> None:
        self._active: list[_ActiveFault] = []
        self.lost: set[tuple[str, int]] = set()

    def begin(
        self, fault: Fault, number: int, target: int | None, at_ns: int, record: AppliedFault
    ) -> None:
        """Let a frame fault act from now on."""
        end_ns = at_ns + fault.duration_ms * 1_000_000 if fault.duration_ms else 2**62
        self.lost.update((fault.symbol or "", number) for number in fault.ids)
        self._active.append(
            _ActiveFault(fault=fault, number=number, target=target, record=record, end_ns=end_ns)
        )

    def claim(self, frames: list[Frame]) -> bool:
        """Mark the frames that active faults take.

        Returns:
            True when any frame was marked.
        """
        if not self._active:
            return False
        marked = False
        for frame in frames:
            self._active = [active for active in self._active if not _is_over(active, frame)]
            for active in self._active:
                if _wants(active.fault, frame):
                    self._mark(active, frame)
                    marked = True
                    break
        return marked

    def _mark(self, active: _ActiveFault, frame: Frame) -> None:
        fault = active.fault
        action, release_ns = _ACTIONS.get(fault.kind, Action.DROP), 0
        if fault.kind is FaultKind.STALL and fault.variant == "delay":
            action, release_ns = Action.HOLD, active.end_ns
        elif fault.kind is FaultKind.DELAYED:
            release_ns = min(frame.due_ns + fault.delay_ms * 1_000_000, active.end_ns)
        frame.mark = FrameMark(
            action=action,
            target=active.target,
            number=active.number,
            position=active.claimed_count,
            is_last=active.claimed_count + 1 == fault.count,
            mode=fault.variant,
            release_ns=release_ns,
        )
        active.claimed_count += 1
        active.record.frame_count += 1
        if frame.kind is FrameKind.TRADE:
            active.record.ids.append((frame.symbol, frame.agg_trade_id))
            if fault.kind is FaultKind.REST_LOST_TRADES:
                self.lost.add((frame.symbol, frame.agg_trade_id))


def _is_over(active: _ActiveFault, frame: Frame) -> bool:
    fault = active.fault
    if fault.ids:
        return active.claimed_count >= len(fault.ids)
    counted_out = bool(fault.count) and active.claimed_count >= fault.count
    return counted_out or frame.due_ns >= active.end_ns


def _wants(fault: Fault, frame: Frame) -> bool:
    if fault.symbol is not None and fault.symbol != frame.symbol:
        return False
    if fault.ids:
        return frame.kind is FrameKind.TRADE and frame.agg_trade_id in fault.ids
    trades_only = fault.kind is FaultKind.REST_LOST_TRADES or fault.variant in _TRADE_EDITS
    if trades_only and frame.kind is not FrameKind.TRADE:
        return False
    return fault.route is None or fault.route == _ROUTE_OF.get(frame.kind)


class _Held(msgspec.Struct, kw_only=True):
    release_ns: int
    order: int
    wire: bytes


class _Repeat(msgspec.Struct, kw_only=True):
    remaining: int
    wire: bytes


class Outbox:
    """What one socket sends: frames in, wire bytes out, faults applied on the way.

    Args:
        number: The socket's number, which marks may target.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._held: list[_Held] = []
        self._repeats: list[_Repeat] = []
        self._shuffles: dict[int, list[bytes]] = {}
        self._shuffle_deadline_ns: dict[int, int] = {}
        self._order = 0

    @property
    def next_release_ns(self) -> int | None:
        """Market time at which something held back is due, if anything is."""
        times = [held.release_ns for held in self._held]
        times.extend(self._shuffle_deadline_ns.values())
        return min(times, default=None)

    def pass_on(self, frames: list[Frame], *, combined: bool) -> list[bytes]:
        """Wire bytes for these frames, in the order they are to be sent."""
        out: list[bytes] = []
        for frame in frames:
            if self._held or self._shuffles:
                out += self.release(frame.due_ns)
            mark = frame.mark
            if not isinstance(mark, FrameMark) or mark.target not in (None, self._number):
                self._send(out, frame.wire(combined=combined))
            else:
                self._apply(out, frame, mark, combined=combined)
        return out

    def release(self, now_ns: int) -> list[bytes]:
        """Wire bytes of what was held back until ``now_ns``."""
        out: list[bytes] = []
        ready = [held for held in self._held if held.release_ns <= now_ns]
        if ready:
            self._held = [held for held in self._held if held.release_ns > now_ns]
            for held in sorted(ready, key=lambda item: (item.release_ns, item.order)):
                self._send(out, held.wire)
        for number in [n for n, at in self._shuffle_deadline_ns.items() if at <= now_ns]:
            self._finish_shuffle(out, number)
        return out

    def _send(self, out: list[bytes], wire: bytes) -> None:
        out.append(wire)
        if not self._repeats:
            return
        for repeat in self._repeats:
            repeat.remaining -= 1
            if repeat.remaining <= 0:
                out.append(repeat.wire)
        self._repeats = [repeat for repeat in self._repeats if repeat.remaining > 0]

    def _apply(self, out: list[bytes], frame: Frame, mark: FrameMark, *, combined: bool) -> None:
        wire = frame.wire(combined=combined)
        source = random.Random(mark.number * 1_000_003 + mark.position)
        match mark.action:
            case Action.DROP:
                return
            case Action.REPEAT:
                self._send(out, wire)
                self._repeats.append(_Repeat(remaining=source.randint(0, 5), wire=wire))
            case Action.SHUFFLE:
                self._shuffles.setdefault(mark.number, []).append(wire)
                deadline_ns = frame.due_ns + _REORDER_PATIENCE_NS
                self._shuffle_deadline_ns.setdefault(mark.number, deadline_ns)
                if mark.is_last:
                    self._finish_shuffle(out, mark.number)
            case Action.CORRUPT:
                if mark.mode == "changed_payload":
                    self._send(out, wire)
                damaged = corrupt(mark.mode, frame.payload(combined=combined), source)
                self._send(out, text_frame(damaged))
            case Action.HOLD:
                self._order += 1
                held = _Held(release_ns=mark.release_ns, order=self._order, wire=wire)
                self._held.append(held)

    def _finish_shuffle(self, out: list[bytes], number: int) -> None:
        wires = self._shuffles.pop(number, [])
        self._shuffle_deadline_ns.pop(number, None)
        shuffled = list(wires)
        random.Random(number).shuffle(shuffled)
        if shuffled == wires:
            shuffled.reverse()
        for wire in shuffled:
            self._send(out, wire)


def corrupt(mode: str, payload: bytes, source: random.Random) -> bytes:
    """A damaged copy of a message.

    Args:
        mode: One of ``faults.CORRUPTION_MODES``.
        payload: The sound message.
        source: Decides where it is cut or flipped.

    Returns:
        Bytes that are not a sound message of the same stream.
    """
    return _DAMAGE[mode](payload, source)


def _truncated(payload: bytes, source: random.Random) -> bytes:
    return payload[: source.randint(1, len(payload) - 1)]


def _bit_flip(payload: bytes, source: random.Random) -> bytes:
    """Flip one bit of the punctuation, so that the damage cannot pass for other data."""
    places = [index for index, byte in enumerate(payload) if byte in b'{}:"']
    source.shuffle(places)
    for index in places:
        damaged = bytearray(payload)
        damaged[index] ^= 1 << source.randint(0, 6)
        if not _is_json(bytes(damaged)):
            return bytes(damaged)
    return payload[:-1]


def _is_json(payload: bytes) -> bool:
    try:
        msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _not_utf8(payload: bytes, source: random.Random) -> bytes:
    index = source.randint(1, len(payload) - 1)
    return payload[:index] + b"\xff\xfe" + payload[index:]


def _html(payload: bytes, source: random.Random) -> bytes:  # noqa: ARG001
    return b"<html><head><title>502 Bad Gateway</title></head><body>502</body></html>"


def _edit(payload: bytes, key: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Replace a quoted value in the text, leaving every other byte as it is."""
    head, found, tail = payload.partition(b'"%b":"' % key)
    if not found:
        return payload[:-1]
    value, _, rest = tail.partition(b'"')
    return head + found + change(value) + b'"' + rest


def _wrong_symbol(payload: bytes, source: random.Random) -> bytes:  # noqa: ARG001
    return _edit(payload, b"s", lambda value: b"XRPUSDT" if value != b"XRPUSDT" else b"LTCUSDT")


def _zero_price(payload: bytes, source: random.Random) -> bytes:  # noqa: ARG001
    return _edit(payload, b"p", lambda _: b"0.00")


def _negative_price(payload: bytes, source: random.Random) -> bytes:  # noqa: ARG001
    return _edit(payload, b"p", lambda value: b"-" + value)


def _changed_payload(payload: bytes, source: random.Random) -> bytes:
    """The same id with another quantity."""
    return _edit(payload, b"q", lambda value: b"%d" % source.randint(1, 9) + value)


_DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": _truncated,
    "bit_flip": _bit_flip,
    "not_utf8": _not_utf8,
    "html": _html,
    "wrong_symbol": _wrong_symbol,
    "zero_price": _zero_price,
    "negative_price": _negative_price,
    "changed_payload": _changed_payload,
}
_TRADE_EDITS = frozenset(("wrong_symbol", "zero_price", "negative_price", "changed_payload"))
