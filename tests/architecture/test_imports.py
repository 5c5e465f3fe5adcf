"""Imports follow the flow of the data, each library has one home, and nothing else leaks in."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Component → the components it may import. The longest matching prefix of a module's name decides.
MAY_IMPORT: dict[str, set[str]] = {
    "domain": set(),
    "binance_api": {"domain", "binance_api.connector", "binance_api.connector_session"},
    # The connector is a whole program for other people's scripts: of its modules one reads the
    # settings and one opens sockets, through the product's only connection manager.
    "binance_api.connector": {
        *("domain", "binance_api", "binance_api.connector_session"),
        *("binance_api.connector_settings", "binance_api.connector_stream"),
    },
    "binance_api.connector_session": {"domain", "binance_api", "binance_api.connector_settings"},
    "binance_api.connector_settings": {"domain", "binance_api", "config"},
    "binance_api.connector_stream": {
        *(
            "domain",
            "binance_api",
            "binance_api.connector_session",
            "market_orchestrator.connection",
        ),
    },
    "lake": {"domain"},
    "microstructure": {"domain"},
    "event_bus": {"domain"},
    "simulator": {"domain", "binance_api"},
    "market_orchestrator.connection": {"domain", "binance_api"},
    "data_validator": {"domain", "microstructure"},
    "flow_analyzer": {"domain", "microstructure"},
    "data_pipeline": {"domain", "microstructure"},
    "rules_analyst": {"domain"},
    "ai": {"domain", "lake"},
    "ai_analyzer_qwen": {"domain", "lake", "ai"},
    "feature_store": {"domain", "lake"},
    "evaluation": {"domain", "lake", "feature_store"},
    "audit": {"domain", "binance_api", "lake"},
    "audit.check_completeness": {"domain", "binance_api", "lake", "audit", "main"},
    "audit.check_stream": {"domain", "lake", "audit", "main"},
    "market_orchestrator": {
        *("domain", "binance_api", "lake", "data_validator", "flow_analyzer", "data_pipeline"),
        *("microstructure", "feature_store", "event_bus", "rules_analyst"),
        *("market_orchestrator.connection", "market_orchestrator.replay_rows"),
    },
    "market_orchestrator.market_orchestrator": {
        *("domain", "binance_api", "lake", "data_validator", "flow_analyzer", "data_pipeline"),
        *("microstructure", "feature_store", "event_bus", "rules_analyst"),
        *("market_orchestrator.connection", "market_orchestrator", "simulator", "config"),
        *("market_orchestrator.analyst", "market_orchestrator.model_signals", "inference"),
        *("monitoring.disk", "monitoring.heartbeat", "monitoring.long_run"),
        *("market_orchestrator.exchange", "market_orchestrator.recording", "collectors.recording"),
    },
    "market_orchestrator.replay_rows": {"domain", "binance_api", "lake"},
    "market_orchestrator.exchange": {
        *("domain", "binance_api", "config", "simulator", "market_orchestrator.connection"),
    },
    "market_orchestrator.recording": {
        *("domain", "config", "collectors", "collectors.recording", "market_orchestrator.exchange"),
    },
    "market_orchestrator.model_signals": {
        *("domain", "config", "binance_api", "event_bus", "market_orchestrator", "inference"),
    },
    "market_orchestrator.analyst": {
        *("domain", "config", "event_bus", "market_orchestrator", "ai", "ai_analyzer_qwen"),
    },
    "dashboard": {"domain", "event_bus"},
    "alerts": {"domain", "event_bus", "lake"},
    "monitoring": {
        *("domain", "binance_api", "lake", "market_orchestrator.connection", "ai", "event_bus"),
    },
    "monitoring.disk": {"domain"},
    "monitoring.long_run": set(),
    "monitoring.heartbeat": {"domain", "event_bus"},
    "event_broker": {"domain", "lake", "monitoring"},
    "config": {
        *("domain", "binance_api", "microstructure", "flow_analyzer", "data_pipeline"),
        *("rules_analyst", "lake", "ai", "config_checks", "config_parts"),
    },
    "config_checks": {"domain", "lake", "ai"},
    "config_parts": {"microstructure", "flow_analyzer", "data_pipeline", "rules_analyst"},
    "inference": {"domain", "microstructure"},
    "research": {
        "domain",
        "inference",
        "lake",
        "microstructure",
        "evaluation",
        "market_orchestrator.replay_rows",
    },
    "research.synthetic_days": {"domain", "lake", "simulator"},
    "ingestion": {"domain", "binance_api", "lake", "data_pipeline", "config"},
    "collectors": {
        *("domain", "binance_api", "lake", "microstructure", "data_validator"),
        *("monitoring.disk", "monitoring.long_run"),
        *("market_orchestrator.connection", "collectors.recording"),
    },
    "collectors.recording": {"domain", "lake", "collectors", "market_orchestrator.connection"},
    "collectors.stream": {"main"},
    "collectors.repair_once": {"domain", "binance_api", "lake", "collectors"},
    "collectors.historical": {"domain", "binance_api", "lake", "collectors", "main"},
    "command_line": {
        *("domain", "config", "config_parts", "dashboard", "monitoring", "simulator", "ingestion"),
        "lake",
        *("evaluation", "feature_store", "event_bus", "event_broker", "alerts", "research"),
        "inference",
        *("audit.check_completeness", "audit.check_stream", "binance_api"),
        *("collectors", "collectors.historical", "collectors.repair_once", "monitoring.disk"),
        *("collectors.recording", "monitoring.heartbeat"),
        *("market_orchestrator.market_orchestrator", "market_orchestrator.analyst"),
        *("market_orchestrator.exchange", "market_orchestrator.recording"),
    },
    "main": {"domain", "command_line"},
}
# Library → where it may be imported; "type" marks imports that only the type checker sees.
HOMES: dict[str, tuple[str, ...]] = {
    "aiohttp": (
        *("binance_api.http_session", "dashboard.attach", "simulator"),
        *("monitoring.http_server", "monitoring.events_socket", "alerts.channels"),
    ),
    "nats": ("event_broker",),
    "prometheus_client": ("monitoring.metrics",),
    "picows": ("market_orchestrator.connection.transport", "simulator"),
    "pyarrow": ("lake", "feature_store"),
    "hmac": ("binance_api.signing", "alerts.channels"),  # requests; webhooks
    "apprise": ("alerts.channels",),
    "rich": ("dashboard",),
    "distributed": (),  # through dask
    "dask": ("research.dask_run",),
    "matplotlib": ("research",),
    "torch": ("research",),
    "transformers": ("research.models",),
    "onnxruntime": ("inference.onnx_model",),
    "sklearn": ("research.baselines",),
    "pydantic": (
        "config",
        "config_checks",
        "config_parts",
        "ai.reply",
    ),  # where people or models write the input
    "pydantic_settings": ("config", "config_parts"),
}
LAZY_ONLY = {"pandas", "polars", "duckdb", "torch", "apprise", "dask", "matplotlib", "sklearn"}
LAZY_ONLY |= {"onnxruntime", "transformers"}
# Networks are classes of torch's: these modules import it at their top, and are lazy themselves.
TORCH_MODULES = {"research.models", "research.fitting", "research.export"}
SKIPPED = {"tests", "benchmarks", "docs"}


def module_files(repository: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(repository.rglob("*.py")):
        parts = path.relative_to(repository).with_suffix("").parts
        if parts[0] not in SKIPPED and not parts[0].startswith("."):
            yield ".".join(parts).removesuffix(".__init__"), path


def imports_of(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def component_of(module: str) -> str | None:
    matching = [name for name in MAY_IMPORT if f"{module}.".startswith(f"{name}.")]
    return max(matching, key=len, default=None)


def test_imports_follow_the_flow(repository: Path) -> None:
    for module, path in module_files(repository):
        own = component_of(module)
        assert own is not None, f"{module} belongs to no component of this test"
        for imported in imports_of(path):
            other = component_of(imported)
            allowed = other in {None, own} or other in MAY_IMPORT[own]
            assert allowed, f"{module} ({own}) imports {imported} ({other})"


def test_every_library_has_one_home(repository: Path) -> None:
    for module, path in module_files(repository):
        for imported in imports_of(path):
            homes = HOMES.get(imported.split(".")[0])
            at_home = homes is None or any(f"{module}.".startswith(f"{h}.") for h in homes)
            assert at_home, f"{module} imports {imported}, which belongs into {homes}"
        names = set(imports_of(path, top_level_only=True))
        top = {name.split(".")[0] for name in names} | (names & TORCH_MODULES)
        allowed = {"torch", *TORCH_MODULES} if module in TORCH_MODULES else set()
        early = (top & (LAZY_ONLY | TORCH_MODULES)) - allowed
        assert not early, f"{module} imports {early} at its top"


def test_package_files_are_empty(repository: Path) -> None:
    for module, path in module_files(repository):
        if path.name == "__init__.py" and module not in {"lake", "ingestion", "binance_api"}:
            assert not ast.parse(path.read_text(encoding="utf-8")).body, module


def test_running_the_bot_loads_neither_polars_nor_pandas(repository: Path) -> None:
    code = (
        "import sys, main, command_line.run, config, dashboard.watch, monitoring.logging, simulator.cli;"
        "import market_orchestrator.market_orchestrator;"
        "print(sorted({'pandas', 'polars', 'duckdb', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.stdout.strip() == "[]", done.stderr


FORBIDDEN = {
    "a package registry": re.compile(
        r"\b(?:test\.)?pypi\.(?:org|io)|pythonhosted|simple/?$", re.MULTILINE
    ),
    "this machine": re.compile(r"(?<![\w.])/(?:work|root|home|tmp|opt)/\w"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_names(what: str, repository: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        path = repository / name
        if path.is_file() and path != Path(__file__).resolve():
            found = FORBIDDEN[what].search(path.read_text(encoding="utf-8", errors="replace"))
            assert found is None, f"{name} names {what}: {found and found.group()}"
