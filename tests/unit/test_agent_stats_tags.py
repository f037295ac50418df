"""What of a statistic's name becomes a label."""

import re

import pytest

from hostmesh_agent.stats_tags import TAGS, stats_config

CLUSTER = "outbound|9080|v1|reviews.default.svc.cluster.local"


def labels(name: str) -> tuple[str, dict[str, str]]:
    """Return a name without its labels, and the labels; as Envoy takes them out."""
    found = {}
    rest = name
    for tag, regex in TAGS.items():
        match = re.search(regex, name)
        if match is not None:
            found[tag] = match.group(2)
            rest = rest.replace(match.group(1), "", 1)
    return rest, found


@pytest.mark.parametrize(
    "stat",
    [
        "upstream_rq_total",
        "upstream_cx_connect_ms",
        "internal.upstream_rq_completed",
        "circuit_breakers.default.remaining_pending",
        "ssl.handshake",
        "ssl.versions.TLSv1.3",
        "default.total_match_count",
        "tlsMode-disabled.total_match_count",
        "outlier_detection.ejections_active",
        "http2.rx_reset",
        "membership_healthy",
        "version",
    ],
)
@pytest.mark.parametrize(
    "cluster",
    [CLUSTER, "inbound|8080||", "outbound|443||api.version.ssl.http2.default.example.com", "PassthroughCluster"],
)
def test_a_cluster_is_a_label_with_its_whole_name(cluster: str, stat: str) -> None:
    assert labels(f"cluster.{cluster}.{stat}") == (f"cluster.{stat}", {"cluster_name": cluster})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            f"cluster.{CLUSTER}.upstream_rq_503",
            ("cluster.upstream_rq", {"cluster_name": CLUSTER, "response_code": "503"}),
        ),
        (
            f"cluster.{CLUSTER}.upstream_rq_5xx",
            ("cluster.upstream_rq", {"cluster_name": CLUSTER, "response_code_class": "5xx"}),
        ),
        (
            "http.outbound_0.0.0.0_9080.downstream_cx_total",
            ("http.downstream_cx_total", {"http_conn_manager_prefix": "outbound_0.0.0.0_9080"}),
        ),
        (
            "listener.0.0.0.0_15006.downstream_cx_total",
            ("listener.downstream_cx_total", {"listener_address": "0.0.0.0_15006"}),
        ),
        (
            "listener.[__]_15006.ssl.handshake",
            ("listener.ssl.handshake", {"listener_address": "[__]_15006"}),
        ),
        (f"tcp.{CLUSTER}.downstream_cx_total", ("tcp.downstream_cx_total", {"tcp_prefix": CLUSTER})),
        ("listener_manager.lds.version", ("listener_manager.lds.version", {})),
        ("cluster_manager.active_clusters", ("cluster_manager.active_clusters", {})),
    ],
)
def test_what_else_has_a_name_is_a_label(name: str, expected: tuple[str, dict[str, str]]) -> None:
    assert labels(name) == expected


def test_envoys_own_labels_which_end_a_name_at_its_first_dot_are_off() -> None:
    config = stats_config()
    assert config["use_all_default_tags"] is False
    assert {tag["tag_name"] for tag in config["stats_tags"]} == set(TAGS)
