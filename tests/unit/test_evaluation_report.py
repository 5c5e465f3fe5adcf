"""The report on markets whose answer is known: an edge is found, a random walk shows none."""

from __future__ import annotations

import html.parser
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from domain.events import Action
from evaluation.html_report import render_html
from evaluation.report import Report, ReportOptions, _judged_together, build_report
from evaluation.scores import wilson
from evaluation.slices import Money, Verdict
from evaluation.text_report import render_text
from feature_store import FeatureStore
from lake.paths import DAY_MS
from lake.signal_store import signal_store
from tests.signal_market import (
    T0,
    WINDOW_MS,
    columns,
    judged,
    knowing_signals,
    prices,
    random_walk,
    signal_at,
    write_market,
    write_signals,
)


def report_on(root: Path, **options: Any) -> Any:
    """A ``Report``; ``Any`` since a test knows which parts are there."""
    chosen = ReportOptions(**({"fee_bps": 5.0} | options))
    return build_report(FeatureStore(root), signal_store(root / "signals"), chosen)


# --- edges ---


@pytest.mark.parametrize("seed", range(5))
def test_an_edge_is_found(seed: int) -> None:
    mid = random_walk(seed)
    found = judged(prices(mid), knowing_signals(seed, mid, skill=0.6))
    assert found.verdict is Verdict.BETTER
    assert found.hit_rate is not None
    assert found.hit_rate.low > found.hit_rate.base_rate
    assert found.gross_bps is not None
    assert found.gross_bps.low > 0
    assert found.rank_correlation is not None
    assert found.rank_correlation.low > 0.1
    assert found.rank_correlation_t > 3
    assert found.money is Money.LOSES  # a real edge, smaller than the costs


def test_an_edge_larger_than_the_costs_gains() -> None:
    mid = 100.0 * np.exp(20.0 * np.log(random_walk(1) / 100.0))
    found = judged(prices(mid), knowing_signals(1, mid, skill=1.0))
    assert found.money is Money.GAINS
    assert found.net_bps.low > 0
    assert found.break_even_hit_rate < found.hit_rate.low
    assert found.break_even_move_bps < found.move_bps


def test_a_contrary_source_is_worse_than_the_base_rate() -> None:
    mid = random_walk(2)
    found = judged(prices(mid), knowing_signals(2, mid, skill=-0.6))
    assert found.verdict is Verdict.WORSE
    assert found.rank_correlation.high < 0


def test_on_random_walks_intervals_cover_zero() -> None:
    """95 % intervals, 40 seeds: 2 misses expected, 7 or more have a chance below 1 in 200."""
    missed = {"gross": 0, "rank": 0, "hits": 0, "verdict": 0}
    for seed in range(100, 140):
        mid = random_walk(seed, 4_000)
        found = judged(prices(mid), knowing_signals(seed, mid, skill=0.0))
        missed["gross"] += found.gross_bps.excludes_zero
        missed["rank"] += found.rank_correlation.excludes_zero
        missed["hits"] += not found.hit_rate.low <= found.hit_rate.base_rate <= found.hit_rate.high
        missed["verdict"] += found.verdict in {Verdict.BETTER, Verdict.WORSE}
        assert found.money is Money.LOSES
    assert max(missed.values()) <= 6, missed


def test_calls_that_overlap_and_persist_do_not_pass_for_skill() -> None:
    """One per window, 5-minute horizons, sides kept for 20 minutes: taken as separate, most seeds
    would show an edge or its contrary."""
    wrong = 0
    for seed in range(30):
        window = np.arange(20, 11_900)
        sides = np.random.default_rng(seed).choice([-1, 1], 100)[window // 240]
        market = prices(random_walk(seed + 500, 12_000))
        found = judged(market, columns(window, direction=sides, horizon_s=300))
        assert found.hit_rate.effective_count < found.calls / 20
        wrong += found.verdict is not Verdict.CHANCE
    assert wrong <= 5


def test_one_lucky_slice_among_many_is_no_finding() -> None:
    mid = random_walk(3)
    found = judged(prices(mid), knowing_signals(3, mid, skill=0.0))

    def slices(lowest: float) -> list[Any]:
        p_values = [lowest, *np.linspace(0.1, 1.0, 19)]
        rates = [msgspec.structs.replace(found.hit_rate, value=0.9, p_value=p) for p in p_values]
        return [msgspec.structs.replace(found, hit_rate=rate) for rate in rates]

    assert {s.verdict for s in _judged_together(slices(0.01))} == {Verdict.CHANCE}
    assert [s.verdict for s in _judged_together(slices(0.002))].count(Verdict.BETTER) == 1
    assert _judged_together(slices(0.01)[:1])[0].verdict is Verdict.BETTER


def test_always_buying_in_a_rising_market_is_no_skill() -> None:
    mid = random_walk(7) * np.exp(5e-5 * np.arange(8_000))
    found = judged(prices(mid), columns(np.arange(20, 7_900, 2), horizon_s=60))
    assert found.hit_rate.value > 0.6
    assert found.hit_rate.base_rate == pytest.approx(found.hit_rate.value, abs=0.01)
    assert found.verdict is Verdict.CHANCE


def test_many_calls_within_few_stretches_of_time_are_too_few() -> None:
    found = judged(prices(random_walk(8)), columns(np.arange(100, 300), horizon_s=600))
    assert found.calls == 200
    assert found.verdict is Verdict.TOO_FEW
    assert found.money is Money.TOO_FEW


def test_honest_probabilities_have_skill_and_boastful_ones_none() -> None:
    mid = random_walk(9)
    signals = knowing_signals(9, mid, skill=1.5)
    honest = judged(prices(mid), signals)
    boast = msgspec.structs.replace(
        signals,
        p_up=(signals.p_up > 0.35) * 0.98 + 0.01,
        p_down=(signals.p_up <= 0.35) * 0.98,
        p_flat=np.full(len(signals), 0.01),
        confidence=np.full(len(signals), 0.98),
    )
    boasted = judged(prices(mid), boast)
    assert honest.probability_brier.skill.low > 0
    assert boasted.probability_brier.skill.high < 0
    assert boasted.calibration_error > 0.2 > honest.calibration_error


# --- stores ---


def test_a_report_by_hand(tmp_path: Path) -> None:
    """Three calls and a HOLD on a market that only rises by 1 % a minute."""
    mid = 100.0 * 1.01 ** (np.arange(120) // 12)
    write_market(tmp_path, mid)
    write_signals(
        tmp_path,
        [
            signal_at(3, Action.BUY),
            signal_at(4, Action.SELL, confidence=0.9),
            signal_at(20, Action.BUY, cost_usd=Decimal("0.25")),
            signal_at(30, Action.HOLD),
            signal_at(110),  # its horizon ends after the last window
        ],
    )
    report = report_on(tmp_path)
    (rules,) = report.sources
    scores = rules.summary
    assert (report.signals, report.scored) == (5, 4)
    assert report.left_out == rules.left_out == {"horizon not over yet": 1}
    assert (scores.signals, scores.calls) == (4, 3)
    assert scores.hit_rate.value == pytest.approx(2 / 3)
    assert scores.cost_bps == pytest.approx(10.2)
    assert scores.move_bps == pytest.approx(100.0)
    assert scores.gross_bps.value == pytest.approx(100.0 / 3)
    assert scores.net_total_bps == pytest.approx(100.0 - 3 * 10.2)
    assert scores.break_even_hit_rate == pytest.approx(0.5 * (1 + 0.102))
    assert scores.break_even_move_bps == pytest.approx(10.2 / (1 / 3))
    assert scores.provider_cost_usd == pytest.approx(0.25)
    assert scores.verdict is Verdict.TOO_FEW
    assert scores.hit_rate.base_rate == pytest.approx(2 / 3)  # it only rises: BUYs always right
    assert report.entry_delay_s == 10.0
    assert [v.name for v in rules.baselines] == ["always flat", "momentum", "CVD sign"]
    assert rules.curves.curves[0].total_bps[-1] == pytest.approx(scores.net_total_bps)


def test_sources_models_templates_symbols_and_hours_are_slices(tmp_path: Path) -> None:
    for number, symbol in enumerate(("BTCUSDT", "ETHUSDT")):
        write_market(tmp_path, random_walk(number, 1_500), symbol)
    signals = [
        signal_at(
            window,
            Action.BUY if window // 10 % 2 else Action.SELL,
            source=source,
            symbol=symbol,
            model=f"m{window // 10 % 3}",
            template_version=None if source == "groq" else f"t{window // 10 % 2}",
        )
        for window in range(20, 1_400, 10)
        for source in ("groq", "rules")
        for symbol in ("BTCUSDT", "ETHUSDT")
    ]
    write_signals(tmp_path, signals)
    report = report_on(tmp_path)
    rules, groq = report.sources
    assert (rules.name, groq.name) == ("rules", "groq")
    found = {(s.source, s.dimension, s.value): s for s in report.slices}
    assert {key[1:] for key in found if key[0] == "groq"} == {
        *(("model", f"m{k}") for k in range(3)),
        *(("symbol", name) for name in ("BTCUSDT", "ETHUSDT")),
        *(("hour", f"0{hour}:00") for hour in range(2)),
    }
    assert {key[1:] for key in found if key[0] == "rules"} > {
        ("template", "t0"),
        ("template", "t1"),
    }
    for source in (groq, rules):
        for dimension in ("model", "symbol", "hour"):
            parts = [
                s for s in report.slices if (s.source, s.dimension) == (source.name, dimension)
            ]
            assert sum(s.calls for s in parts) == source.summary.calls
            total = sum(s.net_total_bps for s in parts)
            assert total == pytest.approx(source.summary.net_total_bps)
    beside = {v.name: v for v in groq.baselines}
    assert beside["rules"].calls == groq.summary.calls
    assert beside["rules"].difference_bps.value == pytest.approx(0.0)  # they said the same
    assert "rules" not in {v.name for v in rules.baselines}
    assert rules.sharpe.trials == groq.sharpe.trials == 9


def test_options_choose_symbols_and_times(tmp_path: Path) -> None:
    for number, symbol in enumerate(("BTCUSDT", "ETHUSDT")):
        write_market(tmp_path, random_walk(number, 200), symbol)
    write_signals(
        tmp_path,
        [signal_at(w, symbol=s) for w in (10, 20, 30) for s in ("BTCUSDT", "ETHUSDT")],
    )
    at_20 = T0 + 21 * WINDOW_MS
    assert report_on(tmp_path).signals == 6
    assert report_on(tmp_path, symbols=("ETHUSDT",)).symbols == ["ETHUSDT"]
    assert report_on(tmp_path, start_ms=at_20).signals == 4
    assert report_on(tmp_path, end_ms=at_20).signals == 2
    assert report_on(tmp_path, start_ms=at_20 + 1, end_ms=at_20 + 2).signals == 0


def test_signals_before_midnight_are_scored_with_the_next_days_prices(tmp_path: Path) -> None:
    mid = 100.0 + np.arange(400)
    write_market(tmp_path, mid, start_ms=T0 + DAY_MS - 200 * WINDOW_MS)
    start_ms = T0 + DAY_MS - 200 * WINDOW_MS
    write_signals(
        tmp_path, [signal_at(w, start_ms=start_ms) for w in (150, 190, 195, 198, 199, 200, 250)]
    )
    report = report_on(tmp_path)
    assert report.scored == 7
    expected = [1e4 * ((100 + w + 14) / (100 + w + 2) - 1) for w in (150, 190, 195, 198)]
    expected += [1e4 * ((100 + w + 14) / (100 + w + 2) - 1) for w in (199, 200, 250)]
    assert report.sources[0].summary.gross_bps.value == pytest.approx(np.mean(expected))
    assert {v.name: v.calls for v in report.sources[0].baselines}["momentum"] == 7


def test_only_the_highest_revision_of_a_window_counts(tmp_path: Path) -> None:
    write_market(tmp_path, np.full(60, 100.0))
    write_market(tmp_path, np.full(60, 100.0) + np.arange(60), revision=1)
    write_signals(tmp_path, [signal_at(5)])
    gain = report_on(tmp_path).sources[0].summary.gross_bps.value
    assert gain == pytest.approx(1e4 * (119 / 107 - 1))


def test_an_incomplete_window_is_a_hole_with_its_reason(tmp_path: Path) -> None:
    write_market(tmp_path, np.full(60, 100.0))
    write_market(tmp_path, [100.0], start_ms=T0 + 12 * WINDOW_MS, revision=1, complete=False)
    write_signals(tmp_path, [signal_at(5), signal_at(20), signal_at(25, symbol="SOLUSDT")])
    report = report_on(tmp_path)
    assert report.scored == 1
    assert report.left_out == {
        "windows or trades missing between entry and exit": 1,
        "symbol without stored windows or trades": 1,
    }


def test_signals_without_any_windows_are_reported_as_such(tmp_path: Path) -> None:
    write_signals(tmp_path, [signal_at(5)])
    report = report_on(tmp_path)
    assert (report.signals, report.scored) == (1, 0)
    assert "none can be scored: 1 symbol without stored windows or trades" in render_text(
        report, 100
    )
    assert "none can be scored" in render_html(report)


def test_no_signals_give_an_empty_report(tmp_path: Path) -> None:
    write_market(tmp_path, np.full(5, 100.0))
    report = report_on(tmp_path)
    assert (report.signals, report.sources, report.slices) == (0, [], [])


def test_holds_alone_gain_nothing_and_have_no_direction(tmp_path: Path) -> None:
    write_market(tmp_path, random_walk(3, 200))
    write_signals(tmp_path, [signal_at(w, Action.HOLD) for w in range(20, 150)])
    (rules,) = report_on(tmp_path).sources
    assert rules.summary.hit_rate is None
    assert rules.summary.net_total_bps == 0.0
    assert rules.summary.verdict is Verdict.TOO_FEW
    assert (rules.baselines, rules.curves) == ([], None)
    assert "no BUY or SELL to judge" in render_text(report_on(tmp_path), 120)


# --- what is shown ---


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two sources, one with a name that must not reach the terminal or the page as it is."""
    root = tmp_path_factory.mktemp("shown")
    write_market(root, random_walk(4, 1_500))
    evil = "model:<script>alert(1)</script>\x1b[31m"
    write_signals(
        root,
        [
            signal_at(
                window,
                Action(("BUY", "SELL", "HOLD")[window % 3]),
                source=source,
                model=f"{'very-' * 12}long{window % 2}",
            )
            for window in range(20, 1_480, 5)
            for source in ("rules", evil)
        ],
    )
    return report_on(root)


def test_the_json_round_trips_without_a_number_that_is_none(shown: Any) -> None:
    text = msgspec.json.encode(shown)
    assert b"NaN" not in text
    assert b"Infinity" not in text
    assert msgspec.json.decode(text, type=Report) == shown


@pytest.mark.parametrize("width", [20, 60, 80, 110, 180])
def test_the_text_fits_its_terminal_and_keeps_every_slice_and_verdict(
    shown: Any, width: int
) -> None:
    text = render_text(shown, width)
    assert max(map(len, text.splitlines())) <= max(width, 60)
    assert text.isascii()
    assert "\x1b" not in text
    rows = [line for line in text.splitlines() if " hour 0" in line]
    assert len(rows) == len([s for s in shown.slices if s.dimension == "hour"])
    assert all(row.endswith(tuple(Verdict)) for row in rows)
    assert ("  Brier skill" in text) == (width >= 180)


class _Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(v) for n, v in attrs if n in {"src", "href", "xlink:href", "onload"}]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_sound_file_that_loads_nothing(shown: Any) -> None:
    text = render_html(shown)
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert page.links == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme:dark" in text
    assert text.count('role="img"') == 6
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_every_point_of_every_plot_lies_inside_it(shown: Any) -> None:
    text = render_html(shown)
    for plot in re.findall(r'<svg viewBox="0 0 420 280".*?</svg>', text):
        xs = [float(x) for x in re.findall(r' (?:x|x1|x2|cx)="([-\d.]+)"', plot)]
        ys = [float(y) for y in re.findall(r' (?:y|y1|y2|cy)="([-\d.]+)"', plot)]
        for points in re.findall(r'points="([^"]*)"', plot):
            pairs = [tuple(map(float, pair.split(","))) for pair in points.split()]
            xs += [x for x, _ in pairs]
            ys += [y for _, y in pairs]
        assert all(0 <= x <= 420 for x in xs)
        assert all(0 <= y <= 280 for y in ys)
        assert len(xs) > 10


def test_the_shown_hit_rate_interval_is_wilsons_at_the_effective_count(shown: Any) -> None:
    for source in shown.sources:
        rate = source.summary.hit_rate
        count = rate.effective_count
        assert (rate.low, rate.high) == pytest.approx(wilson(rate.value * count, count))
        assert 0 < count <= rate.count == source.summary.calls
