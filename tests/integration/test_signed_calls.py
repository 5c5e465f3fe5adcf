"""Signed calls of the REST client against the simulated exchange."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest
from structlog.testing import capture_logs

from binance_api.errors import ClockSkew, ExchangeError, InvalidKey
from binance_api.rest import RestClient, RestSettings
from binance_api.signing import ApiKey
from domain.market import Market
from simulator.server import SimulatedExchange, SimulatorSettings

GOOD = ApiKey("simulated-key", "simulated-secret")


def ask(key: ApiKey | None, *, calls: int = 1, market: Market = Market.UM, **clocks):
    """The last reply (or error) of so many calls, and the client's statistics."""

    async def main():
        settings = SimulatorSettings(market=market, start_ms=1_721_347_200_000)
        async with SimulatedExchange(settings) as exchange:
            rest = RestSettings(market=market, base_url=exchange.rest_url, api_key=key)
            async with RestClient(rest, **clocks) as client:
                for _ in range(calls):
                    try:
                        outcome = await client.account_status()
                    except ExchangeError as error:
                        outcome = error
                return outcome, client.statistics()

    return asyncio.run(main())


@pytest.mark.parametrize("market", Market)
def test_a_good_key_is_accepted_whatever_our_clock_says(market: Market) -> None:
    reply, _ = ask(GOOD, market=market)  # the exchange's clock shows 2024
    assert reply.value.can_trade is False
    assert reply.endpoint == ("/fapi/v2/account" if market is Market.UM else "/api/v3/account")


@pytest.mark.parametrize(
    ("key", "code"),
    [
        (ApiKey("not/a/key", "simulated-secret"), -2014),
        (ApiKey("unknown", "simulated-secret"), -2015),
        (ApiKey("simulated-key", "wrong"), -1022),
    ],
)
def test_a_wrong_key_or_signature_is_refused_with_the_exchanges_code(key, code: int) -> None:
    error, counts = ask(key)
    assert isinstance(error, InvalidKey)
    assert error.code == code
    assert counts["requests"] == 2  # the time and the call: a refusal is not tried again


class SteppingClock:
    """A wall clock that is set back by an hour after the first signed call."""

    def __init__(self) -> None:
        self.shift_ns = 0

    def __call__(self) -> int:
        return time.time_ns() + self.shift_ns


def test_a_clock_that_was_set_is_learnt_again_and_the_call_goes_through() -> None:
    clock = SteppingClock()

    async def main():
        async with SimulatedExchange(SimulatorSettings()) as exchange:
            rest = RestSettings(base_url=exchange.rest_url, api_key=GOOD)
            async with RestClient(rest, wall_ns=clock) as client:
                await client.account_status()
                clock.shift_ns = -3_600 * 10**9
                requests = client.statistics()["requests"]
                reply = await client.account_status()
                return reply, client.statistics()["requests"] - requests, client.clock_offset_ms

    reply, requests, offset_ms = asyncio.run(main())
    assert reply.value.can_trade is False
    assert requests == 3  # refused with -1021, the time, and once more
    assert abs(offset_ms - 3_600_000) < 5_000


def test_a_clock_that_runs_away_is_reported_after_one_more_try() -> None:
    hours = iter(range(1_000))

    def wall_ns() -> int:
        return time.time_ns() - next(hours) * 3_600 * 10**9

    error, counts = ask(GOOD, wall_ns=wall_ns)
    assert isinstance(error, ClockSkew)
    assert error.code == -1021
    assert counts["requests"] == 4


def test_a_signed_call_without_a_key_is_our_own_error() -> None:
    with pytest.raises(ValueError, match="needs an API key"):
        ask(None)


def test_no_log_and_no_error_shows_a_key_or_a_secret() -> None:
    canaries = ("canary-key-4711", "canary-secret-4711")
    with capture_logs() as lines:
        error, counts = ask(ApiKey(*canaries))
    settings = RestSettings(api_key=ApiKey(*canaries))
    shown = f"{lines} {error!r} {error} {error.__dict__} {counts} {settings!r}"
    shown += repr(msgspec.structs.asdict(settings))
    assert not any(canary in shown for canary in canaries)
