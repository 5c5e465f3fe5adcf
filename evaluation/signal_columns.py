"""Stored signals as columns: what scoring needs of them, one day at a time.

Consumes the signal store, produces NumPy columns; texts become codes of a ``Vocabulary``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final, Self

import msgspec
import numpy as np

from domain.events import Action, Signal
from lake.buffered import BufferedStore
from lake.columns import numpy_of
from lake.part_files import date_start_ms
from lake.paths import DAY_MS

_DIRECTIONS: Final = {Action.BUY.value: 1, Action.SELL.value: -1}
_NUMBERS: Final = (
    *("window_end_ms", "decided_at_ms", "horizon_s", "latency_ms", "confidence"),
    *("p_up", "p_flat", "p_down", "cost_usd"),
)
_TEXTS: Final = ("symbol", "source", "model", "template_version", "action")


class SignalColumns(msgspec.Struct, frozen=True, kw_only=True):
    """Signals of one day, sorted by symbol and time; every array has one entry per signal.

    ``direction`` is +1 BUY, −1 SELL, 0 HOLD. ``symbol``, ``source``, ``model`` and ``template``
    are codes. Unknown floats are NaN.
    """

    symbol: np.ndarray
    source: np.ndarray
    model: np.ndarray
    template: np.ndarray
    direction: np.ndarray
    window_end_ms: np.ndarray
    decided_at_ms: np.ndarray
    horizon_s: np.ndarray
    latency_ms: np.ndarray
    confidence: np.ndarray
    p_up: np.ndarray
    p_flat: np.ndarray
    p_down: np.ndarray
    cost_usd: np.ndarray

    def __len__(self) -> int:
        return len(self.symbol)

    def take(self, rows: np.ndarray) -> Self:
        """Some of them, by index."""
        return type(self)(**{name: getattr(self, name)[rows] for name in self.__struct_fields__})


class Vocabulary:
    """Texts ⇄ small integers, in order of appearance; null is the empty text."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._codes: dict[str, int] = {}

    def code(self, text: str) -> int:
        """The number of a text; a new one gets the next number."""
        if text not in self._codes:
            self._codes[text] = len(self.texts)
            self.texts.append(text)
        return self._codes[text]

    def codes(self, column: Any) -> np.ndarray:
        """int32[n] of an Arrow column of texts."""
        encoded = column.fill_null("").combine_chunks().dictionary_encode()
        lookup = [self.code(text) for text in encoded.dictionary.to_pylist()]
        codes: np.ndarray = np.array(lookup, dtype=np.int32)[numpy_of(encoded.indices)]
        return codes


class Vocabularies(msgspec.Struct, frozen=True):
    """The texts of all signals read."""

    symbol: Vocabulary = msgspec.field(default_factory=Vocabulary)
    source: Vocabulary = msgspec.field(default_factory=Vocabulary)
    model: Vocabulary = msgspec.field(default_factory=Vocabulary)
    template: Vocabulary = msgspec.field(default_factory=Vocabulary)


def signal_days(
    store: BufferedStore[Signal],
    vocabularies: Vocabularies,
    *,
    symbols: Collection[str] | None = None,
    start_ms: int | None = None,
    end_ms: int | None = None,
) -> Iterator[tuple[int, SignalColumns]]:
    """Days with signals, oldest first, as (midnight UTC in ms, columns).

    Args:
        store: Where signals are.
        vocabularies: Get the texts.
        symbols: Which ones; ``None`` for all.
        start_ms: Only signals of windows that end at or after it.
        end_ms: ... and before it.
    """
    for date in store.partitioned.dates():
        day_ms = date_start_ms(date)
        from_ms = day_ms if start_ms is None else max(start_ms, day_ms)
        until_ms = day_ms + DAY_MS if end_ms is None else min(end_ms, day_ms + DAY_MS)
        if from_ms >= until_ms:
            continue
        table = store.read(symbols, from_ms, until_ms, [*_TEXTS, *_NUMBERS])
        if table.num_rows:
            yield day_ms, _columns(table, vocabularies)


def _columns(table: Any, vocabularies: Vocabularies) -> SignalColumns:
    actions = Vocabulary()
    action = actions.codes(table.column("action"))
    lookup = [_DIRECTIONS.get(text, 0) for text in actions.texts]
    numbers = {name: numpy_of(table.column(name)) for name in _NUMBERS}
    for name in ("confidence", "p_up", "p_flat", "p_down"):
        numbers[name] = numbers[name].astype(np.float32)
    return SignalColumns(
        symbol=vocabularies.symbol.codes(table.column("symbol")),
        source=vocabularies.source.codes(table.column("source")),
        model=vocabularies.model.codes(table.column("model")),
        template=vocabularies.template.codes(table.column("template_version")),
        direction=np.array(lookup, dtype=np.int8)[action],
        **numbers,
    )
