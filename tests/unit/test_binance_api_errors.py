"""Status, body and headers → the typed error."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from binance_api.errors import (
    BadReply,
    Banned,
    ClockSkew,
    ExchangeError,
    Forbidden,
    InvalidKey,
    InvalidSymbol,
    RateLimited,
    RequestRefused,
    Unreachable,
    error_from_reply,
)

NOW_MS = 1_787_071_500_000


def error_of(status, body=b"", retry_after=None):
    return error_from_reply(
        status, body, endpoint="/fapi/v1/x", retry_after=retry_after, now_ms=NOW_MS
    )


def body_of(code, msg="text"):
    return json.dumps({"code": code, "msg": msg}).encode()


@pytest.mark.parametrize(
    ("status", "body", "kind", "exit_code"),
    [
        (400, body_of(-1121, "Invalid symbol."), InvalidSymbol, 2),
        (
            400,
            body_of(-1100, "Illegal characters found in parameter 'symbol'; …"),
            InvalidSymbol,
            2,
        ),
        (
            400,
            body_of(-1100, "Illegal characters found in parameter 'limit'; …"),
            RequestRefused,
            1,
        ),
        (400, body_of(-4166), RequestRefused, 1),
        (400, body_of(-1021), ClockSkew, 1),
        (401, body_of(-2014), InvalidKey, 2),
        (400, body_of(-2015), InvalidKey, 2),
        (403, b"<html>WAF</html>", Forbidden, 3),
        (451, b"", Forbidden, 3),
        (408, body_of(-1007), Unreachable, 3),
        (500, b"oops", Unreachable, 3),
        (503, body_of(-1008), Unreachable, 3),
        (429, b"", RateLimited, 1),
        (400, body_of(-1003), RateLimited, 1),
        (418, b"", Banned, 1),
        (404, b"", RequestRefused, 1),
        (302, b"", BadReply, 1),
        (200, body_of(-1121), InvalidSymbol, 2),
    ],
)
def test_each_refusal_has_its_own_error(status, body, kind, exit_code):
    error = error_of(status, body)
    assert type(error) is kind
    assert (error.status, error.endpoint, error.exit_code) == (status, "/fapi/v1/x", exit_code)


def test_the_message_names_endpoint_code_and_text():
    error = error_of(400, body_of(-1121, "Invalid symbol."))
    assert (error.code, error.msg) == (-1121, "Invalid symbol.")
    assert str(error) == "/fapi/v1/x: Invalid symbol. (400, -1121)"


def test_a_foreign_message_is_cut_and_cannot_steer_the_terminal():
    error = error_of(400, body_of(-1000, "\x1b[2J" + "x" * 5_000))
    assert "\x1b" not in str(error)
    assert len(str(error)) < 400


def test_retry_after_tells_how_long_to_wait():
    error = error_of(429, retry_after="17")
    assert isinstance(error, RateLimited)
    assert error.retry_after_s == 17.0


def test_without_retry_after_a_429_waits_for_the_next_minute():
    error = error_of(429)
    assert isinstance(error, RateLimited)
    assert error.retry_after_s == 60.0 - NOW_MS % 60_000 / 1_000


def test_a_ban_takes_its_end_from_the_header_or_from_the_text_or_is_two_minutes():
    text = body_of(-1003, "Way too many requests; IP(1.2.3.4) banned until 1787071659262. …")
    by_header, by_text, by_default = error_of(418, text, "7"), error_of(418, text), error_of(418)
    assert isinstance(by_header, Banned)
    assert isinstance(by_text, Banned)
    assert isinstance(by_default, Banned)
    assert by_header.until_ms == NOW_MS + 7_000
    assert by_text.until_ms == 1_787_071_659_262
    assert by_default.retry_after_s == 120.0


def test_a_recorded_body_of_every_kind_is_understood(recordings_dir):
    kinds = {-1121: InvalidSymbol, -2014: InvalidKey, -4088: RequestRefused}
    lines = (recordings_dir / "rest" / "error_bodies.jsonl").read_text().splitlines()
    assert len(lines) == 5
    for line in map(json.loads, lines):
        error = error_of(line["status"], json.dumps(line["body"]).encode())
        limited = Banned if line["status"] == 418 else RateLimited
        assert type(error) is kinds.get(line["body"]["code"], limited)
        assert error.code == line["body"]["code"]


@given(status=st.integers(100, 599), body=st.binary(max_size=200), header=st.none() | st.text())
def test_any_reply_becomes_an_error_with_a_bounded_wait(status, body, header):
    error = error_of(status, body, header)
    assert isinstance(error, ExchangeError)
    if isinstance(error, RateLimited):
        assert 0 <= error.retry_after_s <= 3 * 86_400
