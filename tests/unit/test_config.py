"""Settings: precedence, bounds, and errors of one line that never show a value."""

from decimal import Decimal
from pathlib import Path

import pytest

from config import Settings, variables
from config_parts import PARTS
from domain.errors import ConfigError
from domain.market import Market
from lake.recorded_days import recording_name


@pytest.fixture(autouse=True)
def _isolated(clean_environment: pytest.MonkeyPatch) -> None:
    """Neither the machine's variables nor a ``.env`` of the repository reach these tests."""


def test_given_names_keep_their_defaults() -> None:
    settings = Settings()
    assert settings.ws_ping_interval == 20
    assert settings.ws_max_reconnect_attempts == 15
    assert settings.health_check_interval == 30
    assert settings.window_duration == 5
    assert settings.window_lateness_ms == 250
    assert settings.gap_repair_timeout == 3
    assert settings.ws_redundancy == 1
    assert settings.whale_notional == Decimal(100_000)
    assert settings.binance_ws_url == "wss://fstream.binance.com"
    assert settings.binance_rest_url == "https://fapi.binance.com"
    assert settings.symbols == ("BTCUSDT", "ETHUSDT")


def test_argument_beats_environment_beats_file_beats_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ["WS_REDUNDANCY", "WINDOW_LATENESS_MS", "WINDOW_DURATION", "VALIDATOR_JUMP_Z"]
    Path(".env").write_text(
        "WINDOW_LATENESS_MS=1\nWINDOW_DURATION=15\nWS_REDUNDANCY=2\n"
        "VALIDATOR_JUMP_Z=3\nVALIDATOR_JUMP_BPS=4\nSOMETHING_ELSE=x\n",
        encoding="utf-8",
    )
    monkeypatch.setenv(names[1], "2")
    monkeypatch.setenv(names[2], "30")
    monkeypatch.setenv(names[3], "5")
    settings = Settings(window_duration="60")
    assert settings.window_duration == 60
    assert settings.window_lateness_ms == 2
    assert settings.ws_redundancy == 2
    assert settings.validator.jump_z == 5
    assert settings.validator.jump_bps == 4
    assert Settings(validator={"VALIDATOR_JUMP_Z": 6}).validator.jump_z == 6
    assert settings.ws_ping_interval == 20


def test_symbols_are_split_upper_cased_and_unique() -> None:
    assert Settings(symbols="btcusdt, ethusdt,BTCUSDT").symbols == ("BTCUSDT", "ETHUSDT")
    assert Settings(symbols=["BTCUSDT_261225"]).symbols == ("BTCUSDT_261225",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("symbols", ","),
        ("symbols", "BTC/USDT"),
        ("symbols", "BTCUSDT ETHUSDT"),
        ("market", "cm"),
        ("source", "file:x"),
        ("source", "replay:"),
        ("source", "replay:absent.ndjson"),
        ("source", "replay:."),
        ("duration", "0"),
        ("duration", "nan"),
        ("headless", "perhaps"),
        ("log_level", "LOUD"),
        ("window_duration", "7"),
        ("window_duration", "0"),
        ("window_duration", "172800"),
        ("window_lateness_ms", "-1"),
        ("gap_repair_timeout", "inf"),
        ("whale_notional", "NaN"),
        ("whale_notional", "0"),
        ("ws_ping_interval", "0"),
        ("ws_redundancy", "3"),
        ("ws_rotation_minute", "60"),
        ("ws_max_reconnect_attempts", "-1"),
        ("binance_ws_url", "https://fstream.binance.com"),
        ("binance_ws_url", "wss://host/ws"),
        ("binance_ws_url", "wss://"),
        ("binance_rest_url", "https://user:pass@host"),
        ("binance_rest_url", "http://127.0.0.1:99999"),
    ],
)
def test_a_bad_value_is_one_line_naming_variable_and_flag(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name.upper(), value)
    with pytest.raises(ConfigError) as raised:
        Settings()
    text = str(raised.value)
    assert text.startswith(f"{name.upper()} (--{name.replace('_', '-')}): ")
    assert "\n" not in text
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("value", ["-1", "nan", "many", "inf"])
def test_a_bad_threshold_names_its_variable(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VALIDATOR_JUMP_Z", value)
    with pytest.raises(ConfigError, match=r"^VALIDATOR_JUMP_Z: must be a number ≥ 0$"):
        Settings()


def test_thresholds_inside_a_part_have_variables_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOW_BURST_LIMIT", "4")
    monkeypatch.setenv("flow_participant_edges", "10, 20.5")
    monkeypatch.setenv("PIPELINE_ENRICH_WALL_MULTIPLE", "9.5")
    settings = Settings()
    assert settings.flow.burst.limit == 4
    assert settings.flow.burst.slack == 0.5
    assert settings.flow.participant_edges == (Decimal(10), Decimal("20.5"))
    assert settings.pipeline.enrich.wall_multiple == 9.5


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FLOW_PARTICIPANT_EDGES", "10,x", "FLOW_PARTICIPANT_EDGES: must be numbers"),
        ("FLOW_PARTICIPANT_EDGES", "20,10", "FLOW_*: participant_edges must ascend"),
        ("FLOW_BURST_WARMUP_S", "1.5", "FLOW_BURST_WARMUP_S: must be a whole number"),
        ("FLOW", "x", "FLOW_*: is set by one variable per number"),
    ],
)
def test_bad_thresholds_inside_a_part_are_named(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as raised:
        Settings()
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_what_another_setting_decides_is_no_variable_of_a_part() -> None:
    assert "WHALE_NOTIONAL" in variables()
    assert "FLOW_WHALE_NOTIONAL" not in variables()
    assert "PIPELINE_WINDOW_MS" not in variables()


def test_values_never_appear_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    canary = "canary-4711"
    for name in variables():
        monkeypatch.setenv(name, canary)
    with pytest.raises(ConfigError) as raised:
        Settings()
    assert canary not in str(raised.value)
    assert canary not in str(raised.value.__context__)
    assert raised.value.__cause__ is None


def test_unknown_variables_are_left_alone_and_unknown_arguments_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WINDOW_DURATIONS", "7")
    Path(".env").write_text("UNKNOWN=1\nVALIDATOR_UNKNOWN=1\n", encoding="utf-8")
    Settings()
    with pytest.raises(ConfigError, match="window_durations: unknown setting"):
        Settings(window_durations=7)


def test_an_unreadable_env_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"^\.env: is not UTF-8 text$"):
        Settings()


def test_an_empty_variable_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WS_ROTATION_MINUTE", "")
    monkeypatch.setenv("VALIDATOR_JUMP_Z", "")
    assert Settings().ws_rotation_minute is None
    assert Settings().validator.jump_z == 10


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().window_duration = 7


def test_the_data_folder_follows_the_source(tmp_path: Path) -> None:
    recording = tmp_path / "usdm_20240718.ndjson.gz"
    recording.touch()
    assert Settings().data_root == Path("data")
    assert Settings(source="demo").data_root == Path("data-demo")
    replayed = Settings(source=f"replay:{recording}")
    assert replayed.data_root == Path("data-replay/usdm_20240718")
    assert replayed.replay_path == recording
    assert Settings(source="demo", data_dir="x").data_root == Path("x")


def test_a_recording_is_named_without_extensions(tmp_path: Path) -> None:
    assert recording_name(tmp_path / "a.ndjson.gz") == "a"
    assert recording_name(tmp_path / "days") == "days"
    assert recording_name(tmp_path / ".hidden") == ".hidden"


def recorded_days(data_folder: Path, date: str = "2024-07-18") -> Path:
    """The stream folder of a data folder in which a recorder wrote one day."""
    stream = data_folder / "raw" / "stream"
    (stream / "trades" / date).mkdir(parents=True)
    (stream / "depth" / date).mkdir(parents=True)
    return stream


def test_recorded_days_are_found_below_a_data_folder_by_market(tmp_path: Path) -> None:
    futures, spot = recorded_days(tmp_path / "mine"), recorded_days(tmp_path / "mine" / "spot")
    source = f"replay:{tmp_path / 'mine'}"
    assert Settings(source=source).replay_path == futures
    assert Settings(source=source, market="spot").replay_path == spot
    day = futures / "depth" / "2024-07-18"
    for path in (futures, day):
        assert Settings(source=f"replay:{path}").replay_path == path
    names = {path: Settings(source=f"replay:{path}").data_root.name for path in (futures, day)}
    assert names == {futures: "mine", day: "mine-2024-07-18"}
    assert Settings(source=source, market="spot").data_root == Path("data-replay/mine")


def test_recorded_days_that_grow_stay_themselves(tmp_path: Path) -> None:
    stream = recorded_days(tmp_path / "mine")
    (tmp_path / "mine" / "source.json").write_text('{"market": "um", "host": "a"}')
    settings = Settings(source=f"replay:{tmp_path / 'mine'}")
    described = settings.source_description
    assert described["recording"] == "mine"
    (stream / "trades" / "2024-07-19").mkdir()
    assert settings.source_description == described
    assert Settings(source=f"replay:{stream}").source_description == described
    day = Settings(source=f"replay:{stream / 'trades' / '2024-07-19'}").source_description
    assert day["recording"] == "mine-2024-07-19"
    (tmp_path / "mine" / "source.json").write_text('{"market": "um", "host": "b"}')
    assert settings.source_description != described


def test_addresses_follow_the_market() -> None:
    spot = Settings(market="spot", binance_spot_rest_url="http://127.0.0.1:8080/")
    assert spot.market is Market.SPOT
    assert spot.ws_url == "wss://stream.binance.com:9443"
    assert spot.rest_url == "http://127.0.0.1:8080"
    assert Settings().ws_url == "wss://fstream.binance.com"


def test_every_variable_is_described_and_in_the_reference(repository: Path) -> None:
    reference = (repository / "docs" / "reference.md").read_text(encoding="utf-8")
    for name, (default, description) in variables().items():
        assert description, name
        assert f"| `{name}` | {f'`{default}`' if default else ''} | {description} |" in reference


def test_every_part_has_a_field_of_its_name() -> None:
    for name, part in PARTS.items():
        assert isinstance(getattr(Settings(), name), part)


def test_what_a_folder_holds_names_host_seed_or_recording(tmp_path: Path) -> None:
    assert Settings().source_description == {"market": "um", "host": "fstream.binance.com"}
    assert Settings(source="demo", market="spot").source_description == {
        "market": "spot",
        "seed": 1,
    }
    one, other = tmp_path / "one" / "day.ndjson", tmp_path / "other" / "day.ndjson"
    for path, text in ((one, "1 {}\n" * 2_000), (other, "2 {}\n" * 2_000)):
        path.parent.mkdir()
        path.write_text(text)
    described = Settings(source=f"replay:{one}").source_description
    assert described["recording"] == "day.ndjson"
    assert described != Settings(source=f"replay:{other}").source_description
    with one.open("a") as file:
        file.write("3 {}\n")
    assert Settings(source=f"replay:{one}").source_description == described
