"""There is one REST client, one signature, one connection manager: nobody speaks to a host but they."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.architecture.test_imports import imports_of, module_files

# Ways to reach a host, or to sign, other than the product's own.
OTHER_CLIENTS = {
    *("requests", "httpx", "urllib3", "http.client", "websockets", "websocket"),
    *("binance", "ccxt", "socketserver"),
}
ONE_PLACE = {
    "aiohttp.ClientSession": {"binance_api.http_session"},
    "picows.ws_connect": {"market_orchestrator.connection.transport"},
    "hmac.new": {"binance_api.signing"},
    "urllib.request.urlopen": set(),
}
# They speak HTTP to a user's own hosts (a webhook, a running bot), and know nothing of the exchange.
OTHER_HOSTS = {"alerts.channels", "dashboard.attach"}
ONE_CLASS = {
    "RestClient": "binance_api.rest",
    "RobustConnectionManager": "market_orchestrator.connection.robust_connection",
    "ApiKey": "binance_api.signing",
}


def test_only_the_rest_client_and_the_connection_layer_reach_a_host(repository: Path) -> None:
    for module, path in module_files(repository):
        if module.partition(".")[0] != "ai":  # the providers' own kits bring their own clients
            found = OTHER_CLIENTS & set(imports_of(path))
            assert not found, f"{module} imports {found}"


def test_sessions_sockets_and_signatures_are_made_in_one_place(repository: Path) -> None:
    made: dict[str, set[str]] = {name: set() for name in ONE_PLACE}
    for module, path in module_files(repository):
        if module in OTHER_HOSTS:
            assert not any(name.startswith("binance_api") for name in imports_of(path)), module
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in made:
                made[name].add(module)
    assert made == ONE_PLACE


def test_client_manager_and_key_are_defined_once(repository: Path) -> None:
    homes: dict[str, list[str]] = {name: [] for name in ONE_CLASS}
    for module, path in module_files(repository):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name in homes:
                homes[node.name].append(module)
    assert homes == {name: [home] for name, home in ONE_CLASS.items()}


def test_the_connector_uses_the_products_own_client_and_manager(repository: Path) -> None:
    imported = {
        module: set(imports_of(path))
        for module, path in module_files(repository)
        if module.startswith("binance_api.connector")
    }
    used = set().union(*imported.values())
    assert {"binance_api.rest", "market_orchestrator.connection.robust_connection"} <= used
    assert not used & {"aiohttp", "picows", "hmac", "socket", "ssl"}
