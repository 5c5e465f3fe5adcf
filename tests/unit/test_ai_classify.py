from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai.bounded_reply import ReplyTooLarge
from ai.classify import LONGEST_WAIT_S, classify, redact, retry_after_s
from ai.contract import Outcome

NOW_S = 1_763_700_000.0  # 2025-11-21 04:40:00 UTC
IN_90_S = "Fri, 21 Nov 2025 04:41:30 GMT"


class APIError(Exception):
    def __init__(self, message: str = "", **given: Any) -> None:
        super().__init__(message)
        for name, value in given.items():
            setattr(self, name, value)


@pytest.mark.parametrize(
    ("headers", "message", "seconds"),
    [
        ({"Retry-After": "3"}, "", 3),
        ({"retry-after": " 2.5 "}, "", 2.5),
        ({"Retry-After": "0"}, "", 0),
        ({"Retry-After": "2m59.56s"}, "", 179.56),
        ({"Retry-After": IN_90_S}, "", 90),
        (
            {"Retry-After": IN_90_S, "Date": "Fri, 21 Nov 2025 04:41:00 GMT"},
            "",
            30,
        ),  # a wrong clock here
        ({"Retry-After": "Fri, 21 Nov 2025 04:00:00 GMT"}, "", 0),  # past
        ({"retry-after-ms": "1500", "retry-after": "9"}, "", 1.5),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "7.66s"}, "", 7.66),
        (
            {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m26.4s"},
            "",
            86.4,
        ),
        (
            {
                "x-ratelimit-remaining-requests": "5",
                "x-ratelimit-reset-requests": "23h",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "60ms",
            },
            "",
            0.06,
        ),
        ({}, "Limit 8000, Used 7900. Please try again in 7.66s. Visit", 7.66),
        ({}, "Please try again in 1m2.5s.", 62.5),
        ({"Retry-After": "12"}, "Please try again in 7.66s", 12),
        ({"Retry-After": "-5"}, "", 0),
        ({"Retry-After": "1e12"}, "", LONGEST_WAIT_S),
        ({"Retry-After": "NaN"}, "", None),
        ({"Retry-After": "inf"}, "", None),
        ({"Retry-After": "soon"}, "", None),
        ({"Retry-After": ""}, "", None),
        ({}, "", None),
    ],
)
def test_the_wait_a_provider_asks_for_is_read_in_every_form(
    headers: dict[str, str], message: str, seconds: float | None
) -> None:
    found = retry_after_s(headers, message, NOW_S)
    assert found == (None if seconds is None else pytest.approx(seconds))


@given(
    st.dictionaries(st.sampled_from(["retry-after", "date", "retry-after-ms"]), st.text()),
    st.text(),
)
def test_no_header_breaks_it(headers: dict[str, str], message: str) -> None:
    found = retry_after_s(headers, message, NOW_S)
    assert found is None or 0 <= found <= LONGEST_WAIT_S


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, None, Outcome.BAD_REQUEST),
        (400, "json_validate_failed", Outcome.SCHEMA_FAILED),
        (400, "model_decommissioned", Outcome.UNKNOWN_MODEL),
        (400, "content_filter", Outcome.CONTENT_FILTERED),
        (400, "DataInspectionFailed", Outcome.CONTENT_FILTERED),
        (401, "invalid_api_key", Outcome.UNAUTHORIZED),
        (402, None, Outcome.UNAUTHORIZED),
        (403, None, Outcome.UNAUTHORIZED),
        (403, "model_not_found", Outcome.UNKNOWN_MODEL),
        (404, None, Outcome.UNKNOWN_MODEL),
        (408, None, Outcome.TIMEOUT),
        (409, None, Outcome.BAD_REQUEST),
        (413, "rate_limit_exceeded", Outcome.RATE_LIMITED),
        (413, None, Outcome.BAD_REQUEST),
        (422, None, Outcome.BAD_REQUEST),
        (429, None, Outcome.RATE_LIMITED),
        (429, "insufficient_quota", Outcome.RATE_LIMITED),
        (498, None, Outcome.SERVER_ERROR),
        (500, None, Outcome.SERVER_ERROR),
        (503, None, Outcome.SERVER_ERROR),
        (529, None, Outcome.SERVER_ERROR),
        (301, None, Outcome.BAD_REQUEST),
    ],
)
def test_every_status_means_something(status: int, code: str | None, expected: Outcome) -> None:
    error = APIError("no", status_code=status, body={"error": {"code": code, "message": "no"}})
    failure = classify(error)
    assert failure.outcome is expected
    assert failure.status == status


def test_what_the_model_wrote_although_it_missed_the_schema_is_kept() -> None:
    body = {"error": {"code": "json_validate_failed", "failed_generation": '{"a": 1}'}}
    assert classify(APIError(status_code=400, body=body)).generation == '{"a": 1}'
    odd = {"error": {"code": "json_validate_failed", "failed_generation": {"a": 1}}}
    assert classify(APIError(status_code=400, body=odd)).generation is None


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (ConnectionResetError(104, "reset by peer"), Outcome.CONNECTION_RESET),
        (ConnectionRefusedError(111, "refused"), Outcome.NOT_CONNECTED),
        (OSError("no route"), Outcome.NOT_CONNECTED),
        (TimeoutError(), Outcome.TIMEOUT),
        (ReplyTooLarge("more"), Outcome.REPLY_TOO_LARGE),
        (ValueError("odd"), Outcome.FAILED),
    ],
)
def test_the_cause_beneath_an_sdk_s_exception_decides(cause: Exception, expected: Outcome) -> None:
    try:
        try:
            raise cause
        except Exception as error:
            raise APIError("Connection error.") from error
    except APIError as error:
        failure = classify(error)
    assert failure.outcome is expected


def test_odd_attributes_break_nothing() -> None:
    for attributes in (
        {"status_code": "x", "body": 7, "headers": 3},
        {"status_code": None, "body": {"error": "text"}, "response": None},
        {
            "status_code": 429,
            "body": {"error": {"message": 5, "code": 7}},
            "headers": {"Retry-After": 3},
        },
    ):
        assert classify(APIError("odd", **attributes)).error.startswith("APIError: ")


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: gsk-canary-7f3a91c2d4. Check",
        'header "Authorization: Bearer gsk-canary-7f3a91c2d4"',
        "sk-proj-abcdefgh**********wxyz is wrong",
        "b'Bearer abc'",
    ],
)
def test_no_key_gets_into_an_error(text: str) -> None:
    error = classify(APIError(text), ("gsk-canary-7f3a91c2d4",)).error
    assert "canary" not in error
    assert "abc" not in error
    assert "***" in error


def test_a_short_word_used_as_a_local_server_s_key_is_not_cut_out_of_texts() -> None:
    assert redact("no 1 a none", ("1", "a", "no")) == "no 1 a none"


def test_an_error_is_one_short_line() -> None:
    error = classify(APIError("x\n" * 5_000)).error
    assert len(error) <= 300
    assert "\n" not in error
