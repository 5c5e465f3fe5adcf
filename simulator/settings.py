"""Settings of the simulated exchange; values are checked once, at the door.

Consumes flags or constructor arguments → produces a frozen value the other modules trust.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import msgspec

from domain.errors import ConfigError
from domain.market import Market
from simulator.candle_table import CandleTable
from simulator.faults import FaultPlan
from simulator.vision_tables import PastTrades


class SimulatorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the exchange behaves.

    Durations named ``_s`` of the sockets (ping, pong, lifetime) are market seconds: at speed 60 a
    ping every 180 s comes every 3 s of wall time. ``None`` takes the venue's documented value.

    Args:
        market: Which venue is imitated, ``um`` (USDⓈ-M futures) or ``spot``.
        recording: A recording to replay; None serves the synthetic market.
        seed: Seed of the synthetic market.
        symbols: Symbols of the synthetic market (a recording has its own).
        speed: Market seconds per wall second; 0 or infinity: as fast as the clients read.
        start_ms: First market time of the synthetic market; None: the wall clock.
        rate_multiplier: Scales the synthetic market's trades per second.
        planted_edge: The synthetic market's price is a random walk that its book foretells so
            strongly, 0 (not at all) to 1, for models to find; None: the usual market.
        faults: A plan, a path to one (JSON or TOML), or ``random:SEED``; None: no faults.
        fault_duration_ms: Market time that ``random:SEED`` covers; None: the recording's length,
            or ten minutes.
        host: Loopback address to bind.
        port: TCP port; 0 picks a free one.
        weight_limit: Request weight per minute; None: 2,400 (um), 6,000 (spot).
        weight_clock: ``wall`` or ``market``: whose minutes the weights are counted in.
        requests_until_ban: Requests refused with 429 within one minute before the 418.
        ban_s: Length of the first ban; each further one doubles, up to three days.
        ping_interval_s: Server ping interval; None: 180 (um), 20 (spot).
        pong_timeout_s: Drop a socket this long after its last pong; None: 600 (um), 60 (spot).
        lifetime_s: Age at which a socket is cut.
        max_streams: Streams per socket; one more closes it with 1008.
        max_inbound_per_s: Client messages per second; None: 10 (um), 5 (spot). One more cuts it.
        client_buffer_bytes: Unsent bytes after which a slow client is closed.
        kline_history_days: How far back klines of the synthetic market reach.
        halted: Symbols whose market is closed, as exchangeInfo tells.
        candles: What REST serves as klines; None: candles of the market's own trades.
        api_keys: API keys that signed calls accept, each with its secret.
        archive: What the archive holds; None: the trades of the market itself.
        archive_delay_ms: When a day's file appears after its end, market ms (08:30); a month's
            file comes a day later.
    """

    market: Market = Market.UM
    recording: Path | None = None
    seed: int = 1
    symbols: tuple[str, ...] = ("BTCUSDT", "ETHUSDT")
    speed: float = 1.0
    start_ms: int | None = None
    rate_multiplier: float = 1.0
    planted_edge: float | None = None
    faults: str | FaultPlan | None = None
    fault_duration_ms: int | None = None
    host: str = "127.0.0.1"
    port: int = 0
    weight_limit: int | None = None
    weight_clock: str = "wall"
    requests_until_ban: int = 10
    ban_s: int = 120
    ping_interval_s: float | None = None
    pong_timeout_s: float | None = None
    lifetime_s: float = 86_400.0
    max_streams: int = 1024
    max_inbound_per_s: int | None = None
    client_buffer_bytes: int = 16 * 1024 * 1024
    kline_history_days: int = 3
    halted: tuple[str, ...] = ()
    candles: CandleTable | None = None
    api_keys: Mapping[str, str] = msgspec.field(
        default_factory=lambda: {"simulated-key": "simulated-secret"}
    )
    archive: PastTrades | None = None
    archive_delay_ms: int = 30_600_000

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the field."""
        if self.market not in tuple(Market):
            raise ConfigError(f"market: must be um or spot, got {self.market!r}")
        if math.isnan(self.speed) or self.speed < 0:
            raise ConfigError(f"speed: must be 0 (no pacing) or positive, got {self.speed}")
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"port: must be 0 to 65535, got {self.port}")
        if self.rate_multiplier <= 0 or self.rate_multiplier > 1000:
            raise ConfigError(f"rate_multiplier: must be in (0, 1000], got {self.rate_multiplier}")
        if self.weight_clock not in ("wall", "market"):
            raise ConfigError(f"weight_clock: must be wall or market, got {self.weight_clock!r}")
        if self.recording is None:
            self._check_synthetic()

    def _check_synthetic(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed: must be 0 to 2**63 - 1, got {self.seed}")
        if self.planted_edge is not None and not 0.0 <= self.planted_edge <= 1.0:
            raise ConfigError(f"planted_edge: must be 0 to 1, got {self.planted_edge}")
        if not self.symbols:
            raise ConfigError("symbols: at least one is needed")
        for symbol in self.symbols:
            if not (symbol.isascii() and symbol.isalnum() and symbol == symbol.upper()):
                raise ConfigError(f"symbols: {symbol!r} is not an upper-case symbol name")

    @property
    def is_unpaced(self) -> bool:
        """True when frames go out as fast as the clients read them."""
        return self.speed == 0 or math.isinf(self.speed)

    @property
    def wall_per_market(self) -> float:
        """Wall seconds per market second, for socket timers (1 when unpaced)."""
        return 1.0 if self.is_unpaced else 1.0 / self.speed
