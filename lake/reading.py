"""What the lake holds, for whoever wants to read it: rows as one sequence, and what is missing.

Consumes a symbol and a range of time, produces recorded, repaired and historical rows as one sorted
sequence without overlap, each labelled with its ``source``; and the entries of the gap ledger.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, cast, overload

import pyarrow as pa

from domain.events import GapState
from domain.market import Market
from domain.times import When, time_ms
from lake.columns import mask_array, numpy_of
from lake.gap_ledger import Gap, read_gaps
from lake.hole_times import hole_times, touching_holes
from lake.paths import LakePaths
from lake.sequence import TIME_COLUMNS, SequenceKind, Wanted, stored_pieces, woven

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    import polars as pl

RECORDER: Final = "recorder"


@overload
def read(
    kind: SequenceKind,
    symbol: str,
    start: When = None,
    end: When = None,
    *,
    data_dir: Path | str = ...,
    market: Market | str = ...,
    raw_dir: Path | str | None = ...,
    columns: Sequence[str] | None = ...,
    exclude_holes_longer_than_s: float | None = ...,
    as_: Literal["arrow"] = ...,
) -> pa.Table: ...
@overload
def read(
    kind: SequenceKind,
    symbol: str,
    start: When = None,
    end: When = None,
    *,
    data_dir: Path | str = ...,
    market: Market | str = ...,
    raw_dir: Path | str | None = ...,
    columns: Sequence[str] | None = ...,
    exclude_holes_longer_than_s: float | None = ...,
    as_: Literal["polars"],
) -> pl.DataFrame: ...
@overload
def read(
    kind: SequenceKind,
    symbol: str,
    start: When = None,
    end: When = None,
    *,
    data_dir: Path | str = ...,
    market: Market | str = ...,
    raw_dir: Path | str | None = ...,
    columns: Sequence[str] | None = ...,
    exclude_holes_longer_than_s: float | None = ...,
    as_: Literal["pandas"],
) -> pd.DataFrame: ...
def read(
    kind: SequenceKind,
    symbol: str,
    start: When = None,
    end: When = None,
    *,
    data_dir: Path | str = "data",
    market: Market | str = Market.UM,
    raw_dir: Path | str | None = None,
    columns: Sequence[str] | None = None,
    exclude_holes_longer_than_s: float | None = None,
    as_: Literal["arrow", "polars", "pandas"] = "arrow",
) -> pa.Table | pl.DataFrame | pd.DataFrame:
    """Read ``start <= time < end`` of one symbol, whatever files the rows are in.

    Trades are unique by ``agg_trade_id``: a recorded row counts before one repaired from REST or the
    archive, and that before one of the archive's months. Depth is only recorded, klines are only in
    the archive's months. The time is ``transact_time_ms``, of klines ``open_time_ms``.

    Args:
        kind: ``"trades"``, ``"depth"`` or ``"klines"``.
        symbol: In any case.
        start: Inclusive; see ``When``; ``None``: from the beginning.
        end: Exclusive; ``None``: to the end.
        data_dir: The data folder.
        market: ``"um"`` or ``"spot"``.
        raw_dir: Replaces the ``raw`` subtree, as ``RAW_DATA_DIR`` does.
        columns: Names, in the order wanted; ``None``: all. Only these are decoded.
        exclude_holes_longer_than_s: Leave out rows within a hole of the symbol longer than this, of
            whichever kind (900 for training); see ``lake.hole_times`` for windows.
        as_: ``"arrow"``, ``"polars"`` or ``"pandas"``.

    Returns:
        The columns of docs/reference.md with ``source``: ``stream``, ``rest``, ``archive`` (both
        repairs of the recording) or ``historical``. Sorted by id (trades) or time.

    Raises:
        ValueError: No such kind, column, market, time or ``as_``.
        StorageError: The system refused to read a file. One that is damaged is set aside instead.
    """
    if as_ not in {"arrow", "polars", "pandas"}:
        raise ValueError(f"as_ must be arrow, polars or pandas, not {as_}")
    paths = _paths(data_dir, market, raw_dir)
    name, start_ms, end_ms = symbol.strip().upper(), time_ms(start), time_ms(end)
    holes = None
    wanted = Wanted.of(kind, name, start_ms, end_ms, columns)
    if exclude_holes_longer_than_s is not None:
        found = gaps(name, data_dir=data_dir, market=market)
        holes = hole_times(found, longer_than_s=exclude_holes_longer_than_s)
        wanted = Wanted.of(kind, name, start_ms, end_ms, _with_time(kind, columns))
    table = woven(wanted, stored_pieces(paths, wanted))
    if holes is not None:
        times = numpy_of(table.column(TIME_COLUMNS[kind]))
        keep = ~touching_holes(times, times + 1, holes)
        table = table if keep.all() else table.filter(mask_array(keep))
    selected = table if columns is None else table.select(list(columns))
    if as_ == "arrow":
        return selected
    if as_ == "pandas":
        return selected.to_pandas()
    import polars as pl  # noqa: PLC0415 - only who asks for it has it installed

    return cast("pl.DataFrame", pl.from_arrow(selected))


def gaps(
    symbol: str | None = None,
    start: When = None,
    end: When = None,
    *,
    kind: Literal["trades", "depth"] | None = None,
    data_dir: Path | str = "data",
    market: Market | str = Market.UM,
    role: str = RECORDER,
    include_repaired: bool = False,
) -> list[Gap]:
    """What is known to be missing, in order of time.

    Args:
        symbol: In any case; ``None``: all.
        start: Only gaps that end after this; see ``When``.
        end: Only gaps that begin before this.
        kind: ``"trades"`` or ``"depth"``; ``None``: both.
        data_dir: The data folder.
        market: ``"um"`` or ``"spot"``.
        role: Whose ledger: ``"recorder"`` speaks of the stored frames, ``"bot"`` of windows.
        include_repaired: Also those that have been filled.

    Raises:
        ValueError: No such market or time.
        StorageError: The ledger cannot be read.
    """
    name = None if symbol is None else symbol.strip().upper()
    start_ms, end_ms = time_ms(start), time_ms(end)
    found = [
        gap
        for gap in read_gaps(_paths(data_dir, market, None).gaps, role)
        if name in {None, gap.symbol}
        and kind in {None, gap.kind}
        and (include_repaired or gap.state is not GapState.REPAIRED)
        and _overlaps(gap, start_ms, end_ms)
    ]
    return sorted(
        found, key=lambda gap: (gap.from_ms or 0, gap.symbol, gap.kind, gap.first_id or 0)
    )


def _overlaps(gap: Gap, start_ms: int | None, end_ms: int | None) -> bool:
    """Unknown ends reach as far as they can."""
    return (end_ms is None or gap.from_ms is None or gap.from_ms < end_ms) and (
        start_ms is None or gap.until_ms is None or gap.until_ms > start_ms
    )


def _paths(data_dir: Path | str, market: Market | str, raw_dir: Path | str | None) -> LakePaths:
    raw = None if raw_dir is None else Path(raw_dir)
    return LakePaths.of(Path(data_dir), Market(market), raw=raw)


def _with_time(kind: SequenceKind, columns: Sequence[str] | None) -> list[str] | None:
    return None if columns is None else [*columns, TIME_COLUMNS[kind]]
