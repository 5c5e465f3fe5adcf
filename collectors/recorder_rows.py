"""Frames in, checked rows out, and what is missing between them: the recorder's synchronous heart.

Consumes batches of frames, produces rows held until they are taken for writing (``Rows``), holes, and
rejected input. The same code live and when a dead process's journal is read; owns no task and no disk.
Trades count as missing by their ids, depth by its update chain (spot has none: by lost connections).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from binance_api.decode import decode_trades
from binance_api.decode_depth import decode_depth
from binance_api.endpoints import AGG_TRADES_REACH_MS, Route
from binance_api.frames import Rejection, contradictions
from data_validator import DUPLICATE, DataValidator, Rejected
from domain.events import GapEvent, GapState
from domain.market import DepthTop, Market

_MAX_REJECTIONS = 10_000  # kept until taken; more are counted only
_FORGET_AFTER_MS = 600_000
"""A hole this old is left to the ledger: nothing of it will come over a socket any more."""

OFF = "recorder was not running"
MISSING = "missing in the stream"
BROKEN = "update chain broken"
FAULTY = "faulty level"


class Position(msgspec.Struct, frozen=True):
    """How far a symbol is recorded: its last trade, its last depth update, and their times."""

    trade_id: int | None = None
    trade_ms: int = 0
    update_id: int | None = None
    depth_ms: int = 0
    trade_cut: str | None = None  # the route was lost since, and why
    depth_cut: str | None = None


class Rows(msgspec.Struct, frozen=True):
    """What was received between two flushes."""

    trades: list[np.ndarray]  # TRADE_DTYPE; rows from REST have no receive time
    tops: list[DepthTop]
    frame_count: int
    payload_bytes: int


type KeepLate = Callable[[str, np.ndarray], np.ndarray]
"""Symbol and ids of trades that were told to be missing and came all the same → which to keep."""


class StreamRows:
    """Rows of a fixed list of symbols.

    Args:
        symbols: Upper case.
        market: Whose frames.
        monotonic_ns: For the age of holes.
        wall_ns: Stamped on holes.

    Attributes:
        keep_late: Asked before trades of holes that were handed out are kept.
    """

    def __init__(
        self,
        symbols: Sequence[str],
        market: Market,
        *,
        monotonic_ns: Callable[[], int],
        wall_ns: Callable[[], int],
    ) -> None:
        self.symbols = list(symbols)
        self.index = {symbol: i for i, symbol in enumerate(self.symbols)}
        self.market = market
        self.validator = DataValidator(self.symbols, is_flagging=False)
        self._monotonic_ns = monotonic_ns
        self._wall_ns = wall_ns
        self._trades: list[np.ndarray] = []
        self._tops: list[DepthTop] = []
        self._last_depth: dict[str, tuple[int, int]] = {}  # update id and time
        self._cut: dict[Route, dict[str, str]] = {Route.TRADES: {}, Route.DEPTH: {}}
        self._trade_cause = [MISSING] * len(self.symbols)
        self.keep_late: KeepLate = lambda _, ids: np.ones(len(ids), dtype=np.bool_)
        self._told_until: dict[int, int] = {}  # symbol → highest id of holes handed out
        self._depth_holes: list[GapEvent] = []
        self._rejections: list[Rejection] = []
        self.frame_count = self.payload_bytes = self.row_count = 0
        self._counts = dict.fromkeys(
            ("frames", "trades", "depth", "rejected", "holes", "depth_holes", "late"), 0
        )

    # --- in -------------------------------------------------------------------------------

    def resume(self, positions: Mapping[str, Position]) -> None:
        """Go on after what an earlier run recorded: what is between is missing."""
        for symbol, position in positions.items():
            if symbol not in self.index:
                continue
            if position.trade_id is not None:
                sequence = self.validator.sequences[self.index[symbol]]
                sequence.resume(position.trade_id, position.trade_ms)
            if position.update_id is not None:
                self._last_depth[symbol] = (position.update_id, position.depth_ms)
            if position.trade_cut is not None:
                self._cut[Route.TRADES][symbol] = position.trade_cut
            if position.depth_cut is not None:
                self._cut[Route.DEPTH][symbol] = position.depth_cut

    def note_outage(self, route: Route, cause: str) -> None:
        """All sockets of a route were lost, or this process begins: what follows next may lack."""
        if route is Route.DEPTH:
            known = list(self._last_depth)
            self.validator.reset_depth()
        else:
            known = [symbol for symbol in self.symbols if self.last_trade_id(symbol) is not None]
        self._cut[route] = {**dict.fromkeys(known, cause), **self._cut[route]}

    def on_frames(self, route: Route, payloads: Sequence[bytes], stamps: Sequence[int]) -> set[str]:
        """Take frames of one socket in arrival order; returns the streams that carried data."""
        self._counts["frames"] += len(payloads)
        self.frame_count += len(payloads)
        self.payload_bytes += sum(map(len, payloads))
        if route is Route.DEPTH:
            return self._on_depth(payloads, stamps)
        decoded = decode_trades(payloads, stamps, self.index)
        self.reject(decoded.rejections)
        if len(decoded.rows):
            self._on_trades(decoded.rows, from_rest=False)
        return decoded.streams

    def on_rest_trades(self, symbol: str, rows: np.ndarray) -> None:
        """Take trades that follow the last one received, which no socket delivers (``TRADE_DTYPE``)."""
        rows = rows[rows["agg_trade_id"] > (self.last_trade_id(symbol) or 0)]
        rows["symbol_index"] = self.index[symbol]
        if len(rows):
            self._on_trades(rows, from_rest=True)

    def _on_trades(self, rows: np.ndarray, *, from_rest: bool) -> None:
        now_ns = self._monotonic_ns()
        checked = self.validator.check_trades(rows, now_ns, authoritative=from_rest)
        if len(checked.rejected_rows):
            self.reject(contradictions(checked.rejected_rows, self.symbols))
        cut = self._cut[Route.TRADES]
        kept = checked.rows
        for index in checked.changed:
            self._trade_cause[index] = cut.get(self.symbols[index], MISSING)
            kept = self._without_late(index, kept)
        if len(kept):
            self._trades.append(kept)
            self.row_count += len(kept)
            self._counts["trades"] += len(kept)
        if cut:
            for index, _, _ in checked.groups:
                cut.pop(self.symbols[index], None)

    def _without_late(self, index: int, rows: np.ndarray) -> np.ndarray:
        """Leave out late trades of holes that were handed out, where another stores them."""
        until = self._told_until.get(index)
        if until is None:
            return rows
        is_late = (rows["symbol_index"] == index) & (rows["agg_trade_id"] <= until)
        if not is_late.any():
            return rows
        keep = ~is_late
        keep[is_late] = self.keep_late(self.symbols[index], rows["agg_trade_id"][is_late])
        self._counts["late"] += int(is_late.sum())
        kept: np.ndarray = rows[keep]
        return kept

    def _on_depth(self, payloads: Sequence[bytes], stamps: Sequence[int]) -> set[str]:
        decoded = decode_depth(payloads, stamps, self.index, self.market)
        self.reject(decoded.rejections)
        offset_ms = self.validator.clock.latest_ms if self.market is Market.SPOT else None
        check = self.validator.check_depth
        for sent in decoded.tops:
            top = sent if offset_ms is None else _timed(sent, offset_ms)
            checked = check(top)
            if not isinstance(checked, Rejected):
                self._keep_depth(top)
            elif checked.reason != DUPLICATE:
                rejection = Rejection(checked.reason, top.payload, top.receive_time_ns, top.symbol)
                self.reject([rejection])
        return decoded.streams

    def _keep_depth(self, top: DepthTop) -> None:
        symbol, update_id, time_ms = top.symbol, top.final_update_id, top.transact_time_ms
        last = self._last_depth.get(symbol)
        cut = self._cut[Route.DEPTH]
        cause = cut.pop(symbol, None) if cut else None
        if last is not None:
            if update_id <= last[0] and time_ms <= last[1]:
                return  # recorded already, over another socket or before the restart
            before = top.prev_final_update_id
            # a chain that goes back is a new one; one that overlaps comes from another socket
            is_hole = (
                cause is not None if before is None else before > last[0] or update_id < last[0]
            )
            if is_hole:
                self._counts["depth_holes"] += 1
                until_ms = max(time_ms, last[1] + 1)  # a clock that went back hides no hole
                hole = self._depth_hole(symbol, cause or BROKEN, last[1], until_ms)
                self._depth_holes.append(hole)
        self._last_depth[symbol] = (update_id, time_ms)
        self._tops.append(top)
        self.row_count += 1
        self._counts["depth"] += 1

    def _depth_hole(self, symbol: str, cause: str, from_ms: int, until_ms: int) -> GapEvent:
        """What was missed of the book is gone."""
        return self._hole(
            "depth", symbol, cause=cause, from_ms=from_ms, until_ms=until_ms, state=GapState.LOST
        )

    def _hole(
        self,
        kind: str,
        symbol: str,
        first_id: int | None = None,
        last_id: int | None = None,
        *,
        cause: str,
        from_ms: int,
        until_ms: int,
        state: GapState,
    ) -> GapEvent:
        return GapEvent(
            kind=kind,
            symbol=symbol,
            first_id=first_id,
            last_id=last_id,
            state=state,
            cause=cause,
            from_ms=from_ms,
            until_ms=until_ms,
            repairable_until_ms=until_ms + AGG_TRADES_REACH_MS if kind == "trades" else None,
            at_ns=self._wall_ns(),
        )

    def depth_fault(self, top: DepthTop) -> None:
        """A further level of a frame turned out to be faulty: it leaves a hole."""
        self.reject([Rejection(FAULTY, top.payload, top.receive_time_ns, top.symbol)])
        at_ms = top.transact_time_ms
        self._depth_holes.append(self._depth_hole(top.symbol, FAULTY, at_ms, at_ms + 1))

    # --- out ------------------------------------------------------------------------------

    def take(self) -> Rows:
        """The rows since the last call."""
        taken = Rows(self._trades, self._tops, self.frame_count, self.payload_bytes)
        self._trades, self._tops = [], []
        self.frame_count = self.payload_bytes = self.row_count = 0
        return taken

    def take_holes(self, min_age_s: float) -> list[GapEvent]:
        """Holes that appeared since the last call; of trades those at least so old.

        Reordered and redundant frames fill most within moments: those are no holes.
        """
        found, self._depth_holes = self._depth_holes, []
        oldest_ns = self._monotonic_ns() - int(min_age_s * 1e9)
        for index, sequence in enumerate(self.validator.sequences):
            for gap in sequence.missing:
                if gap.since_ns > oldest_ns or gap.is_told:
                    continue
                gap.is_told = True  # what is left of it after late trades is known as well
                self._told_until[index] = max(gap.last_id, self._told_until.get(index, 0))
                self._counts["holes"] += 1
                found.append(
                    self._hole(
                        "trades",
                        self.symbols[index],
                        gap.first_id,
                        gap.last_id,
                        cause=self._trade_cause[index],
                        from_ms=gap.after_ms,
                        until_ms=gap.before_ms,
                        state=GapState.OPEN,
                    )
                )
        return found

    def forget(self) -> None:
        """Leave old holes to the ledger (call it after ``take_holes(0)``)."""
        for index, sequence in enumerate(self.validator.sequences):
            if sequence.missing:
                sequence.forget_before(sequence.last_ms - _FORGET_AFTER_MS)
                if not sequence.missing:
                    self._told_until.pop(index, None)

    def reject(self, rejections: Sequence[Rejection]) -> None:
        """Keep rejected input for the quarantine; beyond a bound only the count."""
        self._counts["rejected"] += len(rejections)
        self._rejections.extend(rejections[: _MAX_REJECTIONS - len(self._rejections)])

    def take_rejections(self) -> list[Rejection]:
        """Rejected input since the last call."""
        taken, self._rejections = self._rejections, []
        return taken

    def positions(self) -> dict[str, Position]:
        """How far each symbol is recorded; for ``resume``."""
        found = {}
        for symbol, sequence in zip(self.symbols, self.validator.sequences, strict=True):
            update_id, depth_ms = self._last_depth.get(symbol, (None, 0))
            if sequence.max_id is None and update_id is None:
                continue
            found[symbol] = Position(
                sequence.max_id,
                sequence.last_ms,
                update_id,
                depth_ms,
                self._cut[Route.TRADES].get(symbol),
                self._cut[Route.DEPTH].get(symbol),
            )
        return found

    def last_trade_id(self, symbol: str) -> int | None:
        """The highest id received."""
        return self.validator.sequences[self.index[symbol]].max_id

    def last_update_id(self, symbol: str) -> int | None:
        """The last update of the book received."""
        return self._last_depth.get(symbol, (None, 0))[0]

    def market_ms(self) -> int:
        """The exchange's time of the newest frame, UTC ms; before the first one the wall clock's."""
        newest = max(
            max((sequence.last_ms for sequence in self.validator.sequences), default=0),
            max((time_ms for _, time_ms in self._last_depth.values()), default=0),
        )
        return newest or self._wall_ns() // 1_000_000

    def statistics(self) -> dict[str, int | float | str | None]:
        """Counts since the start; what waits to be taken."""
        checked = self.validator.statistics()
        return {
            **self._counts,
            "rows_waiting": self.row_count,
            **{name: checked[name] for name in ("duplicates", "conflicts", "missing_ids")},
            "clock_offset_ms": checked["clock_offset_ms"],
        }


def _timed(top: DepthTop, offset_ms: float) -> DepthTop:
    """Spot depth says no time: give it the exchange's, as learned from the trades."""
    time_ms = int(top.receive_time_ns / 1e6 - offset_ms)
    return msgspec.structs.replace(top, event_time_ms=time_ms, transact_time_ms=time_ms)
