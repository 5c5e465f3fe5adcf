"""A trained model beside the flow: shown its symbols' books and windows, its answers to the outputs.

Depth frames and closed windows → signals of source ``model:NAME``. The loop only collects; the model
reads, computes and answers in a worker thread, and of one symbol's questions only the newest. In a
replay it answers every question before the next slice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import msgspec
import structlog

from binance_api.decode_depth import read_levels
from config import Settings
from domain.errors import ModelError
from domain.events import AnalysisUnavailable, Topic
from domain.flow import WindowBatch
from domain.market import DepthTop, Market
from event_bus import EventBus
from inference.model import Model, Prediction
from inference.model_signal import model_signal
from market_orchestrator.market_flow import ClosedWindow, MarketFlow
from market_orchestrator.outputs import Outputs

log = structlog.get_logger()

_MOST_WAITING = 2_000  # books that wait while no window closes


def model_of(settings: Settings, symbols: Sequence[str]) -> Model | None:
    """The model that the settings name.

    Raises:
        ConfigError: It is none for this run.
    """
    if settings.model_dir is None:
        return None
    window_ms = settings.window_duration * 1_000
    model = Model.open(settings.model_dir, settings.market.value, window_ms, symbols)
    card = model.card
    log.info(
        "model.loaded",
        model=card.name,
        preset=card.preset,
        horizon_s=card.horizon_s,
        symbols=",".join(model.symbols),
        trained_until=max(card.train_dates),
        notes="; ".join(card.notes),
    )
    others = sorted(set(symbols) - set(model.symbols))
    if others:
        log.warning("model.unknown_symbols", model=card.name, symbols=",".join(others))
    return model


class _Book(msgspec.Struct, frozen=True, gc=False):
    top: DepthTop
    chain_broken: bool


class _Question(msgspec.Struct, frozen=True):
    closed: ClosedWindow
    asked_s: float


class _Answer(msgspec.Struct, frozen=True):
    question: _Question
    found: Prediction | str | ModelError


class ModelAnalyst:
    """Asks one model about every live window.

    Args:
        model: Used by one thread at a time.
        flow: Shows it books and windows.
        outputs: Ask it, and take its signals.
        bus: For what is no signal.
        market: Of the frames.
        clock_s: Measures latency.
    """

    def __init__(
        self,
        model: Model,
        flow: MarketFlow,
        outputs: Outputs,
        bus: EventBus,
        *,
        market: Market,
        clock_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._outputs = outputs
        self._bus = bus
        self._market = market
        self._clock_s = clock_s
        self._symbols = frozenset(model.symbols)
        self._names = flow.symbols
        self._waiting: list[_Book | WindowBatch | _Question] = []
        self._work = asyncio.Event()
        self._unread: set[str] = set()  # symbols whose last frame could not be read
        self._has_failed = False
        self._counts: dict[str, int | float] = dict.fromkeys(
            ("asked", "answered", "overtaken", "failed", "unreadable_books", "last_latency_ms"), 0
        )
        flow.model_feed = self
        outputs.ask_also(self.ask)

    def on_book(self, top: DepthTop, *, chain_broken: bool) -> None:
        """Keep a frame for the model; nothing is read of it here."""
        if top.symbol in self._symbols:
            self._waiting.append(_Book(top, chain_broken))
            if len(self._waiting) >= _MOST_WAITING:
                self._work.set()

    def on_batch(self, batch: WindowBatch) -> None:
        """Keep windows that closed, or closed again, for the model."""
        self._waiting.append(batch)

    def ask(self, closed: ClosedWindow) -> None:
        """Ask about a live window."""
        if closed.row.symbol in self._symbols:
            self._counts["asked"] += 1
            self._waiting.append(_Question(closed, self._clock_s()))
            self._work.set()

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            waiting, self._waiting = self._waiting, []
            newest = {
                item.closed.row.symbol: item for item in waiting if isinstance(item, _Question)
            }
            asked = sum(isinstance(item, _Question) for item in waiting)
            self._counts["overtaken"] += asked - len(newest)
            questions = set(map(id, newest.values()))
            try:
                answers = await asyncio.to_thread(self._answers, waiting, questions)
            except Exception:
                # A model is an extra: a defect of it is logged whole, and the market data go on.
                log.exception("model.defect", model=self._model.card.name)
                self._counts["failed"] += len(questions)
                continue
            for answer in answers:
                self._take(answer)

    def settle(self) -> None:
        """Answer every question so far, at once (replay)."""
        waiting, self._waiting = self._waiting, []
        questions = {id(item) for item in waiting if isinstance(item, _Question)}
        for answer in self._answers(waiting, questions):
            self._take(answer)

    def statistics(self) -> dict[str, int | float | str | None]:
        """Questions, and the model's own."""
        return {"name": self._model.card.name, **self._counts, **self._model.statistics()}

    # --- in the worker thread -----------------------------------------------------------------

    def _answers(
        self, waiting: Sequence[_Book | WindowBatch | _Question], questions: set[int]
    ) -> list[_Answer]:
        """Show the model what came, in order; answer the questions named by their ``id``."""
        answers = []
        for item in waiting:
            if isinstance(item, _Book):
                self._read(item)
            elif isinstance(item, WindowBatch):
                self._add(item)
            elif id(item) in questions:
                answers.append(_Answer(item, self._found(item)))
        return answers

    def _read(self, item: _Book) -> None:
        book = read_levels(item.top, self._market)
        symbol = item.top.symbol
        if book is None:
            self._unread.add(symbol)
            self._counts["unreadable_books"] += 1
            return
        chain_broken = item.chain_broken or symbol in self._unread
        self._unread.discard(symbol)
        self._model.add_book(book, chain_broken=chain_broken)

    def _add(self, batch: WindowBatch) -> None:
        for place, index in enumerate(batch.symbol_index):
            symbol = self._names[index]
            if symbol in self._symbols:
                trades = batch.rows[batch.offsets[place] : batch.offsets[place + 1]]
                is_complete = batch.complete[place]
                self._model.add_window(symbol, trades, batch.start_ms, is_complete=is_complete)

    def _found(self, question: _Question) -> Prediction | str | ModelError:
        row = question.closed.row
        try:
            return self._model.predict(row.symbol, row.window_start_ms)
        except ModelError as error:
            return error

    # --- on the loop --------------------------------------------------------------------------

    def _take(self, answer: _Answer) -> None:
        found, row = answer.found, answer.question.closed.row
        if isinstance(found, str):
            return  # counted; the next window asks again
        if isinstance(found, ModelError):
            self._fail(row.symbol, row.window_end_ms, str(found))
            return
        latency_ms = (self._clock_s() - answer.question.asked_s) * 1_000.0
        self._counts["answered"] += 1
        self._counts["last_latency_ms"] = latency_ms
        self._outputs.take_signal(
            model_signal(
                self._model.card,
                found,
                price=answer.question.closed.context.price,
                decided_at_ms=max(self._outputs.exchange_now_ms(), row.window_end_ms),
                latency_ms=latency_ms,
            )
        )

    def _fail(self, symbol: str, window_end_ms: int, reason: str) -> None:
        self._counts["failed"] += 1
        if not self._has_failed:
            log.error("model.failed", model=self._model.card.name, reason=reason)
            self._has_failed = True
        event = AnalysisUnavailable(
            symbol=symbol,
            window_end_ms=window_end_ms,
            reason=f"model:{self._model.card.name}: {reason}",
            attempts=(),
        )
        self._bus.publish(Topic.ANALYSIS_UNAVAILABLE, event)
