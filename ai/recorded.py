"""Answers of the journal, for running a past day again at no cost: ``--ai replay``.

``calls-YYYY-MM-DD.jsonl`` → ``CallRecord`` by context hash → the same ``Signal`` as when it was made.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ai.contract import Outcome
from ai.journal import CallRecord, calls_file
from ai.prompt import Prompt
from ai.reply import Reading
from domain.events import Signal
from lake.atomic import storage_error


class RecordedAnswers:
    """Answers of the journal by context hash, one day's file at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._day: Path | None = None
        self._answers: dict[str, CallRecord] = {}
        self._windows: set[tuple[str, int]] = set()
        self.unreadable_lines = 0

    def has_window(self, symbol: str, window_end_ms: int) -> bool:
        """Whether anything was answered about this window, so that its prompt is worth building."""
        path = calls_file(self._folder, window_end_ms)
        if path != self._day:
            self._load(path)
        return (symbol, window_end_ms) in self._windows

    def find(self, context_hash: str) -> CallRecord | None:
        """The answer to a context of the day last looked at."""
        return self._answers.get(context_hash)

    def _load(self, path: Path) -> None:
        self._day, self._answers, self._windows = path, {}, set()
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise storage_error("cannot read", path, error) from error
        for line in content.split(b"\n"):
            if not line.strip():
                continue
            try:
                record = msgspec.json.decode(line, type=CallRecord)
            except msgspec.DecodeError:
                self.unreadable_lines += 1
                continue
            if record.outcome is Outcome.ANSWERED:
                self._answers[record.context_hash] = record
                self._windows.add((record.symbol, record.window_end_ms))


def signal_of(reading: Reading, record: CallRecord, prompt: Prompt) -> Signal:
    """The signal of an answered attempt: the same one whenever it is made from the same record."""
    window, context_hash = prompt.window_end_ms, prompt.context_hash
    return Signal(
        signal_id=f"{record.provider}:{prompt.symbol}:{window}:{context_hash}",
        symbol=prompt.symbol,
        window_end_ms=window,
        decided_at_ms=record.decided_at_ms or window,
        price=prompt.price,
        action=reading.action,
        confidence=reading.confidence,
        p_up=reading.p_up,
        p_flat=reading.p_flat,
        p_down=reading.p_down,
        horizon_s=reading.horizon_s,
        rationale=reading.rationale,
        evidence=reading.evidence,
        invalidation=reading.invalidation,
        source=record.provider,
        model=record.model,
        template_version=prompt.template.version,
        latency_ms=record.analysis_ms,
        prompt_tokens=record.prompt_tokens,
        completion_tokens=record.completion_tokens,
        cost_usd=record.cost_usd,
        context_hash=context_hash,
    )
