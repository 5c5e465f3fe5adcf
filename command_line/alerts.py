"""The ``alerts`` verb: try the channels, see what fires, silence some of it."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from command_line.alerting import alert_channels, alert_folder
from command_line.running import run_loop
from command_line.verb import Parser, Verb, add_settings, logging_for, settings_of
from domain.errors import ConfigError, OrderFlowError

if TYPE_CHECKING:
    from alerts.channels import Channel
    from alerts.engine import Instance
    from alerts.notification import Notification
    from alerts.rules import RuleBook
    from alerts.service import SavedState
    from config import Settings

TEST_TIMEOUT_S = 30.0
_UNITS_S = {"m": 60, "h": 3_600, "d": 86_400}


def _add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("what", choices=("test", "list", "silence"), help="see above")
    add("name", nargs="?", help="silence: the alert's name, * and ? allowed")
    add("--symbol", help="silence: only of this symbol")
    add("--for", dest="span", metavar="SPAN", help="silence: so long, as 30m, 2h or 1d; default 1h")
    add("--comment", metavar="TEXT", help="silence: why")
    add("--end", metavar="ID", help="silence: end this one now")
    add("--channel", metavar="NAME", help="test: only this channel")
    add_settings(
        parser,
        first=("data_dir", "market", "source", "alert_rules", "alert_channels"),
        only=("log_level",),
    )


def _run(given: dict[str, Any]) -> int:
    what = given.pop("what")
    options = {
        name: given.pop(name, None)
        for name in ("name", "symbol", "span", "comment", "end", "channel")
    }
    allowed = {"test": {"channel"}, "list": set(), "silence": set(options) - {"channel"}}[what]
    for name, value in options.items():
        if value is not None and name not in allowed:
            raise ConfigError(f"{'--for' if name == 'span' else name}: not an option of {what}")
    settings = settings_of(given)
    with logging_for(settings):
        if what == "test":
            return run_loop(_test(settings, options["channel"]))
        if what == "list":
            return _list(settings)
        return _silence(settings, options)


# --- test ---


async def _test(settings: Settings, only: str | None) -> int:
    """Load the rules and send one notification through every channel."""
    from alerts.rules import load_rules

    rules = sum(rule.enabled for rule in load_rules(settings.alert_rules).rule)
    print(f"rules: {rules}")
    channels = [c for c in alert_channels(settings) if only in {None, c.name}]
    if not channels:
        raise ConfigError(
            "ALERT_CHANNELS (--alert-channels): none is set up"
            if only is None
            else f"--channel: {only} is not set up"
        )
    notification = _test_notification()
    failed = 0
    for channel in channels:
        problem = await _try(channel, notification)
        failed += problem is not None
        print(f"{channel.name}: {problem or 'delivered'}", flush=True)
    return 1 if failed else 0


async def _try(channel: Channel, notification: Notification) -> str | None:
    import asyncio

    try:
        async with asyncio.timeout(TEST_TIMEOUT_S), channel:
            await channel.send(notification)
    except TimeoutError:
        return "FAILED: no answer in time"
    except OrderFlowError as error:
        return f"FAILED: {error}"
    return None


def _test_notification() -> Notification:
    from alerts.notification import AlertItem, AlertState, Notification, NotificationKind
    from alerts.service import new_id

    now_ms = time.time_ns() // 1_000_000
    item = AlertItem(
        alert_id=new_id(),
        name="test",
        severity="info",
        labels={},
        message="This is a test; nothing happened.",
        state=AlertState.FIRING,
        started_ms=now_ms,
        at_ms=now_ms,
    )
    return Notification(
        key=new_id(),
        kind=NotificationKind.TEST,
        group="test",
        symbol=None,
        items=(item,),
        created_ms=now_ms,
    )


# --- list ---


def _list(settings: Settings) -> int:
    from alerts.rules import load_rules
    from alerts.service import read_state
    from alerts.silences import read_silences

    book, folder = load_rules(settings.alert_rules), alert_folder(settings)
    now_ms = time.time_ns() // 1_000_000
    _print_state(read_state(folder), folder)
    silences = [s for s in read_silences(folder) if s.until_ms > now_ms]
    print(f"\nsilences: {len(silences) or 'none'}")
    for silence in silences:
        about = f"{silence.name} {silence.symbol or 'all symbols'}"
        print(f"  {silence.silence_id}  {about} until {_utc(silence.until_ms)}  {silence.comment}")
    _print_rules(book)
    return 0


def _print_state(state: SavedState | None, folder: Path) -> None:
    if state is None:
        print(f"alerts: no run has alerted below {folder} yet")
        return
    instances = list(state.engine.instances.values())
    firing = [i for i in instances if i.fired_ms is not None]
    print(f"firing: {len(firing) or 'none'} (as of {_utc(state.engine.now_ms)})")
    for instance in firing:
        print(f"  {_utc(instance.fired_ms or 0)}  {instance.severity:<7} {_line(instance)}")
    pending = len(instances) - len(firing)
    print(f"pending: {pending or 'none'}")
    waiting: dict[str, int] = {}
    for entry in state.outbox:
        waiting[entry.channel] = waiting.get(entry.channel, 0) + 1
    shown = ", ".join(f"{name} {count}" for name, count in waiting.items())
    print(f"not delivered yet: {shown or 'none'}")


def _line(instance: Instance) -> str:
    told = "" if instance.is_announced else " (muted)"
    return f"{instance.name}{told}: {instance.message}"


def _print_rules(book: RuleBook) -> None:
    print(f"\nrules: {sum(rule.enabled for rule in book.rule)}")
    width = max(len(rule.name) for rule in book.rule)
    for rule in book.rule:
        off = "" if rule.enabled else " (off)"
        print(f"  {rule.name:<{width}}  {rule.severity:<7} {rule.group:<8} {rule.about}{off}")


# --- silence ---


def _silence(settings: Settings, options: dict[str, str | None]) -> int:
    from alerts.rules import load_rules
    from alerts.silences import add_silence, end_silences

    folder, now_ms = alert_folder(settings), time.time_ns() // 1_000_000
    if options["end"] is not None:
        if not end_silences(folder, [options["end"]], now_ms):
            raise ConfigError(f"--end: there is no silence {options['end']}")
        print(f"{options['end']} is over")
        return 0
    name = options["name"]
    if name is None:
        raise ConfigError("name: which alert? (python main.py alerts list shows the names)")
    symbol = options["symbol"]
    silence = add_silence(
        folder,
        name=name,
        symbol=None if symbol is None else symbol.upper(),
        until_ms=now_ms + _span_s(options["span"] or "1h") * 1_000,
        now_ms=now_ms,
        comment=options["comment"] or "",
    )
    about = f"{silence.name}, {silence.symbol or 'all symbols'}"
    print(f"{silence.silence_id}: {about}: silent until {_utc(silence.until_ms)}")
    rules = load_rules(settings.alert_rules).rule
    if not any(silence.covers(rule.name, silence.symbol, now_ms) for rule in rules):
        print(f"note: no rule is called {name} (python main.py alerts list shows the names)")
    return 0


def _span_s(text: str) -> int:
    match = re.fullmatch(r"(\d{1,4})([mhd])", text)
    if match is None or not int(match[1]):
        raise ConfigError("--for: must look like 30m, 2h or 1d")
    return int(match[1]) * _UNITS_S[match[2]]


def _utc(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


VERB = Verb(
    about=(
        "Alerts of a bot, whose data folder is named:\n"
        "  test     send a test through every channel that is set up\n"
        "  list     what fires, silences, what waits to be delivered, the rules\n"
        "  silence  do not tell of some alerts for a while; a running bot heeds it at once"
    ),
    examples=(
        "python main.py alerts test",
        "python main.py alerts list --source demo",
        "python main.py alerts silence whale_print --symbol BTCUSDT --for 2h",
        'python main.py alerts silence "*" --for 30m --comment "maintenance"',
        "python main.py alerts silence --end 1a2b3c4d",
    ),
    add_arguments=_add_arguments,
    run=_run,
)
