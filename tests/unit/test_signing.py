from __future__ import annotations

from urllib.parse import urlencode

import pytest

from binance_api.signing import ApiKey

# The example of https://developers.binance.com/docs/binance-spot-api-docs/rest-api/endpoint-security-type
KEY = "vmPUZE6mv9SD5VNHk4HlWFsOr6aKE2zvsw0MuIgwCIPy6utIco14y7Ju91duEh8A"
SECRET = "NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j"  # noqa: S105 - published
QUERY = (
    "symbol=LTCBTC&side=BUY&type=LIMIT&timeInForce=GTC&quantity=1&price=0.1&recvWindow=5000"
    "&timestamp=1499827319559"
)
SIGNATURE = "c8db56825ae71d6d79447849e617115f4a920fa2acdcab2b053c4b2838bd6b71"


def test_the_signature_is_that_of_the_documented_example() -> None:
    assert ApiKey(KEY, SECRET).signature(QUERY) == SIGNATURE


def test_a_signed_query_ends_with_the_signature_of_everything_before_it() -> None:
    signed = ApiKey(KEY, SECRET).signed({"symbol": "BTCUSDT"}, 1_499_827_319_559)
    *timed, (last, signature) = signed.items()
    assert last == "signature"
    assert timed == [
        ("symbol", "BTCUSDT"),
        ("recvWindow", 5000),
        ("timestamp", 1_499_827_319_559),
    ]
    assert signature == ApiKey(KEY, SECRET).signature(urlencode(timed))


def test_a_key_shows_nothing_of_itself() -> None:
    key = ApiKey(KEY, SECRET)
    assert KEY[:6] not in f"{key!r} {key}"
    assert SECRET[:6] not in f"{key!r} {key}"
    assert not hasattr(key, "__dict__")


def test_a_key_that_cannot_be_a_header_is_refused_without_showing_it() -> None:
    with pytest.raises(ValueError, match="api_key") as refused:
        ApiKey("sécret\nx", "y")
    assert "cret" not in str(refused.value)
