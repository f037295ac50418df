"""The second Envoy gets the same listeners at other places; what it counts is compared with the first one's."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from envoy.config.core.v3.address_pb2 import Address, SocketAddress
from envoy.config.listener.v3.listener_components_pb2 import FilterChain, FilterChainMatch
from envoy.config.listener.v3.listener_pb2 import AdditionalAddress, Listener
from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

from hostmesh_agent import life_file, verdict
from hostmesh_agent.capture import CaptureRequest, HostFloor
from hostmesh_agent.capture import plan as capture_plan
from hostmesh_agent.places import BLUE, GREEN, Doorway, doorways, moved
from hostmesh_agent.upgrade import Life, Refused, Stage
from hostmesh_agent.verdict import Count
from hostmesh_api import wire
from hostmesh_api.delta import Resource


def address(host: str, port: int, *, udp: bool = False) -> Address:
    protocol = SocketAddress.UDP if udp else SocketAddress.TCP
    return Address(socket_address=SocketAddress(address=host, port_value=port, protocol=protocol))


def chain(port: int) -> FilterChain:
    return FilterChain(filter_chain_match=FilterChainMatch(destination_port=UInt32Value(value=port)))


def encoded(listener: Listener) -> Resource:
    message = ResourceMessage(name=listener.name, version="1")
    message.resource.Pack(listener)
    return Resource(listener.name, "1", message.SerializeToString())


def decoded(resource: Resource) -> Listener:
    listener = Listener()
    ResourceMessage.FromString(resource.body).resource.Unpack(listener)
    return listener


OUTBOUND = Listener(
    name="virtualOutbound",
    address=address("0.0.0.0", wire.OUTBOUND_PORT),
    additional_addresses=[AdditionalAddress(address=address("::", wire.OUTBOUND_PORT))],
    filter_chains=[chain(wire.OUTBOUND_PORT), chain(443)],
    use_original_dst=BoolValue(value=True),
)
GATEWAY = Listener(
    name="0.0.0.0_443", address=address("0.0.0.0", 443), bind_to_port=BoolValue(value=True), filter_chains=[chain(443)]
)


def test_the_well_known_ports_are_others_in_the_second_envoy_and_all_else_is_the_same() -> None:
    assert moved(encoded(OUTBOUND), BLUE) == encoded(OUTBOUND)
    found = decoded(moved(encoded(OUTBOUND), GREEN))
    wanted = Listener()
    wanted.CopyFrom(OUTBOUND)
    wanted.address.socket_address.port_value = wire.SECOND_OUTBOUND_PORT
    wanted.additional_addresses[0].address.socket_address.port_value = wire.SECOND_OUTBOUND_PORT
    # Dialled by itself it would call itself for ever.
    wanted.filter_chains[0].filter_chain_match.destination_port.value = wire.SECOND_OUTBOUND_PORT
    assert found == wanted
    names = Listener(name="dns", address=address("127.0.0.1", wire.DNS_PORT, udp=True))
    assert decoded(moved(encoded(names), GREEN)).address.socket_address.port_value == wire.SECOND_DNS_PORT


def test_what_envoy_itself_listens_on_is_not_bound_by_the_second_and_is_behind_its_door() -> None:
    found = decoded(moved(encoded(GATEWAY), GREEN))
    assert not found.bind_to_port.value
    assert (found.address, found.filter_chains) == (GATEWAY.address, GATEWAY.filter_chains)
    assert doorways(encoded(GATEWAY)) == {Doorway("", 443)}
    here = Listener(name="x", address=address("10.0.0.1", 9000))
    assert doorways(encoded(here)) == {Doorway("10.0.0.1", 9000)}
    unbound = Listener(name="y", address=address("0.0.0.0", 80), bind_to_port=BoolValue(value=False))
    for other in (OUTBOUND, unbound, Listener(name="u", address=address("0.0.0.0", 99, udp=True))):
        assert doorways(encoded(other)) == frozenset()
    assert moved(encoded(unbound), GREEN) == encoded(unbound)


def test_what_cannot_be_read_stays_as_it_is() -> None:
    broken = Resource("x", "1", b"\x12\xff")
    assert (moved(broken, GREEN), doorways(broken)) == (broken, frozenset())


FLOOR = HostFloor(envoy_uid=990, ipv6=False, doorways=frozenset({("", 443), ("10.0.0.1", 9000)}))


def comments(floor: HostFloor, chain_name: str) -> list[str]:
    rules = next(each.rules for each in capture_plan(CaptureRequest(), floor).table.chains if each.name == chain_name)
    return [each.comment for each in rules]


def test_rules_lead_to_the_door_of_the_second_envoy_alone() -> None:
    assert "to Envoy's door" not in [*comments(FLOOR, "inbound"), *comments(FLOOR, "outbound")]
    behind = replace(FLOOR, door_port=wire.DOOR_PORT)
    assert comments(behind, "inbound").count("to Envoy's door") == 2
    assert comments(behind, "outbound")[:2] == ["to Envoy's door"] * 2


def test_answers_of_both_envoys_let_the_resolver_go_on() -> None:
    """What was asked of one is answered by it, be the rules changed by then."""
    assert comments(FLOOR, "answers").count("not a mesh name: ask the next resolver") == 2


def test_an_envoy_is_worse_that_fails_more_than_the_one_before() -> None:
    kind = "calls that were answered with 5xx"
    assert verdict.worse({}, {kind: Count(19, 19)}) == ""
    assert verdict.worse({kind: Count(100, 0)}, {kind: Count(100, 5)}) == ""
    assert verdict.worse({kind: Count(100, 0)}, {kind: Count(100, 6)}).startswith(f"{kind}: 6 of 100")
    assert verdict.worse({kind: Count(100, 30)}, {kind: Count(100, 60)}) == ""
    assert verdict.worse({kind: Count(100, 30)}, {kind: Count(100, 61)}) != ""


def test_the_agents_own_calls_do_not_count() -> None:
    stats = {
        "http.outbound_0.0.0.0_80.downstream_rq_completed": 10,
        "http.outbound_0.0.0.0_80.downstream_rq_5xx": 4,
        "http.admin.downstream_rq_completed": 1000,
        "http.hostmesh-rehearsal.downstream_rq_completed": 1000,
        "cluster.hostmesh-rehearsal.upstream_cx_total": 1000,
        "cluster.outbound|80||a.upstream_cx_total": 7,
        "cluster.outbound|80||a.upstream_cx_connect_fail": 2,
    }
    found = verdict.counts(stats)
    assert found["calls that were answered with 5xx"] == Count(10, 4)
    assert found["connections to programs and hosts that failed"] == Count(7, 2)


def test_a_state_is_read_back_as_it_was_written_and_nonsense_is_the_first_envoy(tmp_path: Path) -> None:
    assert life_file.read(tmp_path) == Life()
    life = Life(Stage.PROBATION, GREEN, "v2", refused=(Refused("v1", "bad"),))
    life_file.write(tmp_path, life)
    assert life_file.read(tmp_path) == life
    (tmp_path / life_file.FILE).write_text("{")
    os.chmod(tmp_path / life_file.FILE, 0o600)  # noqa: PTH101 - beside the other line
    assert life_file.read(tmp_path) == Life()


@pytest.mark.parametrize("port", sorted(wire.ENVOYS_PORTS))
def test_ports_of_the_envoys_are_never_captured(port: int) -> None:
    found = capture_plan(CaptureRequest(inbound_ports=frozenset({port})), FLOOR)
    assert [each.what for each in found.refused] == [f"inbound port {port}"]
