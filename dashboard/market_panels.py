"""Panels about the chosen symbol: charts, book, horizons, whales. Pure: scene and size → lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from itertools import islice

from rich.text import Text

from dashboard.chart import Axis, area
from dashboard.scene import ZOOMS, Scene
from dashboard.state import Bar, SymbolState, clock
from dashboard.wording import (
    DOWN,
    QUIET,
    UP,
    age_text,
    arrow,
    columns,
    compact,
    count_text,
    line,
    percent,
    price_text,
    ruled,
    signed,
    signed_ratio,
    span_text,
    style_of,
)
from domain.features import FeatureRow
from domain.market import Side

HORIZONS_S = (0, 60, 300, 900, 3_600)  # 0: the last window
_SCALE_CELLS = 11  # beside the charts
_FEWEST_WIDE = 74  # cells from which the tables have all their columns

type Panel = Callable[[Scene, int, int], list[Text]]


def of_symbol(draw: Callable[[Scene, SymbolState, int, int], list[Text]], title: str) -> Panel:
    """A panel that needs a symbol; greyed, with its age, when that symbol's windows stop coming."""

    def panel(scene: Scene, width: int, height: int) -> list[Text]:
        symbol = scene.symbol
        if symbol is None or not symbol.bars:
            waiting = "waiting for the first window …"
            return [ruled(title, width), line((waiting, QUIET))][:height]
        lines = draw(scene, symbol, width, height)[:height]
        if not scene.is_stale(symbol):
            return lines
        age = age_text(symbol.seen_ns, scene.now_ns) if symbol.seen_ns else "no live window yet"
        head = ruled((title, QUIET), width, f"stale: {age}", "yellow")
        return [head, *(line((text.plain, QUIET)) for text in lines[1:])]

    return panel


def _charts(scene: Scene, symbol: SymbolState, width: int, height: int) -> list[Text]:
    """Price above CVD, one column a window (or several, zoomed), one axis."""
    last = symbol.bars[-1]
    cells = max(8, width - _SCALE_CELLS - 1)
    zoom = ZOOMS[scene.view.zoom]
    axis = Axis(last.end_ms, last.length_ms * zoom, cells)
    shown = symbol.bars[-cells * zoom :]
    rows = max(2, height - 2)
    price_rows = (rows + 1) // 2
    prices, flows = axis.sample(shown, lambda b: b.close), axis.sample(shown, lambda b: b.cvd)
    moved, flowed = _change(prices), _change(flows)
    words = f"{span_text(axis.step_ms / 1_000)} a column"
    price = symbol.price
    lines = [ruled("Price and CVD", width, words)]
    lines += _scaled(
        area(prices, price_rows),
        _bounds(prices, lambda v: price_text(v, price)),
        f"{arrow(moved)} price",
        "cyan",
    )
    cvd_bounds = _bounds(flows, lambda v: compact(v, signed=True))
    lines += _scaled(
        area(flows, rows - price_rows), cvd_bounds, f"{arrow(flowed)} CVD", style_of(flowed)
    )
    return [*lines, _time_labels(axis)]


def _change(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return known[-1] - known[0] if known else None


def _bounds(values: Sequence[float | None], words: Callable[[float], str]) -> tuple[str, str]:
    known = [value for value in values if value is not None]
    return (words(max(known)), words(min(known))) if known else ("", "")


def _scaled(rows: list[str], bounds: tuple[str, str], name: str, style: str) -> list[Text]:
    """The chart's rows with its greatest and smallest value and, where there is room, its name."""
    labels = [("", "")] * len(rows)
    labels[0] = (bounds[0], QUIET)
    if len(rows) > 1:
        labels[-1] = (bounds[1], QUIET)
    if len(rows) > 2:
        labels[len(rows) // 2] = (name, style)
    elif len(rows) == 1:
        labels[0] = (name, style)
    return [line((row, style), " ", label) for row, label in zip(rows, labels, strict=True)]


def _time_labels(axis: Axis) -> Text:
    first, last = clock(axis.start_ms), clock(axis.end_ms)
    middle = clock((axis.start_ms + axis.end_ms) // 2)
    blanks = axis.columns - len(first) - len(last)
    if blanks < len(middle) + 2:
        return line((f"{first}{' ' * max(1, blanks)}{last}", QUIET))
    left = (blanks - len(middle)) // 2
    right = blanks - len(middle) - left
    return line((f"{first}{' ' * left}{middle}{' ' * right}{last} UTC", QUIET))


def _book(_: Scene, symbol: SymbolState, width: int, height: int) -> list[Text]:
    row = symbol.row
    if row is None or row.spread_bps is None:
        return [ruled("Book", width), line(("no two-sided book in the last window", QUIET))]
    lines = [ruled("Book", width, f"spread {row.spread_bps:.2f} bps"), _pressure(row, width)]
    walls = [
        _wall("bid", UP, row.bid_wall_price, row.bid_wall_size, row.bid_wall_distance_bps,
              row.bid_wall_age_s, symbol.price),
        _wall("ask", DOWN, row.ask_wall_price, row.ask_wall_size, row.ask_wall_distance_bps,
              row.ask_wall_age_s, symbol.price),
    ]  # fmt: skip
    levels = line("imbalance ", *_imbalances(row))
    quotes = columns(
        [
            ((f"bid {price_text(row.bid_price, symbol.price)}", UP), 18),
            (f"× {compact(row.bid_size or 0.0)}", 10),
            ((f"ask {price_text(row.ask_price, symbol.price)}", DOWN), 18),
            (f"× {compact(row.ask_size or 0.0)}", 10),
        ]
    )
    micro = line(
        f"microprice {price_text(row.microprice, symbol.price)} ",
        _lean(row),
        "   OFI ",
        signed(row.ofi),
        (f"   z {row.ofi_z:+.1f}" if row.ofi_z is not None else ""),
    )
    by_worth = [*walls, levels, quotes, micro]
    return lines + by_worth[: max(0, height - len(lines))]


def _pressure(row: FeatureRow, width: int) -> Text:
    """All resting notional of the snapshot, bids against asks."""
    bids, asks = row.depth_bid_quote or 0.0, row.depth_ask_quote or 0.0
    share = bids / (bids + asks) if bids + asks else 0.5
    left, right = (
        f"▲ bids {share:4.0%} {compact(bids)} ",
        f" {compact(asks)} {1 - share:.0%} asks ▼",
    )
    room = max(4, width - len(left) - len(right))
    filled = round(share * room)
    return line((left, UP), ("█" * filled, UP), ("░" * (room - filled), DOWN), (right, DOWN))


def _imbalances(row: FeatureRow) -> list[str | tuple[str, str]]:
    found: list[str | tuple[str, str]] = []
    for levels, value in (
        (1, row.book_imbalance_1),
        (5, row.book_imbalance),
        (10, row.book_imbalance_10),
        (20, row.book_imbalance_20),
    ):
        found += [(f"L{levels} ", QUIET), signed_ratio(value), "  "]
    return found


def _lean(row: FeatureRow) -> tuple[str, str]:
    """On which side of the mid the microprice lies."""
    if row.microprice is None or not row.mid_price:
        return "", ""
    lean_bps = (row.microprice / row.mid_price - 1.0) * 1e4
    return f"{arrow(lean_bps)} {lean_bps:+.3f} bps", style_of(lean_bps)


def _wall(
    side: str,
    style: str,
    price: float | None,
    size: float | None,
    distance_bps: float | None,
    age_s: float | None,
    like: Decimal | None,
) -> Text:
    if price is None or size is None:
        return line((f"{side} wall  none", QUIET))
    sign = "▲" if side == "bid" else "▼"
    age = "" if age_s is None else f"stands {span_text(age_s)}" if age_s >= 1 else "new"
    return columns(
        [
            ((f"{sign} {side} wall", style), 10),
            (price_text(price, like), -11),
            (f"× {compact(size)}", 8),
            ("" if distance_bps is None else f"{distance_bps:.1f} bps", -8),
            ((age, QUIET), 12),
            (compact(price * size), -6),
        ]
    )


def _horizons(_: Scene, symbol: SymbolState, width: int, height: int) -> list[Text]:
    """Sums over several look-backs; a look-back that is not full yet says what it covers."""
    is_wide = width >= _FEWEST_WIDE
    names = [("", 9), ("price", -9), ("delta", -8), ("net quote", -9), ("trades", -7)]
    wide_names = [("buy %", -6), ("volume", -8), ("whales Δ", -14)]
    shown = [*names, *wide_names] if is_wide else [*names, wide_names[-1]]
    head = columns([((text, QUIET), size) for text, size in shown])
    lines = [ruled("Windows", width, _quality(symbol)), head]
    shown_s = HORIZONS_S[: max(0, height - 2)]
    return [*lines, *(_horizon(symbol.bars, seconds, is_wide=is_wide) for seconds in shown_s)]


def _quality(symbol: SymbolState) -> str:
    row = symbol.row
    if row is None:
        return ""
    regimes = " · ".join(
        text
        for text in (
            row.session or "",
            f"volatility {row.volatility_regime}" if row.volatility_regime else "",
            f"trend {row.trend_regime}" if row.trend_regime else "",
        )
        if text
    )
    if row.complete:
        return regimes
    missing = "?" if row.missing_trades is None else f"{row.missing_trades:,}"
    return f"! incomplete, {missing} trades missing"


def _horizon(bars: tuple[Bar, ...], seconds: int, *, is_wide: bool) -> Text:
    last = bars[-1]
    since_ms = last.end_ms - max(seconds * 1_000, last.length_ms)
    count = max(1, (last.end_ms - since_ms) // last.length_ms)
    covered = [bar for bar in bars[-count:] if bar.end_ms > since_ms]
    holes = count - len(covered) + sum(not bar.complete for bar in covered)
    name = f"{last.length_ms / 1_000:g} s" if not seconds else span_text(seconds)
    before = bars[-len(covered) - 1].close if len(bars) > len(covered) else covered[0].close
    moved = last.close / before - 1.0 if last.close and before else None
    delta, volume = sum(b.delta for b in covered), sum(b.volume for b in covered)
    whales = sum(b.whale_buy - b.whale_sell for b in covered)
    whale_count = sum(b.whale_count for b in covered)
    cells: list[tuple[str | tuple[str, str], int]] = [
        ((f"{name}{' ~' if holes else ''}", QUIET if holes else ""), 9),
        (percent(moved), -9),
        (signed(delta), -8),
        (signed(sum(b.net_flow_quote for b in covered)), -9),
        (count_text(sum(b.trades for b in covered)), -7),
    ]
    if is_wide:
        share = (volume + delta) / 2.0 / volume if volume else None
        cells += [
            ("–" if share is None else f"{share:.0%}", -6),
            (compact(sum(b.quote_volume for b in covered)), -8),
        ]
    text, style = signed(whales)
    cells.append(((f"{text} ({whale_count})" if whale_count else "–", style), -14))
    return columns(cells)


def _whales(_: Scene, symbol: SymbolState, width: int, height: int) -> list[Text]:
    """Trades of whale size, one line each, newest first."""
    lines = [ruled("Whale tape", width)]
    for whale in islice(reversed(symbol.whales), height - 1):
        is_buy = whale.aggressor_side is Side.BUY
        signed_size = float(whale.quantity) * (1 if is_buy else -1)
        lines.append(
            columns(
                [
                    ((clock(whale.transact_time_ms), QUIET), 8),
                    (
                        (
                            f"{arrow(signed_size)} {'buy' if is_buy else 'sell'}",
                            style_of(signed_size),
                        ),
                        6,
                    ),
                    (signed(signed_size), -8),
                    (f"@ {price_text(whale.price, symbol.price)}", 12),
                    (compact(abs(signed_size) * float(whale.price)), -7),
                ]
            )
        )
    if len(lines) == 1:
        lines.append(line(("none in this history", QUIET)))
    return lines


charts: Panel = of_symbol(_charts, "Price and CVD")
book: Panel = of_symbol(_book, "Book")
horizons: Panel = of_symbol(_horizons, "Windows")
whales: Panel = of_symbol(_whales, "Whale tape")


def watchlist(scene: Scene, width: int, height: int) -> list[Text]:
    """Every symbol's newest window; as many as fit, the chosen one always among them."""
    symbols = list(scene.state.symbols.values())
    chosen = scene.symbol
    room = max(1, height - 2)
    place = symbols.index(chosen) if chosen is not None else 0
    first = max(0, min(place - room // 2, len(symbols) - room))
    names = [("", 1), ("symbol", 12), ("price", -11), ("1 min", -9), ("delta", -8), ("CVD", -8)]
    names += [("book", -7), ("whales", -7)] if width >= _FEWEST_WIDE else []
    head = columns([((text, QUIET), size) for text, size in names])
    shown = symbols[first : first + room]
    rows = [
        _watched(symbol, scene, [size for _, size in names], is_chosen=symbol is chosen)
        for symbol in shown
    ]
    return [ruled("Symbols", width, f"{len(shown)} of {len(symbols)}"), head, *rows][:height]


def _watched(symbol: SymbolState, scene: Scene, sizes: Sequence[int], *, is_chosen: bool) -> Text:
    row, bar = symbol.row, symbol.bars[-1] if symbol.bars else None
    is_stale = scene.is_stale(symbol)
    moved = row.return_1m_bps if row else None
    imbalance = row.book_imbalance if row else None
    whales = bar.whale_buy - bar.whale_sell if bar and bar.whale_count else None
    cells: list[str | tuple[str, str]] = [
        ("▸" if is_chosen else " ", "bold"),
        (symbol.symbol, "bold" if is_chosen else ""),
        price_text(symbol.price, symbol.price),
        percent(None if moved is None else moved / 1e4),
        signed(bar.delta if bar else None),
        signed(bar.cvd if bar else None),
        signed_ratio(imbalance),
        signed(whales),
    ]
    if is_stale:
        words = [cell if isinstance(cell, str) else cell[0] for cell in cells]
        age = age_text(symbol.seen_ns, scene.now_ns) if symbol.seen_ns else "–"
        cells = [(text, QUIET) for text in [*words[:3], f"{age} old", *words[4:]]]
    return columns(list(zip(cells, sizes, strict=False)))
