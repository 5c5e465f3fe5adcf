"""How good a model is on its test days: classes, probabilities, money, against the baselines.

Card, samples and a predictor → ``Evaluation``. Test days only. Nothing is called better whose paired
difference covers zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from domain.errors import ConfigError
from evaluation.blocks import Blocks, Estimate
from evaluation.scores import Bin
from research.baselines import Predictor
from research.labels import trailing_sigma
from research.metrics import Scores, all_bins, macro_f1_gain, score
from research.samples import LabelSpec, Samples
from research.trades import Gains, Money, gains_of, money_of
from research.trials import Trial, deflated_sharpe

FEE_BPS: Final = 5.0
LATENCY_MS: Final = 250
_BLOCK_ROWS: Final = 512
_REGIMES: Final = ("calm", "usual", "wild")
_SIGMA_S: Final = 60.0

type Floats = npt.NDArray[np.float64]
type ModelPredictor = Callable[[npt.NDArray[np.float16], npt.NDArray[np.float32]], Floats]


class Against(msgspec.Struct, frozen=True, kw_only=True):
    """The model less one baseline, paired: ``macro_f1_gain`` > 0 is better."""

    name: str
    scores: Scores
    macro_f1_gain: Estimate | None
    money: Money


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One slice: a horizon or a regime of volatility."""

    dimension: str
    value: str
    scores: Scores
    money: Money


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found. ``has_skill``: beyond chance; ``is_better``: than every baseline, too."""

    model: str
    dates: tuple[str, ...]
    fee_bps: float
    latency_ms: int
    support: dict[str, int]
    scores: Scores
    money: Money
    deflated_sharpe: float | None
    trials: int
    bins: list[Bin]
    baselines: list[Against]
    parts: list[Part]
    time_ms: list[int]
    total_bps: list[float]
    has_skill: bool
    is_better: bool
    verdict: str


class Judged(msgspec.Struct, frozen=True, eq=False):
    """The test days' samples, one row each."""

    time_ms: npt.NDArray[np.int64]
    outcome: npt.NDArray[np.int64]
    sigma: Floats
    gains: Gains
    probabilities: dict[str, Floats]


def evaluate(
    name: str,
    samples: Samples,
    predict: ModelPredictor,
    baselines: Mapping[str, Predictor],
    *,
    takes_image: bool,
    trials: list[Trial],
    fee_bps: float = FEE_BPS,
    latency_ms: int = LATENCY_MS,
) -> Evaluation:
    """Judge a model on the test days.

    Args:
        name: Of the model.
        samples: Dataset, split and label.
        predict: Probabilities of images and features.
        baselines: By name.
        takes_image: Whether ``predict`` wants images.
        trials: Variants tried, this one included.
        fee_bps: Taker fee of one leg.
        latency_ms: Between decision and fill.

    Raises:
        ConfigError: The test days hold no sample.
    """
    found = _judge(samples, predict, baselines, latency_ms, takes_image=takes_image)
    if not len(found.outcome):
        raise ConfigError("the test days hold no sample with a label")
    climatology = baselines_climatology(samples)
    blocks = _blocks(found.time_ms, samples.spec)
    own = found.probabilities["model"]
    against = [
        Against(
            name=other,
            scores=score(found.outcome, shares, climatology, blocks),
            macro_f1_gain=macro_f1_gain(found.outcome, own, shares, blocks),
            money=money_of(shares.argmax(axis=1), found.gains, fee_bps, blocks),
        )
        for other, shares in found.probabilities.items()
        if other != "model"
    ]
    scores = score(found.outcome, own, climatology, blocks)
    money = money_of(own.argmax(axis=1), found.gains, fee_bps, blocks)
    has_skill, is_better, words = verdict(scores, money, against)
    time_ms, total = _curve(found, fee_bps)
    parts = _regimes(samples, found, climatology, fee_bps)
    parts += _horizons(samples, found, fee_bps, latency_ms)
    return Evaluation(
        model=name,
        dates=samples.split.test,
        fee_bps=fee_bps,
        latency_ms=latency_ms,
        support=_support(found.outcome),
        scores=scores,
        money=money,
        deflated_sharpe=deflated_sharpe(money, trials),
        trials=len(trials),
        bins=all_bins(found.outcome, own),
        baselines=against,
        parts=parts,
        time_ms=time_ms,
        total_bps=total,
        has_skill=has_skill,
        is_better=is_better,
        verdict=words,
    )


def verdict(scores: Scores, money: Money, against: Sequence[Against]) -> tuple[bool, bool, str]:
    """Skill, better than every baseline, and the sentence that says it."""
    if not all(_is_above(e) for e in (scores.chance, scores.brier_skill)):
        words = "no skill: an interval of its gain over chance or climatology covers zero"
        return False, False, words
    if not _is_above(money.timing_bps):
        words = (
            "no skill: it tells labels, but prices after its calls moved as after calls at random "
            "moments (the interval covers zero)"
        )
        return False, False, words
    open_ones = [a.name for a in against if not _is_above(a.macro_f1_gain)]
    if open_ones:
        named = ", ".join(open_ones)
        return True, False, f"skill, but not shown to be better than {named}: intervals cover zero"
    return True, True, "better than every baseline: all intervals of the difference exclude zero"


def baselines_climatology(samples: Samples) -> Floats:
    """float64[3]: frequencies of the training days' labels."""
    counts = samples.label_counts(samples.split.train)
    shares: Floats = counts / max(int(counts.sum()), 1)
    return shares


def _is_above(estimate: Estimate | None) -> bool:
    return estimate is not None and estimate.low is not None and estimate.low > 0.0


def _judge(
    samples: Samples,
    predict: ModelPredictor,
    baselines: Mapping[str, Predictor],
    latency_ms: int,
    *,
    takes_image: bool,
) -> Judged:
    times, outcomes, sigmas, longs, shorts = [], [], [], [], []
    shares: dict[str, list[Floats]] = {name: [] for name in ("model", *baselines)}
    for symbol, date in samples.days(samples.split.test):
        found = samples.of_day(symbol, date)
        gains = gains_of(found.day, found.rows, samples.spec.horizon_s, latency_ms)
        times.append(found.decision_ms)
        outcomes.append(found.labels)
        sigmas.append(trailing_sigma(found.day, _SIGMA_S)[found.rows])
        longs.append(gains.long)
        shorts.append(gains.short)
        for first in range(0, len(found.rows), _BLOCK_ROWS):
            rows = found.rows[first : first + _BLOCK_ROWS]
            images = found.day.images(rows) if takes_image else np.empty((len(rows), 0), np.float16)
            features = found.day.features[rows]
            shares["model"].append(predict(images, features))
            for name, baseline in baselines.items():
                shares[name].append(baseline(features))
    if not sum(map(len, times)):
        raise ConfigError("the test days hold no sample with a label")
    return Judged(
        np.concatenate(times),
        np.concatenate(outcomes),
        np.concatenate(sigmas),
        Gains(np.concatenate(longs), np.concatenate(shorts)),
        {name: np.concatenate(parts).astype(np.float64) for name, parts in shares.items()},
    )


def _blocks(time_ms: npt.NDArray[np.int64], spec: LabelSpec) -> Blocks:
    return Blocks.of(time_ms, np.full(len(time_ms), spec.horizon_ms))


def _support(outcome: npt.NDArray[np.int64]) -> dict[str, int]:
    counts = np.bincount(outcome, minlength=3).tolist()
    return dict(zip(("down", "flat", "up"), counts, strict=True))


def _regimes(samples: Samples, found: Judged, climatology: Floats, fee_bps: float) -> list[Part]:
    """Terciles of the training days' volatility."""
    train = [
        trailing_sigma(d.day, _SIGMA_S)[d.rows]
        for d in (samples.of_day(*key) for key in samples.days(samples.split.train))
    ]
    known = np.concatenate(train) if train else np.empty(0)
    known = known[np.isfinite(known)]
    if not len(known):
        return []
    edges = np.quantile(known, (1 / 3, 2 / 3))
    regime = np.where(np.isfinite(found.sigma), np.searchsorted(edges, found.sigma), -1)
    parts = []
    for place, name in enumerate(_REGIMES):
        rows = np.flatnonzero(regime == place)
        if not len(rows):
            continue
        blocks = _blocks(found.time_ms[rows], samples.spec)
        shares = found.probabilities["model"][rows]
        gains = Gains(found.gains.long[rows], found.gains.short[rows])
        parts.append(
            Part(
                dimension="volatility",
                value=name,
                scores=score(found.outcome[rows], shares, climatology, blocks),
                money=money_of(shares.argmax(axis=1), gains, fee_bps, blocks),
            )
        )
    return parts


def _horizons(samples: Samples, found: Judged, fee_bps: float, latency_ms: int) -> list[Part]:
    """The same calls against what was there after half, the whole and twice the horizon."""
    parts = []
    own = samples.spec
    for horizon_s in sorted({max(1, own.horizon_s // 2), own.horizon_s, 2 * own.horizon_s}):
        spec = LabelSpec(own.label, horizon_s, own.smoothing_s, own.width)
        other = Samples(samples.dataset, samples.symbols, samples.split, spec)
        times, outcomes, longs, shorts = [], [], [], []
        for key in other.days(other.split.test):
            day = other.of_day(*key)
            gains = gains_of(day.day, day.rows, horizon_s, latency_ms)
            times.append(day.decision_ms + (other.symbols.index(key[0]) << 48))
            outcomes.append(day.labels)
            longs.append(gains.long)
            shorts.append(gains.short)
        keys, outcome = np.concatenate(times), np.concatenate(outcomes)
        mine = _keys(samples)
        _, rows, places = np.intersect1d(mine, keys, return_indices=True)
        if not len(rows):
            continue
        blocks = _blocks(found.time_ms[rows], spec)
        shares = found.probabilities["model"][rows]
        gains = Gains(np.concatenate(longs)[places], np.concatenate(shorts)[places])
        parts.append(
            Part(
                dimension="horizon",
                value=f"{horizon_s} s",
                scores=score(outcome[places], shares, baselines_climatology(other), blocks),
                money=money_of(shares.argmax(axis=1), gains, fee_bps, blocks),
            )
        )
    return parts


def _keys(samples: Samples) -> npt.NDArray[np.int64]:
    """Symbol and time of every test sample, in the order they are judged in."""
    return np.concatenate(
        [
            samples.of_day(*key).decision_ms + (samples.symbols.index(key[0]) << 48)
            for key in samples.days(samples.split.test)
        ]
    )


def _curve(found: Judged, fee_bps: float, points: int = 400) -> tuple[list[int], list[float]]:
    """Cumulative net gain over time, thinned."""
    called = found.probabilities["model"].argmax(axis=1)
    gross = np.where(
        called == 2, found.gains.long, np.where(called == 0, found.gains.short, np.nan)
    )
    net = np.where(np.isfinite(gross), gross - 2.0 * fee_bps, 0.0)
    order = np.argsort(found.time_ms, kind="stable")
    total = np.cumsum(net[order])
    places = np.unique(np.linspace(0, len(order) - 1, points).astype(np.int64))
    return found.time_ms[order][places].tolist(), total[places].tolist()
