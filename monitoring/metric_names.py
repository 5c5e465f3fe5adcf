"""Which statistic becomes which metric: names, units and labels by Prometheus' conventions.

Data only. A pattern is matched against the flat name ``part.key``; its groups are the labels, all from
small fixed sets (routes, sockets' ends, endpoints, providers, outcomes, stages): no label of symbols,
ids or texts.
"""

from __future__ import annotations

import re

import msgspec

PREFIX = "orderflow_"


class Metric(msgspec.Struct, frozen=True):
    """One metric and where its samples come from.

    Attributes:
        name: Without ``PREFIX``; ends with its unit, and ``_total`` exactly if it only grows.
        about: Its help text.
        pattern: Matches statistics' names; named groups are labels.
        scale: Statistic × scale = metric, in base units.
        state_label: The statistic is a text: the sample is 1 with that text as this label.
    """

    name: str
    about: str
    pattern: re.Pattern[str]
    scale: float = 1.0
    state_label: str | None = None

    @property
    def is_counter(self) -> bool:
        """Whether it only grows."""
        return self.name.endswith("_total")


def _metric(
    name: str, about: str, pattern: str, *, scale: float = 1.0, state_label: str | None = None
) -> Metric:
    return Metric(name, about, re.compile(pattern), scale, state_label)


_MS = 0.001

METRICS: tuple[Metric, ...] = (
    # --- feed ---
    _metric(
        "feed_messages_total", "Frames received.", r"connection\.(?P<route>trades|depth)\.frames"
    ),
    _metric(
        "feed_received_bytes_total",
        "Bytes of frames.",
        r"connection\.(?P<route>trades|depth)\.bytes",
    ),
    _metric("feed_sockets", "Open sockets.", r"connection\.(?P<route>trades|depth)\.sockets"),
    _metric(
        "feed_data_age_seconds",
        "Time since the last frame.",
        r"connection\.(?P<route>trades|depth)\.data_age_s",
    ),
    _metric(
        "feed_reconnect_attempts",
        "Failed attempts in a row.",
        r"connection\.(?P<route>trades|depth)\.attempts",
    ),
    _metric(
        "feed_disconnects_total",
        "Connections that ended, by cause.",
        r"connection\.(?P<route>trades|depth)\.ended\.(?P<reason>\w+)",
    ),
    _metric(
        "feed_state",
        "1 for the state of the route's sockets.",
        r"connection\.(?P<route>trades|depth)\.state",
        state_label="state",
    ),
    _metric("feed_connect_attempts_total", "Connections tried.", r"connection\.connect_attempts"),
    _metric(
        "feed_connect_failures_total", "Connections that failed.", r"connection\.connect_failures"
    ),
    _metric("feed_rotations_total", "Planned replacements of sockets.", r"connection\.rotations"),
    _metric(
        "feed_probes_total",
        "Silent streams probed, by what was found.",
        r"connection\.probes_(?P<result>stalled|quiet|unknown)",
    ),
    _metric(
        "feed_clock_offset_seconds",
        "Receipt minus the exchange's event time: clock offset and latency.",
        r"(?:validator|recorder)\.clock_offset_ms",
        scale=_MS,
    ),
    _metric("feed_outages_total", "Times that no trade socket was up.", r"route\.outages"),
    # --- validation, gaps ---
    _metric("trades_total", "Trades taken in.", r"(?:validator|recorder)\.trades"),
    _metric(
        "frames_rejected_total",
        "Frames that could not be read or were contradictory.",
        r"flow\.rejected",
    ),
    _metric(
        "trades_duplicate_total", "Trades received again.", r"(?:validator|recorder)\.duplicates"
    ),
    _metric(
        "trades_conflict_total",
        "Ids received with another payload.",
        r"(?:validator|recorder)\.conflicts",
    ),
    _metric(
        "trades_suspect_total", "Trades flagged, by reason.", r"validator\.suspect_(?P<reason>\w+)"
    ),
    _metric("missing_trade_ids", "Ids missing now.", r"(?:validator|recorder)\.missing_ids"),
    _metric(
        "repaired_trade_ids_total", "Missing ids that came from REST.", r"repair\.repaired_ids"
    ),
    _metric(
        "lost_trade_ids_total", "Missing ids that the exchange cannot give.", r"repair\.lost_ids"
    ),
    _metric("repair_failures_total", "Repair requests that failed.", r"repair\.failures"),
    _metric(
        "gaps",
        "Gaps of the ledger by state.",
        r"(?:storage\.ledger_|ledger\.)gaps_(?P<state>open|repaired|lost|expired)",
    ),
    _metric(
        "book_chain_breaks_total",
        "Breaks in the chain of depth updates.",
        r"validator\.chain_breaks",
    ),
    # --- windows, pipeline, storage ---
    _metric("windows_total", "Windows emitted.", r"windows\.emitted"),
    _metric(
        "windows_incomplete_total",
        "Windows analysed with trades missing.",
        r"analyzer\.incomplete_windows",
    ),
    _metric(
        "windows_retained_rows",
        "Trades kept for windows still open or repairable.",
        r"windows\.retained_rows",
    ),
    _metric(
        "pipeline_rows_total",
        "Rows through each stage.",
        r"pipeline\.(?P<stage>validation|enrich|context|features)_out",
    ),
    _metric(
        "pipeline_rejected_total",
        "Rows rejected by each stage.",
        r"pipeline\.(?P<stage>validation|enrich|context|features)_rejected",
    ),
    _metric("rows_written_total", "Feature rows on disk.", r"store\.rows_written"),
    _metric("rows_pending", "Feature rows not yet on disk.", r"store\.rows_pending"),
    _metric("flushes_total", "Times that feature rows were written.", r"store\.flushes"),
    _metric(
        "flush_failures_total",
        "Writes that failed and are tried again, by writer.",
        r"(?P<writer>store|storage|recorder)\.failed_flushes",
    ),
    _metric(
        "files_damaged_total", "Feature files set aside as unreadable.", r"store\.files_damaged"
    ),
    _metric("revised_rows_total", "Rows written again after a repair.", r"outputs\.revised_rows"),
    _metric(
        "recorder_rows_waiting", "Recorded frames not yet in Parquet.", r"recorder\.rows_waiting"
    ),
    _metric(
        "recorder_rows_written_total",
        "Recorded rows in Parquet files.",
        r"recorder\.files_(?P<kind>trades|depth)",
    ),
    _metric(
        "recorder_flushes_total", "Times that recorded frames were written.", r"recorder\.flushes"
    ),
    _metric(
        "recovery_windows",
        "Windows to recover after a restart, and done.",
        r"recovery\.windows_(?P<state>done|wanted)",
    ),
    _metric("disk_free_bytes", "Free space below the data folder.", r"disk\.free_bytes"),
    # --- klines on schedule ---
    _metric("schedule_runs_total", "Runs of the schedule.", r"schedule\.runs"),
    _metric("schedule_failures_total", "Runs that are tried again.", r"schedule\.failures"),
    _metric(
        "schedule_recommendations_total", "Daily recommendations.", r"schedule\.recommendations"
    ),
    _metric("ingestion_rows_total", "Candles written.", r"ingestion\.rows"),
    # --- REST ---
    _metric("rest_requests_total", "REST requests sent.", r"rest\.requests"),
    _metric(
        "rest_replies_total",
        "REST replies by endpoint and status; status 0: none came.",
        r"rest\.replies\.(?P<endpoint>[^.]+)\.(?P<status>\d+)",
    ),
    _metric(
        "rest_reply_seconds_total",
        "Time spent waiting for replies.",
        r"rest\.reply_s\.(?P<endpoint>[^.]+)",
    ),
    _metric("rest_retries_total", "REST requests sent again.", r"rest\.retries"),
    _metric("rest_failures_total", "REST calls' attempts that failed.", r"rest\.failures"),
    _metric(
        "rest_limited_total", "Replies that asked to slow down or banned us.", r"rest\.limited"
    ),
    _metric("rest_waiting", "REST calls waiting for their turn.", r"rest\.waiting"),
    _metric("rest_weight_used", "Request weight used in this minute.", r"rest\.used_weight"),
    _metric("rest_weight_limit", "Request weight allowed a minute.", r"rest\.limit"),
    # --- bus, followers ---
    _metric(
        "events_published_total", "Events by topic.", r"bus\.topic\.(?P<topic>\w+)\.published_count"
    ),
    _metric(
        "bus_dropped_total", "Events that subscribers were too slow for.", r"bus\.dropped_count"
    ),
    _metric(
        "bus_conflated_total",
        "Events replaced by newer ones for slow subscribers.",
        r"bus\.conflated_count",
    ),
    _metric(
        "bus_broken_subscribers_total", "Subscribers cut off.", r"bus\.broken_subscriber_count"
    ),
    _metric(
        "bus_waiting",
        "Events waiting, by part.",
        r"bus\.subscriber\.(?P<subscriber>\w+)\.waiting_count",
    ),
    _metric("stream_clients", "Clients of /events.", r"socket\.clients"),
    _metric("stream_sent_total", "Events sent to clients of /events.", r"socket\.sent"),
    _metric(
        "stream_missed_total",
        "Events that clients of /events were too slow for.",
        r"socket\.missed",
    ),
    _metric(
        "stream_stalled_clients_total", "Clients of /events cut off.", r"socket\.stalled_clients"
    ),
    _metric(
        "stream_journal_failures_total",
        "Failed writes of the event journal.",
        r"event_journal\.failed_writes",
    ),
    _metric("broker_connected", "1 while the event broker answers.", r"broker\.connected"),
    _metric("broker_published_total", "Events the broker has confirmed.", r"broker\.published"),
    _metric("broker_failures_total", "Broken connections and refused events.", r"broker\.failures"),
    _metric(
        "broker_missed_total", "Events that fell off while the broker was away.", r"broker\.missed"
    ),
    _metric("broker_behind", "Events kept that the broker has not confirmed.", r"broker\.behind"),
    # --- AI ---
    _metric(
        "ai_questions_total",
        "Questions to the AI analyst, by what became of them.",
        r"ai\.(?P<result>asked|answered|unavailable)",
    ),
    _metric(
        "ai_calls_total",
        "Calls of AI providers by outcome.",
        r"ai\.(?P<provider>groq|dashscope|openai)\.(?P<outcome>(?!state|tokens_today|usd_today)\w+)",
    ),
    _metric(
        "ai_breaker_state",
        "1 for the provider's breaker state.",
        r"ai\.(?P<provider>groq|dashscope|openai)\.state",
        state_label="state",
    ),
    _metric(
        "ai_tokens_today",
        "Tokens taken this UTC day.",
        r"ai\.(?P<provider>groq|dashscope|openai)\.tokens_today",
    ),
    _metric(
        "ai_cost_today_dollars",
        "Dollars spent this UTC day.",
        r"ai\.(?P<provider>groq|dashscope|openai)\.usd_today",
    ),
    _metric(
        "ai_last_latency_seconds",
        "Time of the last whole analysis.",
        r"ai\.last_latency_ms",
        scale=_MS,
    ),
    _metric("ai_in_flight", "Questions under way.", r"ai\.in_flight"),
    # --- trained model ---
    _metric(
        "model_questions_total",
        "Windows a trained model was asked about, by what became of them.",
        r"model\.(?P<result>asked|answered|overtaken|failed)",
    ),
    _metric(
        "model_not_ready_total",
        "Windows whose inputs were not known, by reason.",
        r"model\.(?P<reason>warming_up|trades_are_missing|the_books_chain_broke|no_fresh_book|"
        r"too_few_books_for_an_image)",
    ),
    _metric(
        "model_last_latency_seconds",
        "From a window's close to the model's last answer.",
        r"model\.last_latency_ms",
        scale=_MS,
    ),
    _metric(
        "model_input_stability",
        "Highest population stability index of an input over the last day; above 0.25 is drift.",
        r"model\.psi_max",
    ),
    # --- alerts ---
    _metric("alert_rules", "Alert rules in force.", r"alerts\.rules"),
    _metric("alerts_firing", "Alerts firing.", r"alerts\.firing"),
    _metric("alerts_fired_total", "Alerts that began to fire.", r"alerts\.fired"),
    _metric("alerts_muted_total", "Alerts muted by silence or inhibition.", r"alerts\.muted"),
    _metric(
        "alert_notifications_waiting",
        "Notifications not delivered yet.",
        r"alerts\.outbox\.(?P<channel>console|file|webhook|apprise)\.waiting",
    ),
    _metric("alert_failed_sends_total", "Deliveries that failed.", r"alerts\.failed_sends"),
    # --- logs ---
    _metric("log_lines_total", "Log lines written.", r"log\.written_count"),
    _metric(
        "log_lines_dropped_total",
        "Log lines dropped since their target stalled.",
        r"log\.dropped_count",
    ),
)
