"""Names of services and of Envoy's resources."""

import pytest

from hostmesh_api import wire
from hostmesh_controller import names
from hostmesh_controller.names import OutboundName, TcpName, VirtualHostName


@pytest.mark.parametrize(
    "name", [OutboundName(80, "", "a.b.svc.cluster.local"), OutboundName(9080, "v1", "api.example.com")]
)
def test_an_outbound_cluster_name_is_read_back(name: OutboundName) -> None:
    assert names.parse_outbound(str(name)) == name


def test_a_server_name_is_istios() -> None:
    assert OutboundName(80, "v1", "a.b").server_name == "outbound_.80_.v1_.a.b"


@pytest.mark.parametrize(
    "text",
    ["", "outbound|80||", "outbound|080||a", "outbound|0||a", "outbound|70000||a", "inbound|80||a", "outbound|80|a"],
)
def test_what_is_not_an_outbound_cluster_name_is_none(text: str) -> None:
    assert names.parse_outbound(text) is None


@pytest.mark.parametrize("text", ["tcp|10.0.0.1:80", "tcp|[fd00:f0f0::1]:3306"])
def test_a_tcp_cluster_name_is_read_as_envoy_writes_it(text: str) -> None:
    found = names.parse_tcp(text)
    assert found is not None
    assert str(found) == text


@pytest.mark.parametrize(
    "text", ["tcp|10.0.0.1", "tcp|fd00::1:80", "tcp|[fd00:0::1]:80", "tcp|a:80", "tcp|10.0.0.01:80"]
)
def test_another_spelling_is_not_a_tcp_cluster_name(text: str) -> None:
    assert names.parse_tcp(text) is None


def test_virtual_host_names_hold_the_whole_header() -> None:
    assert names.parse_virtual_host("80/a:80") == VirtualHostName(80, "a:80")
    assert names.parse_virtual_host("80/a/b") == VirtualHostName(80, "a/b")
    assert [names.parse_virtual_host(text) for text in ("80/", "a/b", "/a", "80")] == [None] * 4


def test_a_host_header_that_is_longer_than_any_name_means_nothing() -> None:
    longest = ".".join(["a" * 49] * 5) + ".abc"
    assert len(longest) == 253
    assert names.parse_virtual_host(f"65535/{longest}.:65535") is not None
    # Looking this one up took the controller 30 s and a gigabyte.
    assert names.parse_virtual_host("80/" + "a." * 30_000) is None


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("a", ("a", None)),
        ("a:80", ("a", 80)),
        ("a:x", ("a", 0)),
        ("10.0.0.1:80", ("10.0.0.1", 80)),
        ("[fd00::1]", ("fd00::1", None)),
        ("[fd00::1]:80", ("fd00::1", 80)),
    ],
)
def test_a_host_header_has_a_host_and_maybe_a_port(header: str, expected: tuple[str, int | None]) -> None:
    assert names.split_header(header) == expected


def test_short_names_are_read_from_where_the_caller_is() -> None:
    full = "reviews.blue.svc.cluster.local"
    for header in ("reviews", "reviews.blue", "reviews.blue.svc", full, f"{full}."):
        assert full in names.candidates(header, "blue", "cluster.local")
    assert full not in names.candidates("reviews", "green", "cluster.local")


def test_the_exact_name_comes_before_wildcards_and_long_wildcards_before_short_ones() -> None:
    assert names.candidates("a.b.c", "n", "d") == ("a.b.c", "*.b.c", "*b.c", "*.c", "*c", "*")


def test_a_name_without_a_dot_is_expanded_and_others_are_taken_as_they_are() -> None:
    assert names.expand("Reviews", "blue", "mesh.local") == "reviews.blue.svc.mesh.local"
    assert names.expand("reviews.blue", "x", "mesh.local") == "reviews.blue"
    assert names.expand("*", "x", "mesh.local") == "*"


def test_virtual_addresses_end_where_the_range_ends() -> None:
    assert names.virtual_address(wire.VIP4, 5) == "240.240.0.5"
    assert names.virtual_address(wire.VIP6, 0x1F) == "fd00:f0f0::1f"
    assert names.virtual_address(wire.VIP4, 65536) is None


def test_addresses_have_one_spelling() -> None:
    assert TcpName("fd00::1", 80) == names.parse_tcp("tcp|[fd00::1]:80")
    assert names.canonical_address("FD00:0:0::1") == "fd00::1"
    assert names.canonical_prefix("10.0.0.7/8") == "10.0.0.0/8"
    assert names.canonical_prefix("example.com") is None


def test_a_pattern_covers_names_and_narrower_patterns() -> None:
    assert names.host_matches("*", "a.example.com")
    assert names.host_matches("*", "*")
    assert names.host_matches("*.example.com", "*.a.example.com")
    assert names.host_matches("*-a.example.com", "b-a.example.com")
    assert not names.host_matches("*.example.com", "example.com")
    assert not names.host_matches("*.example.com", "*")
    assert names.hosts_overlap("*.example.com", "*")
    assert not names.hosts_overlap("*.example.com", "*.example.org")
