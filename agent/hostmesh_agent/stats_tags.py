"""How Envoy's statistics are told apart by labels: which part of a name is whose. The labels are Istio's.

Envoy's own rules end a cluster's name at its first dot, and host names have several.
"""

from typing import Any, Final

_OF_A_CLUSTER: Final = "|".join(
    (
        r"(?:(?:internal|external|canary)\.)?upstream_\w+",
        r"circuit_breakers\.(?:default|high)\.\w+",
        r"ssl\.(?:\w+|(?:versions|ciphers|curves|sigalgs|certificate)\.[\w.-]+)",
        r"(?:default|tlsMode-\w+)\.total_match_count",
        r"(?:health_check|outlier_detection|client_ssl_socket_factory|http[123]|ext_authz|ratelimit)\.\w+",
        r"[^.]+",
    )
)
"""What comes behind a cluster's name."""

TAGS: Final = {
    "cluster_name": rf"^cluster\.((.+?)\.)(?:{_OF_A_CLUSTER})$",
    "http_conn_manager_prefix": r"^http\.(((?:in|out)bound_.+?_\d+|[^.]+)\.)",
    "http_conn_manager_listener_prefix": r"^listener(?=\.).*?\.http\.(((?:in|out)bound_.+?_\d+|[^.]+)\.)",
    "listener_address": r"^listener\.(((?:[\d.]+|\[[\da-fA-F_:]+\])_\d+)\.)",
    "tcp_prefix": r"^tcp\.((.*?)\.)\w+?$",
    "response_code": r"_rq(_(\d{3}))$",
    "response_code_class": r"_rq(_(\dxx))$",
}
"""Label and expression: the first group is taken out of the name, the second is the label's value."""


def stats_config() -> dict[str, Any]:
    """Return Envoy's `stats_config`."""
    tags = [{"tag_name": name, "regex": regex} for name, regex in TAGS.items()]
    return {"use_all_default_tags": False, "stats_tags": tags}
