"""How the dashboard looks: pure renderers, as text at several sizes and as stable SVG."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from rich.console import Console
from rich.text import Text

from dashboard.chart import Axis, area
from dashboard.layout import frame
from dashboard.scene import Scene, View, pressed
from dashboard.screen import Painter
from dashboard.state import DashboardState
from docs import dashboard_pictures
from docs.dashboard_pictures import svg_of
from domain.events import AnalysisUnavailable, ConnectionState
from domain.flow import Origin
from tests.dashboard_samples import (
    T0,
    WINDOW_MS,
    after,
    alert,
    busy_market,
    features,
    health,
    scene,
    signal,
    socket,
    window,
)

SIZES = [(80, 24), (100, 30), (120, 40), (200, 60), (200, 20), (40, 10)]


def text_of(shown: Scene, columns: int = 120, rows: int = 40) -> str:
    return "\n".join(line.plain for line in frame(shown, columns, rows))


@pytest.fixture(scope="module")
def market() -> DashboardState:
    return busy_market()


@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_every_frame_has_exactly_the_terminals_size(
    market: DashboardState, columns: int, rows: int
) -> None:
    words = "a reason much longer than any terminal is wide, 取引所 " * 8
    crowd = [socket(ConnectionState.SUSPECT, n, "trades", reason=words) for n in range(4)]
    state = after(*crowd, alert(words), signal("groq", rationale=words), state=market)
    for view in (View(), View(help=True), View(asks_to_stop=True), View(symbol="ETHUSDT", zoom=2)):
        lines = frame(scene(state, problems=(words,) * 5, view=view), columns, rows)
        assert len(lines) == rows
        assert {line.cell_len for line in lines[:-1]} == {columns}


@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_nothing_known_can_be_drawn(columns: int, rows: int) -> None:
    assert len(frame(scene(DashboardState()), columns, rows)) == rows
    assert "connecting" in text_of(scene(DashboardState()), columns, rows)


def test_a_small_terminal_shows_what_matters(market: DashboardState) -> None:
    text = text_of(scene(market), 80, 24)
    for expected in (
        "BTCUSDT  63,921.00", "demo um", "2 ETHUSDT", "✓ trades #0 healthy", "? depth #1 suspect",
        "msg/s", "gaps 1 open 1 fixed 0 lost", "drops 4", "closed +260 ms",
        "CVD", "bids  75%", "spread 0.12 bps", "1 min", "▼ SELL 66%", "void at 64,500.00",
        "whale sold 4.2M", "store 240 rows + 2 waiting", "v9.9.9",
    ):  # fmt: skip
        assert expected in text, expected


@pytest.mark.parametrize(("columns", "rows"), [(120, 40), (200, 60)])
def test_a_large_terminal_shows_everything(market: DashboardState, columns: int, rows: int) -> None:
    text = text_of(scene(market, problems=("00:00:01 warning disk.low free=1",)), columns, rows)
    for expected in (
        "▲ +0.12% 1 min", "▼ -0.34% 15 min", "gaps 1 open 1 repaired 0 lost", "lag 12 ms",
        "clock -3 ms", "loop 3 ms", "Price and CVD", "5 s a column", "00:00:00 UTC",
        "▲ bids  75% 750.0k", "250.0k 25% asks ▼", "stands 42 s", "ask wall  none",
        "L1 ▲+0.33", "L5 ▼-0.25", "microprice", "15 min ~", "(24)", "▲ buy", "▼ sell",
        "▼ SELL 66% for 60 s", "void at 64,500.00", "sellers absorb every bid",
        "dashscope qwen-plus (fallback of groq)", "1,240 ms", "1,520 tokens", "$0.00081",
        "✗ groq open", "✓ dashscope closed", "rules · HOLD 75%", "score +0.03",
        "whale sold 4.2M", "1 trades missing, repaired", "disk.low", "disk 53.0 GiB free",
        "240 windows",
    ):  # fmt: skip
        assert expected in text, expected


def test_colour_never_stands_alone(market: DashboardState) -> None:
    """What is green or red carries a sign, an arrow, a mark, or is a bar of the chart's shape."""
    signs = set("▲▼+-✓✗·?!█▁▂▃▄▅▆▇░")
    for line in frame(scene(market), 200, 60):
        for span in line.spans:
            words = line.plain[span.start : span.end].strip()
            if words and set(str(span.style).split()) & {"green", "red"}:
                assert signs & set(words) or words.startswith(("bid ", "ask ")), words


def test_a_silent_symbol_is_grey_and_says_how_old_it_is(market: DashboardState) -> None:
    fresh, stale = scene(market, later_s=6), scene(market, later_s=95)
    assert "STALE" not in text_of(fresh)
    text = text_of(stale)
    assert "STALE 1 min 34 s old" in text
    assert text.count("stale: 1 min 34 s") == 4
    assert "!▲" in text
    for line in frame(stale, 120, 40)[4:36]:
        left = line.plain[:60]
        coloured = [
            span
            for span in line.spans
            if span.start < len(left) and set(str(span.style).split()) & {"green", "red", "cyan"}
        ]
        assert all("cyan" in str(span.style) for span in coloured), left


def test_ages_go_on_while_nothing_arrives(market: DashboardState) -> None:
    texts = {text_of(scene(market, later_s=seconds)) for seconds in (1, 2, 3, 40, 400)}
    assert len(texts) == 5


def test_an_old_answer_of_a_model_is_marked_old(market: DashboardState) -> None:
    assert "STALE" in text_of(scene(market, later_s=90)).split("AI ─")[1].split("\n")[0]


def test_a_trained_model_has_a_line_of_its_own_beside_the_ais_answer(
    market: DashboardState,
) -> None:
    answer = signal("model:first", rationale="BUY: up 75%", window_end_ms=T0 + 5_000)
    state = after(answer, state=market)
    for columns, rows in ((120, 40), (200, 60)):
        text = text_of(scene(state), columns, rows)
        assert "model:first ▲ BUY 75%" in text
        assert "sellers absorb every bid" in text
        assert "rules · HOLD 75%" in text


def test_missing_analysis_says_why(market: DashboardState) -> None:
    missing = AnalysisUnavailable(
        symbol="BTCUSDT", window_end_ms=T0 + 1, reason="all_failed", attempts=("groq: timeout",)
    )
    text = text_of(scene(after(missing, state=market)))
    assert "✗ unavailable: all failed" in text
    assert "groq: timeout" in text
    assert "SELL 66%" not in text
    no_key = msgspec.structs.replace(missing, reason="no_key", attempts=())
    assert "no provider has a key" in text_of(scene(after(no_key, state=market)))
    nobody = after(window(), features(), health())
    assert "no model is asked" in text_of(scene(nobody))


def test_a_health_reading_that_no_longer_comes_is_dated(market: DashboardState) -> None:
    assert "1 min 30 s old" in text_of(scene(market, later_s=90)).split("\n")[3]


def test_what_keeps_an_attached_dashboard_waiting_is_said_first(market: DashboardState) -> None:
    text = text_of(scene(market, trouble="no bot answers there"))
    assert text.startswith("✗ no bot answers")
    assert "? trades #0 healthy" in text  # the last that was heard of it


def test_keys_choose_symbol_zoom_help_and_stop(market: DashboardState) -> None:
    names = list(market.symbols)
    view = pressed(View(), "right", names)
    assert text_of(scene(market, view=view)).startswith("ETHUSDT")
    assert pressed(view, "right", names).symbol == "BTCUSDT"
    assert pressed(View(), "2", names).symbol == "ETHUSDT"
    assert pressed(View(), "3", names).symbol is None
    assert "20 s a column" in text_of(scene(market, view=pressed(View(), "z", names)))
    assert "another symbol" in text_of(scene(market, view=pressed(View(), "h", names)))
    asking = pressed(View(), "q", names)
    assert "y stops" in text_of(scene(market, view=asking))
    assert not pressed(asking, "x", names).stopped
    stopped = pressed(asking, "y", names)
    assert "stopping" in text_of(scene(market, view=stopped))
    assert pressed(stopped, "q", names) == stopped


def test_keys_before_the_first_symbol_do_nothing() -> None:
    for key in ("right", "left", "1", "z", "x"):
        assert pressed(View(), key, []).symbol is None


def test_many_symbols_keep_the_chosen_one_in_sight() -> None:
    names = tuple(f"ALT{n:03d}USDT" for n in range(60))
    state = after(*[event for name in names for event in (window(T0, name), features(T0, name))])
    text = text_of(scene(state, view=View(symbol="ALT047USDT")), 200, 60)
    assert " 48 ALT047USDT" in text.split("\n")[1]
    assert "▸ ALT047USDT" in text


def test_a_hole_in_time_is_a_hole_in_the_chart() -> None:
    state = after(*[features(T0 - n * WINDOW_MS) for n in (0, 1, 2, 5, 6)])
    axis = Axis(T0, WINDOW_MS, 8)
    values = axis.sample(state.symbols["BTCUSDT"].bars, lambda bar: bar.cvd)
    assert [value is None for value in values] == [True, False, False, True, True, *[False] * 3]
    (row,) = area(values, 1)
    assert row[3:5] == "  "


def test_areas_reach_from_one_eighth_to_the_top() -> None:
    assert area([0.0, 1.0, None, 0.5], 2) == [" █ ▁", "▁█ █"]
    assert area([5.0, 5.0], 1) == ["▄▄"]
    assert area([None], 2) == [" ", " "]


def test_an_incomplete_window_marks_its_look_backs() -> None:
    whole = [features(T0 - n * WINDOW_MS) for n in reversed(range(12))]
    assert "1 min  " in text_of(scene(after(*whole)))
    holed = [*whole, features(T0, origin=Origin.REVISED, complete=False, missing_trades=3)]
    assert "1 min ~" in text_of(scene(after(*holed)))


# --- what is sent to the terminal ---------------------------------------------------------


def painter() -> Painter:
    return Painter(Console(force_terminal=True, color_system="standard", legacy_windows=False))


def test_only_changed_lines_are_sent(market: DashboardState) -> None:
    paint = painter().paint
    first = paint(scene(market, later_s=1), 80, 24)
    assert first.startswith("\x1b[2J")
    assert paint(scene(market, later_s=1.2), 80, 24) == ""
    second = paint(scene(market, later_s=2), 80, 24)
    assert 0 < len(second) < len(first) / 3
    assert "\x1b[1;1H" in second  # the clock


def test_a_new_size_or_a_wish_redraws_everything(market: DashboardState) -> None:
    paint = painter().paint
    whole = len(paint(scene(market), 80, 24))
    assert paint(scene(market), 81, 24).startswith("\x1b[2J")
    assert len(paint(scene(market, view=View(redraws=1)), 81, 24)) > whole * 0.9


def test_text_of_others_cannot_send_escape_sequences() -> None:
    state = after(features(), window(), alert("\x1b]0;owned\x07\x1b[2Jboo"))
    sent = painter().paint(scene(state, problems=("\x1b[31mred\r\n",)), 120, 40)
    assert "\x1b]0" not in sent
    assert "\x07" not in sent
    assert sent.count("\x1b[2J") == 1


# --- pictures -----------------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (120, 40)])
def test_pictures_are_stable(
    market: DashboardState, columns: int, rows: int, repository: Path
) -> None:
    stored = repository / "tests" / "unit" / f"dashboard_{columns}x{rows}.svg"
    assert svg_of(scene(market), columns, rows) == stored.read_text(encoding="utf-8")


def test_the_readmes_pictures_are_what_the_recording_gives(
    repository: Path, recordings_dir: Path, tmp_path: Path
) -> None:
    recording = recordings_dir / "recordings" / "usdm_20240718.ndjson.gz"
    assert dashboard_pictures.main([str(recording), str(tmp_path)]) == 0
    for drawn in tmp_path.glob("*.svg"):
        stored = repository / "docs" / "screenshots" / drawn.name
        assert drawn.read_text(encoding="utf-8") == stored.read_text(encoding="utf-8")
    assert len(list(tmp_path.glob("*.svg"))) == len(dashboard_pictures.SIZES)


def test_lines_of_a_frame_are_rich_text(market: DashboardState) -> None:
    assert all(isinstance(line, Text) for line in frame(scene(market), 80, 24))
