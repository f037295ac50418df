"""Calls that only the agent makes, through an Envoy that does not serve yet: does it proxy at all, and for how long?

Two listeners on sockets in Envoy's directory: one proxies HTTP to the other, which answers by itself. So a new Envoy
shows what an Envoy does with a request (take it, route it, connect, answer) before a program's request meets it. Pure.
"""

from typing import Any, Final

NAME: Final = "hostmesh-rehearsal"
SOCKET: Final = "rehearsal.sock"
"""Relative to Envoy's working directory."""
_ECHO: Final = "hostmesh-rehearsal-echo"
_ECHO_SOCKET: Final = "rehearsal-echo.sock"
WORDS: Final = b"rehearsed"


def listeners(mode: int) -> list[dict[str, Any]]:
    """Return the two listeners, as JSON of Envoy's Listener; `mode` is their sockets'."""
    forward = {"match": {"prefix": "/"}, "route": {"cluster": NAME}}
    answer = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": WORDS.decode()}}}
    return [_listener(NAME, SOCKET, mode, forward), _listener(_ECHO, _ECHO_SOCKET, mode, answer)]


def clusters() -> list[dict[str, Any]]:
    """Return the cluster between the two, as JSON of Envoy's Cluster."""
    endpoint = {"endpoint": {"address": {"pipe": {"path": _ECHO_SOCKET}}}}
    return [
        {
            "name": NAME,
            "type": "STATIC",
            "connect_timeout": "1s",
            "load_assignment": {"cluster_name": NAME, "endpoints": [{"lb_endpoints": [endpoint]}]},
        }
    ]


def _listener(name: str, path: str, mode: int, route: dict[str, Any]) -> dict[str, Any]:
    http = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    manager = {
        "@type": http,
        "stat_prefix": name,
        "route_config": {"virtual_hosts": [{"name": name, "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return {
        "name": name,
        "stat_prefix": name,
        "address": {"pipe": {"path": path, "mode": mode}},
        "filter_chains": [chain],
    }
