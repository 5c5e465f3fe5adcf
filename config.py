"""Every setting of the product in one model: command line > environment > ``.env`` > defaults.

Consumes option values and environment variables, produces one frozen, validated ``Settings``; only
``main`` and the orchestrator read it. An error is one line naming the field, never a value.
The field's name in upper case is its variable, in kebab case its flag (docs/reference.md lists all).
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import typing
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    SecretStr,
    ValidationError,
)
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
from data_pipeline.pipeline import PipelineSettings
from domain.errors import ConfigError
from domain.market import Market
from flow_analyzer import FlowSettings
from lake.paths import LakePaths
from lake.source import SOURCE_FILE
from microstructure.trade_flags import ValidatorSettings
from rules_analyst import RulesSettings

DAY_S = 86_400
_FINGERPRINT_BYTES = 4_096
DEMO_SEED = 1  # of the demo's synthetic market
MAX_SYMBOLS = 1_024  # one trade socket vouches for all symbols; a connection carries 1,024 streams
DEFAULT_SYMBOLS = ("BTCUSDT", "ETHUSDT")
# Binance symbols are upper-case letters and digits, dated futures add _YYMMDD; some listings are not ASCII.
_PRICE = re.compile(r"\S+=\d+(\.\d+)?/\d+(\.\d+)?")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_FLAGS = {"model_dir": "model"}  # not named after their field
_STREAM_KINDS = ("trades", "depth")  # of recorded frames, each with a folder per day
_SYMBOL = re.compile(r"[^\W_a-z]{1,30}(_\d{6})?")


def _split_symbols(value: object) -> object:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list | tuple):
        return tuple(dict.fromkeys(str(part).upper() for part in value))
    return value


def _split_names(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _check_providers(names: tuple[str, ...]) -> tuple[str, ...]:
    if not set(names) <= DEFAULT_MODELS.keys():  # never the value: a key may have slipped in here
        raise ValueError(f"can only name {', '.join(DEFAULT_MODELS)}")
    if len(set(names)) < len(names):
        raise ValueError("names a provider twice")
    return names


def _check_prices(prices: tuple[str, ...]) -> tuple[str, ...]:
    for price in prices:
        if not _PRICE.fullmatch(price):
            raise ValueError("must look like MODEL=IN/OUT, e.g. qwen3:8b=0/0")
    return prices


def _check_symbols(symbols: tuple[str, ...]) -> tuple[str, ...]:
    if not symbols:
        raise ValueError("name at least one symbol, e.g. BTCUSDT,ETHUSDT")
    if len(symbols) > MAX_SYMBOLS:
        raise ValueError(f"at most {MAX_SYMBOLS} symbols in one run (streams of one connection)")
    for symbol in symbols:
        if not _SYMBOL.fullmatch(symbol):
            raise ValueError("a symbol is letters and digits, e.g. BTCUSDT (comma between two)")
    return symbols


def _port_or_off(value: object) -> object:
    return None if isinstance(value, str) and value.strip().lower() == "off" else value


def _check_broker(url: str | None) -> str | None:
    if url is None:
        return None
    parts = urlsplit(url)
    if parts.scheme not in {"nats", "tls"} or not parts.hostname or parts.path.strip("/"):
        raise ValueError("must look like nats://host:4222 or tls://host:4222")
    if parts.username or parts.password:
        raise ValueError("carries a secret: set EVENT_BROKER_TOKEN instead")
    return url


def _check_shard(shard: str | None) -> str | None:
    if shard is None:
        return None
    found = re.fullmatch(r"(\d{1,4})/(\d{1,4})", shard)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError("must be NUMBER/OF, e.g. 2/4, from 1/4 to 4/4")
    return shard


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


def _divides_a_day(seconds: int) -> int:
    if DAY_S % seconds:
        raise ValueError(f"must divide a day ({DAY_S} s) without remainder, e.g. 1, 5, 15, 60")
    return seconds


def _check_time_of_day(text: str) -> str:
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", text):
        raise ValueError("must be a time of day such as 12:00 (UTC)")
    return text


def _divides_a_minute(seconds: int) -> int:
    if 60 % seconds:
        raise ValueError("must divide a minute (60 s) without remainder, e.g. 1, 5, 10, 60")
    return seconds


def _host_of(*schemes: str) -> AfterValidator:
    def check(url: str) -> str:
        parts = urlsplit(url.rstrip("/"))
        try:
            complete = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            complete = False
        if parts.scheme not in schemes or not complete:
            raise ValueError(f"must look like {schemes[0]}://host or {schemes[-1]}://host:port")
        if parts.path or parts.query or parts.fragment or parts.username:
            raise ValueError("give the host alone; paths are added to it")
        return url.rstrip("/")

    return AfterValidator(check)


def _check_source(source: str) -> str:
    kind, _, path = source.partition(":")
    if source in {"binance", "demo"}:
        return source
    if kind != "replay" or not path:
        raise ValueError("must be binance, demo or replay:PATH")
    if not Path(path).exists():
        raise ValueError("names nothing that exists")
    if Path(path).is_dir() and all(_recorded_days(Path(path), m) is None for m in Market):
        raise ValueError("names a folder, not a recording, and holds no raw/stream")
    return source


def _recorded_days(folder: Path, market: Market) -> Path | None:
    """Where ``record`` wrote: below a data folder, or the folder itself, or one day of it."""
    for data_folder in dict.fromkeys((LakePaths.of(folder, market).root, folder)):
        if (data_folder / "raw" / "stream").is_dir():
            return data_folder / "raw" / "stream"
    place = folder.resolve()
    is_stream = any((place / kind).is_dir() for kind in _STREAM_KINDS)
    is_day = place.parent.name in _STREAM_KINDS and _DAY.fullmatch(place.name)
    stream = place if is_stream else place.parents[1] if is_day else place.parent
    return folder if (is_stream or is_day) and stream.name == "stream" else None


ALERT_CHANNELS = ("console", "file", "webhook", "apprise")


def _check_channels(names: tuple[str, ...]) -> tuple[str, ...]:
    if any(name not in ALERT_CHANNELS for name in names):
        raise ValueError(f"must be names among {', '.join(ALERT_CHANNELS)}")
    return tuple(dict.fromkeys(names))


def _check_webhook(url: SecretStr | None) -> SecretStr | None:
    if url is None or not url.get_secret_value():
        return None
    parts = urlsplit(url.get_secret_value())
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must look like https://host/path")
    return url


class _Threshold(msgspec.Struct, frozen=True):
    """One number of a part's own settings, and the variable that sets it."""

    variable: str
    path: tuple[str, ...]
    kind: Any
    default: object
    description: str


def thresholds(name: str, part: type[msgspec.Struct]) -> list[_Threshold]:
    """Every number in ``part`` and in the structs inside it, except what other settings decide."""
    found: list[_Threshold] = []
    described = dict(
        re.findall(r"^ {8}(\w+): (.+(?:\n {12}.+)*)", part.__doc__ or "", re.MULTILINE)
    )
    for field in msgspec.structs.fields(part):
        variable = f"{name}_{field.name}".upper()
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            found += [
                msgspec.structs.replace(inner, path=(field.name, *inner.path))
                for inner in thresholds(variable, field.type)
            ]
        elif field.type in _READ_AS and variable not in _DECIDED_ELSEWHERE:
            text = described.get(field.name, field.name.replace("_", " "))
            description = " ".join(text.split()).rstrip(".")
            found.append(
                _Threshold(variable, (field.name,), field.type, field.default, description)
            )
    return found


def _as_numbers(text: str | tuple[object, ...]) -> tuple[Decimal, ...]:
    parts = text.split(",") if isinstance(text, str) else text
    return tuple(Decimal(str(part).strip()) for part in parts)


_READ_AS: Mapping[Any, tuple[Callable[[Any], Any], str]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    Decimal: (Decimal, "a number"),
    tuple[Decimal, ...]: (_as_numbers, "numbers, comma between two, each"),
}
_DECIDED_ELSEWHERE = {"FLOW_WHALE_NOTIONAL", "PIPELINE_WINDOW_MS"}


def _part[T: msgspec.Struct](name: str, part: type[T]) -> PlainValidator:
    """Builds a part's settings from ``{variable: text or number}``; all finite and not negative."""

    def build(value: object) -> T:
        if isinstance(value, part):
            return value
        if not isinstance(value, dict):
            raise ValueError("is set by one variable per number")  # noqa: TRY004 - for pydantic
        nested: dict[str, Any] = {}
        for threshold in thresholds(name, part):
            if threshold.variable in value:
                inner = nested
                for step in threshold.path[:-1]:
                    inner = inner.setdefault(step, {})
                inner[threshold.path[-1]] = _read(threshold, value[threshold.variable])
        return msgspec.convert(nested, part)

    return PlainValidator(build)


def _read(threshold: _Threshold, value: object) -> object:
    read, words = _READ_AS[threshold.kind]
    try:
        number = read(value)
        sound = all(
            math.isfinite(one) and one >= 0
            for one in (number if isinstance(number, tuple) else (number,))
        )
    except (ValueError, TypeError, ArithmeticError):
        sound = False
    if not sound:
        raise ValueError(f"{threshold.variable}: must be {words} ≥ 0")
    return number


class _PartVariables(PydanticBaseSettingsSource):
    """The variables of the parts' own settings, in one environment or file."""

    def __init__(self, settings: type[BaseSettings], texts: Mapping[str, str | None]) -> None:
        super().__init__(settings)
        self._texts = {name.upper(): text for name, text in texts.items() if text}

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        """What is set of one part, if anything."""
        names = {t.variable for t in thresholds(field_name, PARTS[field_name])}
        given = {name: text for name, text in self._texts.items() if name in names}
        return given or None, field_name, False

    def __call__(self) -> dict[str, Any]:
        found = {part: self.get_field_value(None, part)[0] for part in PARTS}
        return {part: values for part, values in found.items() if values}


PARTS: Mapping[str, type[msgspec.Struct]] = {
    "validator": ValidatorSettings,
    "flow": FlowSettings,
    "pipeline": PipelineSettings,
    "rules": RulesSettings,
}
"""Parts whose own numbers are variables: ``<PART>_<FIELD>``, ``<PART>_<STRUCT>_<FIELD>``."""

WebSocketHost = Annotated[str, _host_of("wss", "ws")]
HttpHost = Annotated[str, _host_of("https", "http")]


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
        tuple[str, ...], NoDecode, BeforeValidator(_split_symbols), AfterValidator(_check_symbols)
    ] = Field(
        DEFAULT_SYMBOLS,
        description="symbols to follow, comma between two; a replay: all it holds, unless set",
    )
    market: Market = Field(Market.UM, description="um (USDⓈ-M futures) or spot")
    source: Annotated[str, AfterValidator(_check_source)] = Field(
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
    window_duration: Annotated[int, AfterValidator(_divides_a_day)] = Field(
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
        BeforeValidator(_split_names),
        AfterValidator(_check_providers),
    ] = Field(("groq", "dashscope", "openai"), description="providers in the order they are asked")
    groq_api_key: SecretStr | None = Field(None, description="key of Groq; a variable only")
    dashscope_api_key: SecretStr | None = Field(
        None, description="key of DashScope; a variable only"
    )
    openai_api_key: SecretStr | None = Field(None, description="key of OpenAI; a variable only")
    ai_groq_models: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names)] = Field(
        DEFAULT_MODELS["groq"], description="models asked at Groq, best first"
    )
    ai_dashscope_models: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names)] = (
        Field(DEFAULT_MODELS["dashscope"], description="models asked at DashScope, best first")
    )
    ai_openai_models: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names)] = Field(
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
        tuple[str, ...], NoDecode, BeforeValidator(_split_names), AfterValidator(_check_prices)
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
    http_port: Annotated[int | None, BeforeValidator(_port_or_off)] = Field(
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
    event_broker: Annotated[str | None, AfterValidator(_check_broker)] = Field(
        None, description="NATS server with JetStream that gets every event, nats://HOST:4222"
    )
    event_broker_token: SecretStr | None = Field(
        None, description="token of that server; a variable only"
    )
    shard: Annotated[str | None, AfterValidator(_check_shard)] = Field(
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
        tuple[str, ...], NoDecode, BeforeValidator(_split_names), AfterValidator(_check_channels)
    ] = Field(
        ALERT_CHANNELS,
        description="where alerts go, of what is set up; empty: only on the event bus",
    )
    alert_webhook_url: Annotated[SecretStr | None, AfterValidator(_check_webhook)] = Field(
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
    recommendation_update_time: Annotated[str, AfterValidator(_check_time_of_day)] = Field(
        "12:00", description="time of the daily recommendation, UTC, HH:MM"
    )
    binance_rate_limit_concurrency: int = Field(
        8, ge=3, le=100, description="REST requests under way at once, of one process"
    )
    binance_rate_limit_window_seconds: Annotated[int, AfterValidator(_divides_a_minute)] = Field(
        60,
        ge=1,
        le=60,
        description="the minute's weight is given out in equal parts, one every so many s; divides 60",
    )

    # --- thresholds of the parts, as <PART>_<FIELD> variables ---
    validator: Annotated[ValidatorSettings, _part("validator", ValidatorSettings)] = Field(
        default_factory=ValidatorSettings, description="what the validator flags"
    )
    flow: Annotated[FlowSettings, _part("flow", FlowSettings)] = Field(
        default_factory=FlowSettings, description="look-backs of the flow metrics"
    )
    pipeline: Annotated[PipelineSettings, _part("pipeline", PipelineSettings)] = Field(
        default_factory=PipelineSettings, description="look-backs and limits of the features"
    )
    rules: Annotated[RulesSettings, _part("rules", RulesSettings)] = Field(
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
            _PartVariables(settings_cls, os.environ),
            dotenv_settings,
            _PartVariables(settings_cls, in_file),
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
        return (Path(path).is_dir() and _recorded_days(Path(path), self.market)) or Path(path)

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
                path = _data_folder(path) / SOURCE_FILE
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


def recording_name(path: Path) -> str:
    """A recording's name without its extensions: ``x/usdm_20240718.ndjson.gz`` → ``usdm_20240718``.

    Recorded days have that of their data folder, a day alone with its date: ``data-2024-07-18``.
    """
    place = path.resolve()
    if not place.is_dir() or _data_folder(place) == place:
        return place.name.split(".", 1)[0] or place.name
    folder = _data_folder(place)
    name = folder.parent.name if folder.name == Market.SPOT.value else folder.name
    return f"{name}-{place.name}" if _DAY.fullmatch(place.name) else name


def _data_folder(days: Path) -> Path:
    """The data folder, of the market, that recorded days lie in; other folders are their own."""
    place = days.resolve()
    stream = place.parents[1] if _DAY.fullmatch(place.name) else place
    return stream.parent.parent if stream.name == "stream" else place


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
