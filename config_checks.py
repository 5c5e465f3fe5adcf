"""What a single setting's text may be: checks and readings for the fields of ``config.Settings``.

A value as given → the value as used, or ``ValueError`` with words that follow the field's name; never
the value itself, which may be a secret.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr

from ai.settings import DEFAULT_MODELS
from domain.market import Market
from lake.recorded_days import recorded_days

DAY_S = 86_400
MAX_SYMBOLS = 1_024  # one trade socket vouches for all symbols; a connection carries 1,024 streams
ALERT_CHANNELS = ("console", "file", "webhook", "apprise")
_PRICE = re.compile(r"\S+=\d+(\.\d+)?/\d+(\.\d+)?")
# Binance symbols are upper-case letters and digits, dated futures add _YYMMDD; some listings are not ASCII.
_SYMBOL = re.compile(r"[^\W_a-z]{1,30}(_\d{6})?")


def split_symbols(value: object) -> object:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list | tuple):
        return tuple(dict.fromkeys(str(part).upper() for part in value))
    return value


def split_names(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def check_providers(names: tuple[str, ...]) -> tuple[str, ...]:
    if not set(names) <= DEFAULT_MODELS.keys():  # never the value: a key may have slipped in here
        raise ValueError(f"can only name {', '.join(DEFAULT_MODELS)}")
    if len(set(names)) < len(names):
        raise ValueError("names a provider twice")
    return names


def check_prices(prices: tuple[str, ...]) -> tuple[str, ...]:
    for price in prices:
        if not _PRICE.fullmatch(price):
            raise ValueError("must look like MODEL=IN/OUT, e.g. qwen3:8b=0/0")
    return prices


def check_symbols(symbols: tuple[str, ...]) -> tuple[str, ...]:
    if not symbols:
        raise ValueError("name at least one symbol, e.g. BTCUSDT,ETHUSDT")
    if len(symbols) > MAX_SYMBOLS:
        raise ValueError(f"at most {MAX_SYMBOLS} symbols in one run (streams of one connection)")
    for symbol in symbols:
        if not _SYMBOL.fullmatch(symbol):
            raise ValueError("a symbol is letters and digits, e.g. BTCUSDT (comma between two)")
    return symbols


def port_or_off(value: object) -> object:
    return None if isinstance(value, str) and value.strip().lower() == "off" else value


def check_broker(url: str | None) -> str | None:
    if url is None:
        return None
    parts = urlsplit(url)
    if parts.scheme not in {"nats", "tls"} or not parts.hostname or parts.path.strip("/"):
        raise ValueError("must look like nats://host:4222 or tls://host:4222")
    if parts.username or parts.password:
        raise ValueError("carries a secret: set EVENT_BROKER_TOKEN instead")
    return url


def check_shard(shard: str | None) -> str | None:
    if shard is None:
        return None
    found = re.fullmatch(r"(\d{1,4})/(\d{1,4})", shard)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError("must be NUMBER/OF, e.g. 2/4, from 1/4 to 4/4")
    return shard


def divides_a_day(seconds: int) -> int:
    if DAY_S % seconds:
        raise ValueError(f"must divide a day ({DAY_S} s) without remainder, e.g. 1, 5, 15, 60")
    return seconds


def check_time_of_day(text: str) -> str:
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", text):
        raise ValueError("must be a time of day such as 12:00 (UTC)")
    return text


def divides_a_minute(seconds: int) -> int:
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


def check_source(source: str) -> str:
    kind, _, path = source.partition(":")
    if source in {"binance", "demo"}:
        return source
    if kind != "replay" or not path:
        raise ValueError("must be binance, demo or replay:PATH")
    if not Path(path).exists():
        raise ValueError("names nothing that exists")
    if Path(path).is_dir() and all(recorded_days(Path(path), m) is None for m in Market):
        raise ValueError("names a folder, not a recording, and holds no raw/stream")
    return source


def check_channels(names: tuple[str, ...]) -> tuple[str, ...]:
    if any(name not in ALERT_CHANNELS for name in names):
        raise ValueError(f"must be names among {', '.join(ALERT_CHANNELS)}")
    return tuple(dict.fromkeys(names))


def check_webhook(url: SecretStr | None) -> SecretStr | None:
    if url is None or not url.get_secret_value():
        return None
    parts = urlsplit(url.get_secret_value())
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must look like https://host/path")
    return url


WebSocketHost = Annotated[str, _host_of("wss", "ws")]
HttpHost = Annotated[str, _host_of("https", "http")]
