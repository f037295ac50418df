"""`capture clear` while the second Envoy serves a gateway and no agent runs: nothing is captured, it serves on."""

import argparse
import dataclasses
import json
import os
from pathlib import Path

import pytest

from hostmesh_agent import capture, cli_capture, exits, hold, launch, process
from hostmesh_agent.capture import CaptureRequest, HostFloor, Owner, Scope, nft, plan, routes
from hostmesh_agent.config import AgentConfig, DnsSettings
from hostmesh_agent.places import GREEN, PORTS
from netns.conftest import HOST, PEER
from netns.space import Servers, Space, ask, snapshot

GATEWAY = 443
FLOOR = HostFloor(
    envoy_uid=900,
    outbound_port=PORTS[GREEN].outbound,
    inbound_port=PORTS[GREEN].inbound,
    dns_port=PORTS[GREEN].dns,
    door_port=PORTS[GREEN].door,
    doorways=frozenset({("", GATEWAY), (HOST[1], 8443)}),
)
REQUEST = CaptureRequest(
    Scope.ALL, frozenset({8080}), frozenset({f"{PEER[0]}/32"}), frozenset({"240.240.0.0/16"}), strict_ports=frozenset()
)


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 192.0.2.1\n")
    return AgentConfig(state_dir=tmp_path / "s", run_dir=tmp_path / "r", dns=DnsSettings(resolv_conf=resolv_conf))


def runs(config: AgentConfig) -> None:
    """Record a process that runs (this one) as the second Envoy: it is neither asked nor ended."""
    directory = config.directory_of(GREEN)
    directory.mkdir(parents=True)
    pid = os.getpid()
    record = process.Record(pid, launch.start_ticks(pid), launch.boot_id(), "", "", "", "", "")
    (directory / process.RECORD).write_text(json.dumps(dataclasses.asdict(record)))


def apply_and_end(servers: Servers, peer: Space) -> None:
    door = PORTS[GREEN].door
    assert door is not None
    servers.tcp("door", door)
    servers.tcp("program", 8080)
    with peer():
        servers.tcp("peer", 80)
    owner = Owner()
    capture.apply(plan(REQUEST, FLOOR), owner)
    owner.close()


def test_with_the_second_envoy_and_no_agent_the_gateways_ports_stay(
    peer: Space, servers: Servers, config: AgentConfig
) -> None:
    apply_and_end(servers, peer)
    runs(config)
    assert cli_capture._clear(argparse.Namespace(), config) == exits.DONE
    assert hold.is_off(config.state_dir)
    for address in HOST:
        with peer():
            assert ask(address, GATEWAY) == f"door {address} {GATEWAY}"
            assert ask(address, 8080) == "program"
        assert ask(address, GATEWAY) == f"door {address} {GATEWAY}"
    with peer():
        assert ask(HOST[1], 8443) == f"door {HOST[1]} 8443"
    assert ask(PEER[0], 80) == "peer"
    assert not routes.read()
    # The agent that comes back makes the same of it, and clears it all once the first Envoy serves again.
    left = nft.read()
    assert capture.doors.alone(left) == left
    assert cli_capture._clear(argparse.Namespace(), config) == exits.DONE
    assert nft.read() == left


def test_without_it_nothing_is_left(peer: Space, servers: Servers, config: AgentConfig) -> None:
    before = snapshot()
    apply_and_end(servers, peer)
    assert cli_capture._clear(argparse.Namespace(), config) == exits.DONE
    assert snapshot() == before
