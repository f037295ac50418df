"""CapturePolicy as it is written: what is read, and what is refused by name."""

from typing import Any

import pytest

from hostmesh_controller.model import from_document, read_document
from hostmesh_controller.model.capture_policy import CapturePolicySpec
from hostmesh_controller.model.faults import path_text
from hostmesh_controller.model.kinds import kind_named

Body = dict[str, Any]


def document(spec: Body) -> Body:
    return {"apiVersion": "hostmesh.io/v1", "kind": "CapturePolicy", "metadata": {"name": "a"}, "spec": spec}


def faults_of(spec: Body) -> str:
    _, faults = read_document(document(spec))
    return "\n".join(f"{path_text(fault.path)}: {fault.message}" for fault in faults)


def outbound(**rule: Any) -> Body:
    return {"outbound": {"exclude": [rule]}}


FULL: Body = {
    "selector": {"matchLabels": {"app": "shop"}},
    "scope": "all",
    "inbound": {
        "include": [{"ports": [80, 443], "cidrs": ["10.0.0.0/8", "fd00::/8", "192.0.2.1"], "interfaces": ["eth0.100"]}],
        "exclude": [{"interfaces": ["docker0"]}],
        "failureMode": "open",
    },
    "outbound": {
        "include": [{"users": ["shop", "www-data"], "units": ["shop@1.service", "batch.slice", "docker-0a.scope"]}],
        "exclude": [{"ports": [5432]}, {"cidrs": ["0.0.0.0/0"], "interfaces": ["wg0"]}],
        "failureMode": "closed",
    },
}


def test_every_field_is_read_and_comes_back_as_it_was_written() -> None:
    made = from_document(document(FULL))
    assert made.to_dict()["spec"] == FULL
    assert from_document(made.to_dict()) == made
    assert from_document(document({})).to_dict().get("spec", {}) == {}


def test_numbers_of_users_may_be_numbers() -> None:
    made = from_document(document(outbound(users=[0, "1000", "shop"])))
    assert made.to_dict()["spec"] == outbound(users=["0", "1000", "shop"])


def test_ports_may_be_a_range() -> None:
    written = outbound(ports=[80, "9000-9002", 9001])
    made = from_document(document(written))
    assert made.to_dict()["spec"] == written
    assert from_document(made.to_dict()) == made
    assert isinstance(made.spec, CapturePolicySpec)
    assert made.spec.outbound.exclude[0].port_numbers == (80, 9000, 9001, 9002)


def test_the_kind_has_a_short_name() -> None:
    found = [kind_named(name) for name in ("cp", "capturepolicies", "CapturePolicy")]
    assert [info.kind for info in found if info is not None] == ["CapturePolicy"] * 3


REFUSED: list[tuple[Body, str]] = [
    ({"scope": "host"}, "spec.scope: expected one of mesh, all"),
    ({"inbound": {"failureMode": "Open"}}, "spec.inbound.failureMode: expected one of closed, open"),
    ({"outbound": {"excludes": []}}, "did you mean 'exclude'?"),
    ({"failureMode": "open"}, "spec.failureMode: unknown field 'failureMode': say it under inbound or outbound"),
    ({"include": []}, "spec.include: unknown field 'include': say it under inbound or outbound"),
    ({"ports": [80]}, "spec.ports: unknown field 'ports': it belongs into a rule, inbound.exclude[0].ports or such"),
    ({"outbound": {"uids": [0]}}, "spec.outbound.uids: unknown field 'uids': it belongs into a rule, exclude[0].users"),
    ({"inbound": {"cidrs": []}}, "unknown field 'cidrs': it belongs into a rule, exclude[0].cidrs or include[0].cidrs"),
    (outbound(uids=[1000]), "unknown field 'uids': users takes numbers as well as names"),
    ({"inbound": {"include": [{"uids": [0]}]}}, "does not tell of an inbound connection whose it is"),
    (outbound(ports=["9010-9000"]), "'9010-9000' is no range of ports such as '9000-9010'"),
    (outbound(ports=["9000-65536"]), "'9000-65536' is no range of ports such as '9000-9010'"),
    (outbound(ports=["1-1024", 9000]), "spec.outbound.exclude[0].ports: more than the 1024 ports that a rule may have"),
    (outbound(ports=["1-65535"]), "exclude[0].ports: more than the 1024 ports"),
    ({"outbound": {"exclude": [{}]}}, "spec.outbound.exclude[0]: an empty rule would be about everything"),
    ({"inbound": {"include": [{"users": ["shop"]}]}}, "does not tell of an inbound connection whose it is"),
    ({"inbound": {"include": [{"units": ["a.service"]}]}}, "does not tell of an inbound connection whose it is"),
    (outbound(ports=[0]), "spec.outbound.exclude[0].ports[0]: "),
    (outbound(ports=["80"]), "spec.outbound.exclude[0].ports[0]: "),
    (outbound(cidrs=["10.0.0.1/8"]), "'10.0.0.1/8' is not an address or a block such as 10.0.0.0/8"),
    (outbound(cidrs=["db.example.com"]), "'db.example.com' is not an address or a block"),
    (outbound(users=["a b"]), "'a b' is not the name or the number of a user"),
    (outbound(users=[4294967295]), "'4294967295' is not the name or the number of a user"),
    (outbound(users=[-1]), "'-1' is not the name or the number of a user"),
    (outbound(users=[True]), "spec.outbound.exclude[0].users[0]: "),
    (outbound(units=["shop"]), "'shop' is not a unit with processes: write its whole name, such as shop.service"),
    (outbound(units=["shop.socket"]), "'shop.socket' is not a unit with processes"),
    (outbound(units=["../x.service"]), "'../x.service' is not a unit with processes"),
    (outbound(interfaces=["a" * 16]), "is not the name of an interface (15 bytes at most)"),
    (outbound(interfaces=["eth 0"]), "'eth 0' is not the name of an interface"),
    (outbound(interfaces=["lo"]), "'lo' is the host itself"),
]


@pytest.mark.parametrize(("spec", "says"), REFUSED, ids=[says[:50] for _, says in REFUSED])
def test_what_cannot_be_meant_is_refused_by_its_place(spec: Body, says: str) -> None:
    assert says in faults_of(spec)
