"""Every setting of the product in one model: command line > environment > ``.env`` > defaults.

Consumes option values and environment variables, produces one frozen, validated ``Settings``; only
``main`` and the orchestrator read it. An error is one line naming the field, never a value.
The field's name in upper case is its variable, in kebab case its flag (docs/reference.md lists all).
"""

from __future__ import annotations

import hashlib
import os
import typing
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from ai.settings import DEFAULT_MODELS, AIMode
from binance_api.endpoints import DEFAULT_REST_BASE, DEFAULT_VISION_BASE, DEFAULT_WS_BASE
from binance_api.request_runner import RestSettings
from binance_api.weight_budget import WeightBudgetSettings
from config_checks import (
    ALERT_CHANNELS,
    DAY_S,
    HttpHost,
    WebSocketHost,
    check_broker,
    check_channels,
    check_prices,
    check_providers,
    check_shard,
    check_source,
    check_symbols,
    check_time_of_day,
    check_webhook,
    divides_a_day,
    divides_a_minute,
    port_or_off,
    split_names,
    split_symbols,
)
from config_parts import PARTS, PartVariables, part_of, thresholds
from data_pipeline.pipeline import PipelineSettings
from domain.errors import ConfigError
from domain.market import Market
from flow_analyzer import FlowSettings
from lake.paths import LakePaths
from lake.recorded_days import data_folder_of, recorded_days, recording_name
from lake.source import SOURCE_FILE
from microstructure.trade_flags import ValidatorSettings
from rules_analyst import RulesSettings

_FINGERPRINT_BYTES = 4_096
DEMO_SEED = 1  # of the demo's synthetic market
DEFAULT_SYMBOLS = ("BTCUSDT", "ETHUSDT")
_FLAGS = {"model_dir": "model"}  # not named after their field


def symbols_of_shard(symbols: tuple[str, ...], shard: str | None) -> tuple[str, ...]:
    """A bot's share: of the sorted list every OF-th symbol, from the NUMBER-th on.

    Raises:
        ConfigError: the share is empty.
    """
    if shard is None:
        return symbols
    number, of = map(int, shard.split("/"))
    share = set(sorted(symbols)[number - 1 :: of])
    if not share:
        raise ConfigError(f"SHARD (--shard): {shard} of {len(symbols)} symbols is none")
    return tuple(symbol for symbol in symbols if symbol in share)


class Settings(BaseSettings):
    """What a run can be told. Durations are seconds unless the name says otherwise."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",  # unknown variables are left alone; unknown arguments fail in __init__
        frozen=True,
        hide_input_in_errors=True,
    )

    # --- what to run on ---
    symbols: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(split_symbols), AfterValidator(check_symbols)
    ] = Field(
        DEFAULT_SYMBOLS,
        description="symbols to follow, comma between two; a replay: all it holds, unless set",
    )
    market: Market = Field(Market.UM, description="um (USDⓈ-M futures) or spot")
    source: Annotated[str, AfterValidator(check_source)] = Field(
        "binance", description="binance, demo (local exchange, no network) or replay:PATH"
    )
    duration: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="stop after this many seconds; unset: run on"
    )
    headless: bool = Field(
        default=False, description="no terminal view; one summary line a minute in the log"
    )
    record: bool = Field(
        default=False,
        description="a run also records the frames it analyses, as the verb record does",
    )
    data_dir: Path | None = Field(
        None,
        description="root of all files; unset: data-demo, data-replay/NAME or data, by source",
    )
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"],
        BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
    ] = Field("INFO", description="least severe level that is logged")

    # --- windows ---
    window_duration: Annotated[int, AfterValidator(divides_a_day)] = Field(
        5, ge=1, le=DAY_S, description="length of an analysis window, s; divides a day"
    )
    window_lateness_ms: int = Field(
        250,
        ge=0,
        le=60_000,
        description="how far past a window's end proof of its end must lie, ms",
    )
    gap_repair_timeout: float = Field(
        3.0,
        ge=0,
        le=600,
        allow_inf_nan=False,
        description="longest a gap or a dead route holds a window back, s",
    )
    whale_notional: Decimal = Field(
        Decimal(100_000),
        gt=0,
        allow_inf_nan=False,
        description="a trade of at least this notional is a whale's, quote units",
    )

    # --- connection ---
    ws_ping_interval: float = Field(
        20.0, gt=0, le=180, allow_inf_nan=False, description="WebSocket ping every so many s"
    )
    ws_max_reconnect_attempts: int = Field(
        15, ge=0, description="failures in a row of all sockets of a route before exit 3; 0: never"
    )
    ws_backoff_cap: float = Field(
        60.0, gt=0, le=3_600, allow_inf_nan=False, description="longest wait before a reconnect, s"
    )
    ws_redundancy: int = Field(1, ge=1, le=2, description="sockets per route: 1, or 2 merged")
    ws_rotation_minute: int | None = Field(
        None,
        ge=0,
        le=59,
        description="minute of the UTC hour (0-59) at which sockets are renewed; unset: by age alone",
    )
    health_check_interval: float = Field(
        30.0, gt=0, le=3_600, allow_inf_nan=False, description="a health event every so many s"
    )
    binance_ws_url: WebSocketHost = Field(
        DEFAULT_WS_BASE[Market.UM], description="futures WebSocket host; routes are added to it"
    )
    binance_rest_url: HttpHost = Field(
        DEFAULT_REST_BASE[Market.UM], description="futures REST host"
    )
    binance_spot_ws_url: WebSocketHost = Field(
        DEFAULT_WS_BASE[Market.SPOT], description="spot WebSocket host"
    )
    binance_spot_rest_url: HttpHost = Field(
        DEFAULT_REST_BASE[Market.SPOT], description="spot REST host"
    )
    binance_rate_limit_weight: int | None = Field(
        None,
        ge=40,
        le=1_000_000,
        description="REST weight a minute this address may use; unset: the market's own limit",
    )

    # --- files ---
    feature_flush_seconds: float = Field(
        60.0,
        gt=0,
        le=3_600,
        allow_inf_nan=False,
        description="feature rows and signals reach disk every so many s; a run's first ones sooner",
    )

    raw_data_dir: Path | None = Field(
        None,
        description="replaces the raw subtree of the data folder (recordings, history, klines)",
    )
    curated_data_dir: Path | None = Field(
        None, description="replaces the curated subtree of the data folder"
    )

    # --- lake ---
    stream_flush_interval_seconds: float = Field(
        60.0,
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        description="recorded frames become Parquet at least every so many s",
    )
    stream_flush_max_items: int = Field(
        20_000, ge=1, description="... or at so many frames, whichever comes first"
    )
    stream_flush_max_bytes: int = Field(
        52_428_800, ge=1_024, description="... or at so many bytes of frames"
    )
    stream_journal_sync_ms: int = Field(
        200,
        ge=0,
        le=60_000,
        description="a power cut or kill loses at most the frames of so many ms",
    )
    disk_warn_mib: int = Field(
        2_048, ge=0, description="less free space than this is warned about, MiB; 0: never"
    )
    disk_stop_mib: int = Field(
        256, ge=0, description="less than this stops a recorder cleanly, MiB; 0: never"
    )
    retention_days_stream_trades: int = Field(
        0, ge=0, le=100_000, description="days of recorded trades that prune keeps; 0: all"
    )
    retention_days_stream_depth: int = Field(
        0, ge=0, le=100_000, description="days of recorded books that prune keeps; 0: all"
    )
    retention_days_historical: int = Field(
        0,
        ge=0,
        le=100_000,
        description="days of months of the archive, counted from their last day that prune keeps; 0: all",
    )
    retention_days_features: int = Field(
        0, ge=0, le=100_000, description="days of feature rows that prune keeps; 0: all"
    )
    retention_days_signals: int = Field(
        0, ge=0, le=100_000, description="days of signals that prune keeps; 0: all"
    )
    retention_days_quarantine: int = Field(
        0, ge=0, le=100_000, description="days of rejected input that prune keeps; 0: all"
    )
    binance_vision_url: HttpHost = Field(
        DEFAULT_VISION_BASE, description="host of the archive of past days and months"
    )

    # --- AI analyst ---
    ai: AIMode = Field(
        AIMode.LIVE,
        description="who else is asked than the rules: live (models, where a key is set), replay "
        "(answers of the journal), rules or off (nobody)",
    )
    ai_providers: Annotated[
        tuple[str, ...],
        NoDecode,
        BeforeValidator(split_names),
        AfterValidator(check_providers),
    ] = Field(("groq", "dashscope", "openai"), description="providers in the order they are asked")
    groq_api_key: SecretStr | None = Field(None, description="key of Groq; a variable only")
    dashscope_api_key: SecretStr | None = Field(
        None, description="key of DashScope; a variable only"
    )
    openai_api_key: SecretStr | None = Field(None, description="key of OpenAI; a variable only")
    ai_groq_models: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_names)] = Field(
        DEFAULT_MODELS["groq"], description="models asked at Groq, best first"
    )
    ai_dashscope_models: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_names)] = Field(
        DEFAULT_MODELS["dashscope"], description="models asked at DashScope, best first"
    )
    ai_openai_models: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_names)] = Field(
        DEFAULT_MODELS["openai"], description="models asked at OpenAI or what stands in for it"
    )
    ai_min_interval_seconds: float = Field(
        60.0,
        ge=0,
        le=86_400,
        allow_inf_nan=False,
        description="market time between two questions about a symbol, s; 0: every complete window asks",
    )
    ai_deadline_seconds: float = Field(
        12.0, gt=0, le=600, allow_inf_nan=False, description="longest a whole analysis takes, s"
    )
    ai_attempt_deadline_seconds: float = Field(
        6.0, gt=0, le=600, allow_inf_nan=False, description="longest one call takes, s"
    )
    ai_daily_token_budget: int = Field(
        200_000, ge=0, description="tokens a provider may take per UTC day; 0: no limit"
    )
    ai_daily_usd_budget: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="dollars a provider may cost per UTC day; 0: no limit",
    )
    ai_prices: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(split_names), AfterValidator(check_prices)
    ] = Field(
        (),
        description="dollars per million tokens of models whose price is not known, as "
        "MODEL=IN/OUT, comma between two",
    )
    ai_journal_dir: Path | None = Field(
        None, description="journal that answers --ai replay; unset: the data folder's own"
    )

    model_dir: Path | None = Field(
        None, description="folder of a trained model, asked about every window; train writes it"
    )

    # --- operations ---
    http_host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address of metrics, health and events; beyond loopback only with HTTP_TOKEN",
    )
    http_port: Annotated[int | None, BeforeValidator(port_or_off)] = Field(
        8787, ge=0, le=65_535, description="port of the same; 0: any free one, off: none"
    )
    http_token: SecretStr | None = Field(
        None, description="asked of every client as Authorization: Bearer; a variable only"
    )
    events_keep: int = Field(
        2_000,
        ge=1,
        le=1_000_000,
        description="events of each topic that followers can still resume from",
    )
    event_broker: Annotated[str | None, AfterValidator(check_broker)] = Field(
        None, description="NATS server with JetStream that gets every event, nats://HOST:4222"
    )
    event_broker_token: SecretStr | None = Field(
        None, description="token of that server; a variable only"
    )
    shard: Annotated[str | None, AfterValidator(check_shard)] = Field(
        None,
        description="this bot's share of the symbols, as 2/4: every fourth of the sorted list",
    )
    log_file: Path | None = Field(
        None, description="log there, rotated, in place of stderr; a view: DATA_DIR/logs"
    )
    log_file_mib: int = Field(10, ge=1, le=10_000, description="size at which the file is rotated")
    log_files_keep: int = Field(3, ge=1, le=1_000, description="old log files kept")

    # --- alerts ---
    alert_rules: Path | None = Field(
        None, description="TOML file with rules of your own, worked into the shipped ones"
    )
    alert_channels: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(split_names), AfterValidator(check_channels)
    ] = Field(
        ALERT_CHANNELS,
        description="where alerts go, of what is set up; empty: only on the event bus",
    )
    alert_webhook_url: Annotated[SecretStr | None, AfterValidator(check_webhook)] = Field(
        None, description="gets every notification as a signed POST; a variable only"
    )
    alert_webhook_secret: SecretStr | None = Field(
        None, description="signs them (standardwebhooks.com, v1); a variable only"
    )
    alert_urls: SecretStr | None = Field(
        None,
        description="addresses of apprise (Telegram, Slack, Discord, e-mail …), blanks between two; "
        "a variable only",
    )

    # --- klines ---
    ingest_long_intervals: Literal["close", "quarter"] = Field(
        "close",
        description="when --schedule ingests intervals longer than an hour: at their close, or "
        "every quarter of an hour",
    )
    recommendation_update_time: Annotated[str, AfterValidator(check_time_of_day)] = Field(
        "12:00", description="time of the daily recommendation, UTC, HH:MM"
    )
    binance_rate_limit_concurrency: int = Field(
        8, ge=3, le=100, description="REST requests under way at once, of one process"
    )
    binance_rate_limit_window_seconds: Annotated[int, AfterValidator(divides_a_minute)] = Field(
        60,
        ge=1,
        le=60,
        description="the minute's weight is given out in equal parts, one every so many s; divides 60",
    )

    # --- thresholds of the parts, as <PART>_<FIELD> variables ---
    validator: Annotated[ValidatorSettings, part_of("validator", ValidatorSettings)] = Field(
        default_factory=ValidatorSettings, description="what the validator flags"
    )
    flow: Annotated[FlowSettings, part_of("flow", FlowSettings)] = Field(
        default_factory=FlowSettings, description="look-backs of the flow metrics"
    )
    pipeline: Annotated[PipelineSettings, part_of("pipeline", PipelineSettings)] = Field(
        default_factory=PipelineSettings, description="look-backs and limits of the features"
    )
    rules: Annotated[RulesSettings, part_of("rules", RulesSettings)] = Field(
        default_factory=RulesSettings, description="how the rules analyst decides"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments > environment > ``.env``, for the parts' fields as well."""
        del file_secret_settings
        in_file = (
            dotenv_settings.env_vars if isinstance(dotenv_settings, DotEnvSettingsSource) else {}
        )
        return (
            init_settings,
            env_settings,
            PartVariables(settings_cls, os.environ),
            dotenv_settings,
            PartVariables(settings_cls, in_file),
        )

    def __init__(self, **values: Any) -> None:
        unknown = [n for n in values if n not in type(self).model_fields and not n.startswith("_")]
        if unknown:
            raise ConfigError(f"{unknown[0]}: unknown setting")
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_one_line(error)) from None
        except UnicodeDecodeError:
            raise ConfigError(".env: is not UTF-8 text") from None
        except (SettingsError, OSError) as error:
            raise ConfigError(f".env or environment: {type(error).__name__}") from None
        share = symbols_of_shard(self.symbols, self.shard)
        object.__setattr__(self, "symbols", share)  # frozen from here on

    @property
    def replay_path(self) -> Path | None:
        """The recording to replay, or None for a live source; of a data folder its recorded days."""
        kind, _, path = self.source.partition(":")
        if kind != "replay":
            return None
        return (Path(path).is_dir() and recorded_days(Path(path), self.market)) or Path(path)

    @property
    def data_root(self) -> Path:
        """Root of every file of this run: ``--data-dir``, else a folder that names the source."""
        if self.data_dir is not None:
            return self.data_dir
        if self.replay_path is not None:
            return Path("data-replay") / recording_name(self.replay_path)
        return Path("data-demo" if self.source == "demo" else "data")

    @property
    def paths(self) -> LakePaths:
        """Where every file of this run and market lies."""
        return LakePaths.of(
            self.data_root, self.market, raw=self.raw_data_dir, curated=self.curated_data_dir
        )

    @property
    def source_description(self) -> dict[str, str | int]:
        """Market and host, seed or recording: whose data the data folder holds.

        A recording is known by its name and its first bytes, so that one that grows stays itself;
        recorded days by their names and what their data folder says it holds.
        """
        described: dict[str, str | int] = {"market": self.market.value}
        if self.replay_path is not None:
            path, name = self.replay_path, self.replay_path.name
            if path.is_dir():
                name = recording_name(path)
                path = data_folder_of(path) / SOURCE_FILE
            begin = b""
            if path.name != SOURCE_FILE or path.is_file():
                with path.open("rb") as file:
                    begin = file.read(_FINGERPRINT_BYTES)
            fingerprint = hashlib.blake2b(begin, digest_size=8).hexdigest()
            return described | {"recording": name, "fingerprint": fingerprint}
        if self.source == "demo":
            return described | {"seed": DEMO_SEED}
        return described | {"host": urlsplit(self.ws_url).netloc}

    @property
    def ws_url(self) -> str:
        """WebSocket host of the chosen market."""
        return self.binance_ws_url if self.market is Market.UM else self.binance_spot_ws_url

    @property
    def rest_url(self) -> str:
        """REST host of the chosen market."""
        return self.binance_rest_url if self.market is Market.UM else self.binance_spot_rest_url

    @property
    def rest_settings(self) -> RestSettings:
        """How the chosen market's REST host is asked."""
        return RestSettings(
            market=self.market,
            base_url=self.rest_url,
            weight_limit=self.binance_rate_limit_weight,
            concurrency=self.binance_rate_limit_concurrency,
            budget=WeightBudgetSettings(window_s=self.binance_rate_limit_window_seconds),
        )


class ExchangeKeys(BaseSettings):
    """API key and secret of the exchange, from the environment or ``.env``; never a flag."""

    model_config = Settings.model_config

    binance_api_key: SecretStr = SecretStr("")
    binance_api_secret: SecretStr = SecretStr("")


def is_secret(annotation: Any) -> bool:
    """Whether a field holds a secret: such a one is no flag, since a command line is no secret."""
    return SecretStr in typing.get_args(annotation)


def flag_of(name: str) -> str:
    """A field's flag."""
    return "--" + _FLAGS.get(name, name.replace("_", "-"))


def variables() -> dict[str, tuple[str, str]]:
    """Every variable with its default and description; docs/reference.md is tested against it."""
    found: dict[str, tuple[str, str]] = {}
    for name, field in Settings.model_fields.items():
        if name in PARTS:
            for threshold in thresholds(name, PARTS[name]):
                found[threshold.variable] = (_shown(threshold.default), threshold.description)
        else:
            found[name.upper()] = (_shown(field.default), field.description or "")
    return found


def _shown(default: object) -> str:
    if default is None:
        return ""
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _one_line(error: ValidationError) -> str:
    """The errors' fields and messages without the values: a value may be a secret."""
    found = []
    for item in error.errors(include_input=False, include_url=False, include_context=False):
        name = str(item["loc"][0]) if item["loc"] else "settings"
        message = item["msg"].removeprefix("Value error, ")
        if name in PARTS:
            found.append(message if ": must be " in message else f"{name.upper()}_*: {message}")
        else:
            found.append(f"{name.upper()} ({flag_of(name)}): {message}")
    return "; ".join(found)
