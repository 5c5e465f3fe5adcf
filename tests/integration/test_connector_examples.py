"""The examples of docs/connector.md run as they stand, against the simulated exchange."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from binance_api.connector_frames import OHLCV_COLUMNS, TICK_COLUMNS
from binance_api.connector_settings import CONFIG_KEYS
from tests.connector_exchange import MINUTE_MS, ScriptedExchange, minute_bars, simulated

END = {
    "batch": "\nprint('rows', len(df), list(df.columns))",
    "streaming": "\nconn_rt.on_new_data(lambda df: conn_rt.close())",
}


def examples(repository: Path) -> list[str]:
    text = (repository / "docs" / "connector.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run(code: str, rest_url: str, ws_url: str, repository: Path, tmp_path: Path) -> str:
    hosts = {"BINANCE_REST_URL": rest_url, "BINANCE_WS_URL": ws_url}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, **hosts, "TMPDIR": str(tmp_path), "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_batch_example_collects_its_year(repository: Path, tmp_path: Path) -> None:
    (code,) = [code for code in examples(repository) if "conn.close" in code]
    new_year_ms = 1_640_995_200_000  # 2022-01-01
    exchange = ScriptedExchange(
        minute_bars(new_year_ms, 3_000), now_ms=new_year_ms + 3_000 * MINUTE_MS
    )
    with exchange.serving():
        out = run(code + END["batch"], exchange.rest_url, exchange.ws_url, repository, tmp_path)
    assert f"rows 3000 {list(OHLCV_COLUMNS)}" in out
    assert "connector.not_connected" in out or "connector.keys_refused" in out


def test_the_streaming_example_prints_what_is_new(repository: Path, tmp_path: Path) -> None:
    (code,) = [code for code in examples(repository) if "conn_rt" in code]
    with simulated(speed=120.0) as exchange:
        out = run(code + END["streaming"], exchange.rest_url, exchange.ws_url, repository, tmp_path)
    assert "New:" in out


@pytest.mark.parametrize("name", [*OHLCV_COLUMNS, *TICK_COLUMNS, *CONFIG_KEYS])
def test_every_column_and_key_is_documented(name: str, repository: Path) -> None:
    text = (repository / "docs" / "connector.md").read_text(encoding="utf-8")
    assert re.search(rf"[`, ]{name}[`, ]", text)
