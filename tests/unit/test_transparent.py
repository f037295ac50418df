"""Inbound mode tproxy: what the controller gives and says, what the agent plans, and which Envoy gets what."""

import os
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from envoy.config.listener.v3.listener_components_pb2 import ListenerFilter
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.listener.original_src.v3.original_src_pb2 import OriginalSrc
from envoy.service.discovery.v3.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
)
from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage
from pydantic import ValidationError

from golden.objects import mesh_of, obj
from hostmesh_agent import client_addresses, launch
from hostmesh_agent.capture import HostFloor, plan
from hostmesh_agent.capture.interpret import Packet, verdict
from hostmesh_agent.capture.rules import Chain, Hook, Ruleset
from hostmesh_agent.capture.text import rule_text
from hostmesh_agent.client_filter import without_clients
from hostmesh_agent.config import CaptureSettings
from hostmesh_agent.converge import full_request
from hostmesh_agent.exchange import Exchange
from hostmesh_agent.places import BLUE, GREEN, Instance
from hostmesh_api import wire
from hostmesh_api.delta import Resource, Update
from hostmesh_api.v1.hostmesh_pb2 import Capture, HostConfig
from hostmesh_controller import xds
from hostmesh_controller.mesh import Mesh, update
from hostmesh_controller.model.capture_policy import CapturePolicySpec
from hostmesh_controller.model.objects import ApiObject
from unit.test_exchange_two_envoys import NOW

HERE, THERE = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")
ORIGINAL_SRC = "envoy.filters.listener.original_src"
OBJECTS = [
    obj("Host", "h1", {"addresses": ["10.0.0.1"]}),
    obj("Service", "shop", {"selector": {"app": "shop"}, "ports": [{"port": 80, "name": "http"}]}),
    obj("Service", "more", {"selector": {"app": "shop"}, "ports": [{"port": 81, "name": "tcp"}]}),
    obj("WorkloadEntry", "shop", {"address": "10.0.0.1", "labels": {"app": "shop"}}),
]
TPROXY = obj("CapturePolicy", "clients", {"inbound": {"mode": "tproxy"}})
REDIRECT = obj("CapturePolicy", "clients", {"inbound": {"mode": "redirect"}})


def ingress(port: int, endpoint: str) -> ApiObject:
    return obj(
        "Sidecar",
        "shop",
        {
            "workloadSelector": {"labels": {"app": "shop"}},
            "ingress": [
                {"port": {"number": port, "name": "http", "protocol": "HTTP"}, "defaultEndpoint": endpoint},
                {"port": {"number": 81, "name": "tcp", "protocol": "TCP"}},
            ],
        },
    )


def body(of: Mesh, type_url: str, name: str) -> bytes:
    made = xds.resource(of, "h1", type_url, name)
    assert made is not None
    return made.body


def listener(of: Mesh) -> Listener:
    return Listener.FromString(
        ResourceMessage.FromString(body(of, wire.LISTENER_TYPE, "virtualInbound")).resource.value
    )


def said(of: Mesh) -> Capture:
    made = body(of, wire.HOST_CONFIG_TYPE, wire.HOST_CONFIG_NAME)
    return HostConfig.FromString(ResourceMessage.FromString(made).resource.value).capture


# The controller


def test_a_host_without_the_mode_gets_byte_for_byte_what_it_got() -> None:
    without, with_other = mesh_of(OBJECTS), mesh_of([*OBJECTS, REDIRECT])
    for name in ("virtualInbound", "virtualOutbound"):
        assert body(without, wire.LISTENER_TYPE, name) == body(with_other, wire.LISTENER_TYPE, name)
    assert ORIGINAL_SRC.encode() not in body(without, wire.LISTENER_TYPE, "virtualInbound")
    assert not said(with_other).transparent


def test_with_it_the_filter_stands_behind_the_one_that_finds_the_destination_and_nothing_else_differs() -> None:
    of = mesh_of([*OBJECTS, TPROXY])
    made = listener(of)
    assert [each.name for each in made.listener_filters][:2] == ["envoy.filters.listener.original_dst", ORIGINAL_SRC]
    own = made.listener_filters.pop(1)
    config = OriginalSrc()
    own.typed_config.Unpack(config)
    assert config.mark == wire.CLIENT_MARK
    assert not own.HasField("filter_disabled")
    assert made == listener(mesh_of(OBJECTS))
    assert said(of).transparent
    for name in ("inbound|80", "inbound|81"):
        assert xds.resource(of, "h1", wire.CLUSTER_TYPE, name) == xds.resource(
            mesh_of(OBJECTS), "h1", wire.CLUSTER_TYPE, name
        )


@pytest.mark.parametrize("endpoint", ["127.0.0.1:8080", "[::1]:8080", "unix:///run/shop.sock"])
def test_a_program_that_is_called_at_another_address_sees_envoys(endpoint: str) -> None:
    (own,) = [
        each
        for each in listener(mesh_of([*OBJECTS, TPROXY, ingress(80, endpoint)])).listener_filters
        if each.name == ORIGINAL_SRC
    ]
    ports = own.filter_disabled.destination_port_range
    assert (ports.start, ports.end) == (80, 81)


def test_a_change_of_the_mode_reaches_the_host() -> None:
    of = mesh_of([*OBJECTS, REDIRECT])
    after, touched = update(of, {TPROXY.key: TPROXY}, of.vips, of.runtime)
    assert "h1" in touched.hosts
    assert ORIGINAL_SRC in [each.name for each in listener(after).listener_filters]


def test_another_mode_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="'redirect' or 'tproxy'"):
        CapturePolicySpec.model_validate({"inbound": {"mode": "none"}})
    with pytest.raises(ValidationError, match="mode"):
        CapturePolicySpec.model_validate({"outbound": {"mode": "tproxy"}})


# The rules


def ruleset(*, transparent: bool = True, **floor: Any) -> Ruleset:
    asked = full_request(Capture(inbound_ports=[80], transparent=transparent))
    return plan(asked, HostFloor(envoy_uid=900, **floor))


def chain(made: Ruleset, name: str) -> Chain:
    (found,) = [each for each in made.table.chains if each.name == name]
    return found


def lines(made: Ruleset, name: str) -> list[str]:
    return [rule_text(rule).partition(" comment ")[0] for rule in chain(made, name).rules]


def test_what_the_rules_are_in_words() -> None:
    made = ruleset()
    assert lines(made, "client_calls") == ["meta mark 1506 ct original zone set 1506 meta mark set 0"]
    back = ["ct direction reply ct original zone 1506 meta mark set 1506"]
    assert lines(made, "client_answers") == lines(made, "client_returns") == back
    assert lines(made, "outbound")[0] == "meta skuid 900 ct original zone 1506 return"
    assert made.marked_home == {4, 6}
    assert ruleset(ipv6=False).marked_home == {4}
    assert chain(made, "client_calls").priority < -200 < chain(made, "client_answers").priority


def test_who_cannot_goes_on_with_redirect_and_it_is_said() -> None:
    made = ruleset(not_transparent="the kernel is old")
    assert made.table == ruleset(transparent=False).table
    assert not made.marked_home
    assert [str(each) for each in made.refused] == ["inbound mode tproxy is not used, but redirect: the kernel is old"]
    assert not ruleset(transparent=False, not_transparent="the kernel is old").refused


def test_the_rules_stay_for_an_envoy_that_needs_them_whatever_is_asked_for() -> None:
    assert ruleset(transparent=False, uses_clients=True).table == ruleset().table
    assert ruleset(uses_clients=True, not_transparent="the owner says no").marked_home == {4, 6}


def test_a_programs_own_calls_are_explained_as_before() -> None:
    for made in (ruleset(), ruleset(transparent=False)):
        own = Packet(Hook.OUTPUT, HERE, THERE, 80, uid=1000, output_interface=2)
        assert verdict(made.table, own).action == "none"
        called = Packet(Hook.PREROUTING, THERE, HERE, 80, input_interface=2, local=True)
        assert verdict(made.table, called).action == "change port"


# Which Envoy gets the filter


def inbound(name: str = "virtualInbound", port: int = wire.INBOUND_PORT) -> Resource:
    made = Listener(name=name)
    made.address.socket_address.port_value = port
    own = ListenerFilter(name="clients")
    own.typed_config.Pack(OriginalSrc(mark=7))
    made.listener_filters.extend([ListenerFilter(name="first"), own, ListenerFilter(name="last")])
    message = ResourceMessage(name=name, version="1")
    message.resource.Pack(made)
    return Resource(name, "1", message.SerializeToString())


def filters_of(packed: bytes) -> list[str]:
    made = Listener.FromString(ResourceMessage.FromString(packed).resource.value)
    return [each.name for each in made.listener_filters]


def test_the_filter_alone_is_left_out_and_only_of_the_inbound_listener() -> None:
    assert filters_of(without_clients(inbound()).body) == ["first", "last"]
    other = inbound("other", 8443)
    assert without_clients(other) == other
    broken = replace_body(inbound(), inbound().body[:-3])
    assert without_clients(broken) == broken


def replace_body(resource: Resource, changed: bytes) -> Resource:
    return resource._replace(body=changed)


def test_of_two_envoys_only_the_one_that_may_use_its_clients_addresses_gets_it() -> None:
    exchange = Exchange()
    exchange.connected()
    for instance in Instance:
        exchange.envoy_connected(instance, uses_clients=instance is GREEN)
        exchange.receive(DeltaDiscoveryRequest(type_url=wire.LISTENER_TYPE), NOW, instance)
    exchange.update(Update(wire.LISTENER_TYPE, "l1", (inbound(),), ()))

    def got(instance: Instance) -> list[str]:
        (push,) = exchange.pushes(instance)
        (sent,) = DeltaDiscoveryResponse.FromString(push.data).resources
        return filters_of(sent.SerializeToString())

    assert got(BLUE) == ["first", "last"]
    assert got(GREEN) == ["first", "clients", "last"]


def test_an_envoy_that_is_started_anew_is_asked_for_its_right_anew() -> None:
    exchange = Exchange()
    exchange.connected()
    for may in (True, False):
        exchange.envoy_connected(BLUE, uses_clients=may)
        exchange.receive(DeltaDiscoveryRequest(type_url=wire.LISTENER_TYPE), NOW, BLUE)
        exchange.update(Update(wire.LISTENER_TYPE, "l", (inbound(),), ()))
        (push,) = exchange.pushes(BLUE)
        (sent,) = DeltaDiscoveryResponse.FromString(push.data).resources
        assert ("clients" in filters_of(sent.SerializeToString())) is may


# The right


def test_the_least_right_that_the_kernel_takes_is_given() -> None:
    releases = {"5.10.0-28-amd64": 12, "5.16.20": 12, "5.17.0-rc1": 13, "6.1.0": 13, "6.18.44-fc": 13, "new": 12}
    assert {release: client_addresses.right(release) for release in releases} == releases


def test_what_the_owner_refuses_is_refused_by_name() -> None:
    assert "capture.tproxy" in client_addresses.why_not(replace(CaptureSettings(), tproxy=False))


def test_what_an_envoy_may_is_what_the_kernel_says_of_its_process(tmp_path: Path) -> None:
    assert not client_addresses.may_use(tmp_path)
    facts = dict.fromkeys(("binary", "version", "sha256", "bootstrap_sha256", "command_sha256"), "")
    launch.write_record(str(tmp_path / "envoy.pid.json"), facts, os.getpid())
    status = tmp_path / "proc" / str(os.getpid()) / "status"
    status.parent.mkdir(parents=True)
    bit = 1 << client_addresses.right()
    for effective, may in ((0x400, False), (0x400 | bit, True)):
        status.write_text(f"Name:\tenvoy\nCapEff:\t{effective:016x}\n")
        assert client_addresses.may_use(tmp_path, tmp_path / "proc") is may
