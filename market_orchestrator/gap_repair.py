"""Holes in the live trade ids → asked from the exchange while the window may still wait for them.

Three needs, in this order per symbol: a missing id range, ids undecided since an outage, and the
beginning of the first window. Everything found goes back through the same validator; whatever
happens to a hole is published as ``GapEvent`` (and so enters the ledger).
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable

import msgspec
import numpy as np
import structlog

from binance_api.endpoints import AGG_TRADES_REACH_MS
from binance_api.errors import ExchangeError
from data_validator import MissingRange
from domain.events import GapEvent, GapState
from market_orchestrator.market_flow import MarketFlow
from market_orchestrator.rebuild import PAGE, TradeHistory, fetch_head

log = structlog.get_logger()


class GapRepairSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How holes are asked for.

    Attributes:
        grace_ms: a hole must be this old: the missing trade may only be late, or be on its way over
            a second socket.
        head_wait_ms: how long a symbol may be silent before its latest trade is asked for.
        concurrency: symbols served at once.
        retry_s: first wait after a failed request; doubles up to ``retry_cap_s``.
        retry_cap_s: longest wait between attempts.
        absent_replies: replies that must lack an id before it counts as lost.
        urgent_heads: with more symbols than this, first windows are not completed urgently.
    """

    grace_ms: int = 50
    head_wait_ms: int = 2_000
    concurrency: int = 4
    retry_s: float = 0.2
    retry_cap_s: float = 30.0
    absent_replies: int = 2
    urgent_heads: int = 20


class _Need(enum.StrEnum):
    """What a symbol is served for; holes first, and never behind heads."""

    HOLE = "hole"  # missing or disputed ids, ids undecided since an outage
    HEAD = "head"  # the beginning of the first window


class _Episode(msgspec.Struct):
    """A hole as it was first seen, however it shrinks or splits afterwards."""

    first_id: int
    last_id: int
    after_ms: int
    before_ms: int
    cause: str


class _Page(msgspec.Struct, frozen=True):
    """Rows of one reply, and whether the history ended in it."""

    rows: np.ndarray
    is_last: bool


class GapRepairer:
    """Serves the holes of all symbols; owned and run by the orchestrator."""

    def __init__(
        self,
        flow: MarketFlow,
        history: TradeHistory,
        publish: Callable[[GapEvent], None],
        settings: GapRepairSettings,
        *,
        monotonic_ns: Callable[[], int],
        wall_ns: Callable[[], int],
    ) -> None:
        self._flow = flow
        self._history = history
        self._publish = publish
        self._settings = settings
        self._monotonic_ns = monotonic_ns
        self._wall_ns = wall_ns
        self._busy: set[tuple[_Need, int]] = set()
        self._retry_at_ns: dict[tuple[_Need, int], int] = {}
        self._failures: dict[tuple[_Need, int], int] = {}
        self._episodes: dict[int, list[_Episode]] = {}
        self._wake = asyncio.Event()
        self._started_ns = monotonic_ns()
        self._next_forget_ns = 0
        self._route_up = False
        self._generation = 0  # of the trade route's connections
        self._counts = dict.fromkeys(
            ("requests", "failures", "repaired_ids", "lost_ids", "expired_ids"), 0
        )

    def route_changed(self, *, up: bool) -> None:
        """The trade route came up or went down; answers asked for before do not count any more."""
        self._route_up = up
        self._generation += 1
        self._wake.set()

    def wake(self) -> None:
        """Something changed that may need serving."""
        self._wake.set()

    async def run(self) -> None:
        """Serve needs until cancelled; heads never keep holes waiting."""
        gates = {need: asyncio.Semaphore(self._settings.concurrency) for need in _Need}
        async with asyncio.TaskGroup() as group:
            while True:
                self._watch()
                self._forget_old()
                for need, index in self._needy():
                    self._busy.add((need, index))
                    name = f"{need.value}-{self._flow.symbols[index]}"
                    group.create_task(self._serve(need, index, gates[need]), name=name)
                self._wake.clear()
                try:
                    async with asyncio.timeout(self._settings.grace_ms / 1_000):
                        await self._wake.wait()
                except TimeoutError:
                    continue

    def statistics(self) -> dict[str, int | float | str | None]:
        """Requests made, ids repaired, lost and out of reach, symbols being served."""
        return {**self._counts, "busy_symbols": len({index for _, index in self._busy})}

    # --- what is needed -------------------------------------------------------------------

    def _needy(self) -> list[tuple[_Need, int]]:
        now_ns = self._monotonic_ns()
        flow = self._flow
        needs = {
            (_Need.HOLE, index)
            for index, sequence in enumerate(flow.validator.sequences)
            if (sequence.missing or sequence.disputed)  # no generator for those without: nearly all
            and (sequence.disputed or any(self._is_due(gap, now_ns) for gap in sequence.missing))
        }
        if self._route_up and flow.builder.first_start_ms is not None:
            needs.update((_Need.HOLE, index) for index in flow.builder.uncovered())
            silent_long = now_ns - self._started_ns > self._settings.head_wait_ms * 1_000_000
            needs.update(
                (_Need.HEAD, index)
                for index in flow.builder.heads()
                if silent_long or flow.validator.sequences[index].first_id is not None
            )
        return sorted(key for key in needs - self._busy if now_ns >= self._retry_at_ns.get(key, 0))

    def _is_due(self, gap: MissingRange, now_ns: int) -> bool:
        return not gap.lost and now_ns - gap.since_ns >= self._settings.grace_ms * 1_000_000

    async def _serve(self, need: _Need, index: int, gate: asyncio.Semaphore) -> None:
        key = (need, index)
        failures = self._failures.get(key, 0)
        serve = self._serve_head if need is _Need.HEAD else self._serve_holes
        try:
            async with gate:
                await serve(index)
            if self._failures.get(key, 0) == failures:  # nothing in it asked for patience
                self._failures.pop(key, None)
        except ExchangeError as error:
            self._failed(key, error)
        finally:
            self._busy.discard(key)
            self._wake.set()

    async def _serve_holes(self, index: int) -> None:
        sequence = self._flow.validator.sequences[index]
        if index in self._flow.builder.uncovered():
            await self._serve_outage(index)
        if sequence.disputed:
            await self._serve_disputed(index)
        now_ns = self._monotonic_ns()
        for gap in [g for g in sequence.missing if self._is_due(g, now_ns)][:8]:
            await self._serve_gap(index, gap)

    async def _serve_gap(self, index: int, gap: MissingRange) -> None:
        if self._is_out_of_reach(gap):
            self._expire(index, gap)
            return
        limit = min(PAGE, gap.count + 1)  # one more: proof that the exchange is past the hole
        page = await self._ask(index, gap.first_id, limit)
        rows = page.rows
        wanted = rows[rows["agg_trade_id"] <= gap.last_id]
        self._flow.on_trades(wanted, authoritative=True)
        newest = int(rows["agg_trade_id"].max()) if len(rows) else -1
        if newest <= gap.last_id and page.is_last:
            self._back_off((_Need.HOLE, index))  # the history has not caught up with the stream yet
        self._note_absent(index, gap.first_id, min(gap.last_id, newest))
        self._watch()

    def _note_absent(self, index: int, first_id: int, last_id: int) -> None:
        """Ids within a reply's span that it lacked: lost once enough replies agree."""
        sequence = self._flow.validator.sequences[index]
        for gap in list(sequence.missing):
            if gap.lost or gap.first_id < first_id or gap.last_id > last_id:
                continue
            gap.absent_replies += 1
            if gap.absent_replies >= self._settings.absent_replies:
                sequence.mark_lost(gap.first_id, gap.last_id)
                self._flow.builder.touch(index)
                self._counts["lost_ids"] += gap.count
            else:
                self._back_off((_Need.HOLE, index))
        self._flow.close()

    async def _serve_outage(self, index: int) -> None:
        """After the route came back: what the exchange has beyond our last id, if anything."""
        generation = self._generation
        sequence = self._flow.validator.sequences[index]
        while sequence.max_id is not None:
            page = await self._ask(index, sequence.max_id + 1, PAGE)
            self._flow.on_trades(page.rows, authoritative=True)
            if page.is_last:
                break
        else:
            await self._latest(index)
        if generation == self._generation and self._route_up:
            self._flow.builder.verify(index)
            self._flow.close()

    async def _serve_head(self, index: int) -> None:
        flow = self._flow
        sequence = flow.validator.sequences[index]
        start_ms = flow.builder.first_start_ms or 0
        if sequence.first_id is None:
            await self._latest(index)
            return
        symbol = flow.symbols[index]
        self._counts["requests"] += 1
        urgent = len(flow.symbols) <= self._settings.urgent_heads
        head = await fetch_head(self._history, symbol, sequence.first_id, start_ms, urgent=urgent)
        rows = flow.validator.accept_head(index, head.rows)
        rows["symbol_index"] = index
        flow.builder.insert_head(index, rows, proven=head.proven)
        flow.close()

    async def _latest(self, index: int) -> None:
        """No trade was received yet: learn the latest one, so that silence can be told from loss."""
        flow = self._flow
        reply = await self._history.agg_trades(flow.symbols[index], limit=1, urgent=True)
        self._counts["requests"] += 1
        sequence = flow.validator.sequences[index]
        if sequence.first_id is not None:
            return
        start_ms = flow.builder.first_start_ms or 0
        if not len(reply.value):  # nothing was ever traded, as far as the exchange tells
            flow.builder.insert_head(index, reply.value, proven=True)
        elif int(reply.value["transact_time_ms"][0]) < start_ms:
            latest = reply.value[0]
            sequence.resume(int(latest["agg_trade_id"]), int(latest["transact_time_ms"]))
            flow.builder.insert_head(index, reply.value[:0], proven=True)
        else:
            rows = reply.value.copy()
            rows["symbol_index"] = index
            flow.on_trades(rows, authoritative=True)

    async def _serve_disputed(self, index: int) -> None:
        """Ask for ids whose copies contradict each other; the exchange's history decides."""
        sequence = self._flow.validator.sequences[index]
        for trade_id in sorted(sequence.disputed)[:8]:
            page = await self._ask(index, trade_id, 1)
            if not len(page.rows):  # the history has not caught up with the stream yet
                self._back_off((_Need.HOLE, index))
                continue
            self._flow.on_trades(
                page.rows[page.rows["agg_trade_id"] == trade_id], authoritative=True
            )
            sequence.disputed.discard(trade_id)

    async def _ask(self, index: int, from_id: int, limit: int) -> _Page:
        self._counts["requests"] += 1
        reply = await self._history.agg_trades(
            self._flow.symbols[index], from_id=from_id, limit=limit, urgent=True
        )
        rows = reply.value
        rows["symbol_index"] = index
        is_last = len(rows) + reply.rejected_count < limit
        return _Page(rows[rows["agg_trade_id"] >= from_id], is_last)

    # --- failures and the life of holes ---------------------------------------------------

    def _failed(self, key: tuple[_Need, int], error: ExchangeError) -> None:
        self._counts["failures"] += 1
        self._back_off(key)
        log.warning(
            "repair.failed",
            need=key[0].value,
            symbol=self._flow.symbols[key[1]],
            error=str(error),
            failures=self._failures[key],
        )

    def _back_off(self, key: tuple[_Need, int]) -> None:
        failures = self._failures.get(key, 0) + 1
        self._failures[key] = failures
        wait_s = min(
            self._settings.retry_cap_s, self._settings.retry_s * 2 ** min(failures - 1, 20)
        )
        self._retry_at_ns[key] = self._monotonic_ns() + int(wait_s * 1e9)

    def _is_out_of_reach(self, gap: MissingRange) -> bool:
        return gap.before_ms < self._flow.builder.route_ms - AGG_TRADES_REACH_MS

    def _expire(self, index: int, gap: MissingRange) -> None:
        self._flow.validator.sequences[index].mark_lost(gap.first_id, gap.last_id)
        self._flow.builder.touch(index)
        self._counts["expired_ids"] += gap.count
        self._episodes[index] = [
            episode
            for episode in self._episodes.get(index, [])
            if episode.last_id < gap.first_id or episode.first_id > gap.last_id
        ]
        if not self._episodes[index]:
            del self._episodes[index]
        self._announce(
            index, gap.first_id, gap.last_id, gap, GapState.EXPIRED, "out of REST's reach"
        )

    def _watch(self) -> None:
        """Publish holes that appeared, and those that were filled or given up since."""
        for index, sequence in enumerate(self._flow.validator.sequences):
            episodes = self._episodes.get(index)
            if not sequence.missing and not episodes:
                continue
            known = [(e.first_id, e.last_id) for e in episodes or ()]
            for gap in sequence.missing:
                if gap.lost or any(a <= gap.first_id and gap.last_id <= b for a, b in known):
                    continue
                cause = "lost connection" if not self._route_up else "missing from the stream"
                episode = _Episode(gap.first_id, gap.last_id, gap.after_ms, gap.before_ms, cause)
                self._episodes.setdefault(index, []).append(episode)
                self._announce(index, gap.first_id, gap.last_id, episode, GapState.OPEN, cause)
            for episode in list(self._episodes.get(index, ())):
                self._settle(index, episode)

    def _forget_old(self) -> None:
        """Holes beyond the history's reach are the ledger's alone, looked at once a minute."""
        now_ns = self._monotonic_ns()
        if now_ns < self._next_forget_ns:
            return
        self._next_forget_ns = now_ns + 60_000_000_000
        for index, sequence in enumerate(self._flow.validator.sequences):
            if sequence.missing and index not in self._episodes:
                oldest_ms = self._flow.builder.route_ms - AGG_TRADES_REACH_MS
                self._flow.builder.forget_before(index, oldest_ms)

    def _settle(self, index: int, episode: _Episode) -> None:
        inside = [
            gap
            for gap in self._flow.validator.sequences[index].missing
            if gap.first_id <= episode.last_id and gap.last_id >= episode.first_id
        ]
        if any(not gap.lost for gap in inside):
            return
        self._episodes[index].remove(episode)
        if not self._episodes[index]:
            del self._episodes[index]
        lost = sum(gap.count for gap in inside)
        self._counts["repaired_ids"] += episode.last_id - episode.first_id + 1 - lost
        cause = episode.cause
        next_id = episode.first_id
        for gap in sorted(inside, key=lambda gap: gap.first_id):
            if next_id < gap.first_id:
                self._announce(index, next_id, gap.first_id - 1, episode, GapState.REPAIRED, cause)
            self._announce(index, gap.first_id, gap.last_id, gap, GapState.LOST, cause)
            next_id = gap.last_id + 1
        if next_id <= episode.last_id:
            self._announce(index, next_id, episode.last_id, episode, GapState.REPAIRED, cause)

    def _announce(
        self,
        index: int,
        first_id: int,
        last_id: int,
        around: MissingRange | _Episode,
        state: GapState,
        cause: str,
    ) -> None:
        symbol = self._flow.symbols[index]
        name = f"gap.{state.value}"
        log.log(
            logging.WARNING if state in (GapState.OPEN, GapState.REPAIRED) else logging.ERROR,
            name,
            symbol=symbol,
            first_id=first_id,
            last_id=last_id,
            missing_count=last_id - first_id + 1,
        )
        self._publish(
            GapEvent(
                kind="trades",
                symbol=symbol,
                first_id=first_id,
                last_id=last_id,
                state=state,
                cause=cause,
                from_ms=around.after_ms,
                until_ms=around.before_ms,
                repairable_until_ms=around.before_ms + AGG_TRADES_REACH_MS,
                at_ns=self._wall_ns(),
            )
        )
