"""Connections become flows: what is left out, whose they are, and how much of it is kept."""

from collections.abc import Hashable, Mapping

import pytest

from hostmesh_agent import calls, flows, observing, services
from hostmesh_agent.flows import MAX_FLOWS, MAX_PEERS, OWN, Flow, Flows, Program, Scene, Seen, flow_of, worth_telling
from hostmesh_agent.sockets import Connection
from hostmesh_api.v1.hostmesh_pb2 import Flow as FlowMessage
from hostmesh_api.v1.hostmesh_pb2 import HostReport, ListeningSocket, ObservedCall, ObservedCalls, ObservedFlows
from hostmesh_controller.call_limits import REPORT_BYTES

ENVOY = 990
WEB, DB = Program("nginx", "nginx.service"), Program("postgres", "docker:abc")
HERE = "10.0.0.1"


def scene(
    owners: Mapping[int, Program] | None = None,
    callers: Mapping[tuple[str, int], Program] | None = None,
    *,
    public: bool = True,
    through_envoy: frozenset[int] = frozenset(),
) -> Scene:
    return Scene(
        serving={80: WEB, 15006: OWN},
        owners=owners or {},
        callers=callers or {},
        envoy_uid=ENVOY,
        skipped={("10.0.0.9", 15012)},
        addresses={HERE, "fd00::1"},
        public=public,
        through_envoy=through_envoy,
    )


def connection(port: int, peer: str, peer_port: int, *, inode: int = 7, uid: int = 1000, at: str = HERE) -> Connection:
    return Connection(at, port, peer, peer_port, uid, inode)


def test_who_calls_a_port_that_a_program_serves_is_its_caller() -> None:
    assert flow_of(connection(80, "10.0.0.2", 50000), scene()) == Flow(WEB, True, "10.0.0.2", 80)


def test_a_program_that_calls_is_known_by_its_socket() -> None:
    found = flow_of(connection(50000, "10.0.0.3", 5432), scene({7: DB}))
    assert found == Flow(DB, False, "10.0.0.3", 5432)


def test_what_was_closed_is_taken_for_the_only_known_caller_and_otherwise_for_nobodys() -> None:
    closed = connection(50000, "10.0.0.3", 5432, inode=0, uid=0)
    assert flow_of(closed, scene(callers={("10.0.0.3", 5432): DB})) == Flow(DB, False, "10.0.0.3", 5432)
    assert flow_of(closed, scene()) == Flow(Program(), False, "10.0.0.3", 5432)


@pytest.mark.parametrize(
    "left_out",
    [
        connection(50000, "127.0.0.1", 80, at="127.0.0.1"),
        connection(50000, "::1", 80, at="::1"),
        connection(80, HERE, 50000),  # the caller's own socket tells of it
        connection(50000, "10.0.0.3", 8080, uid=ENVOY),
        connection(15006, "10.0.0.2", 50000, inode=0),
        connection(50000, "10.0.0.9", 15012, inode=0),
        connection(50000, "10.0.0.3", 80, inode=8),
    ],
)
def test_loopback_and_the_meshs_own_connections_are_left_out(left_out: Connection) -> None:
    assert flow_of(left_out, scene({8: OWN})) is None


def test_where_programs_see_who_calls_envoys_connections_to_them_are_not_taken_for_the_callers() -> None:
    through = scene(through_envoy=frozenset({80}))
    assert flow_of(connection(80, "10.0.0.2", 50000), through) is None
    assert flow_of(connection(50000, HERE, 80, inode=0, at="10.0.0.2"), through) is None
    assert flow_of(connection(50001, "10.0.0.3", 5432), through) is not None
    assert flow_of(connection(80, "10.0.0.2", 50000), scene(through_envoy=frozenset({81}))) is not None


def test_peers_of_the_internet_are_one_where_the_owner_says_so() -> None:
    assert flow_of(connection(80, "1.1.1.1", 5), scene(public=False)) == Flow(WEB, True, "", 80)
    assert flow_of(connection(80, "10.0.0.2", 5), scene(public=False)) == Flow(WEB, True, "10.0.0.2", 80)
    assert flow_of(connection(80, "1.1.1.1", 5), scene()) == Flow(WEB, True, "1.1.1.1", 80)


def test_a_connection_counts_once_however_often_it_is_seen_and_after_it_has_gone() -> None:
    kept, flow = Flows(), Flow(WEB, True, "10.0.0.2", 80)
    kept.take(["a", "b"], {"a": flow, "b": flow}, 10.0)
    kept.take(["a", "b"], {}, 20.0)
    assert kept.seen == {flow: Seen(2, 10.0, 20.0)}
    kept.take([], {"c": flow}, 30.0)
    kept.take([], {}, 40.0)
    assert kept.seen == {flow: Seen(3, 10.0, 30.0)}
    assert not kept.there


def test_callers_without_number_are_one_after_so_many_and_other_ports_keep_their_room() -> None:
    kept = Flows()
    many: dict[Hashable, Flow | None] = {
        index: Flow(WEB, True, f"10.1.{index // 256}.{index % 256}", 80) for index in range(MAX_PEERS + 50)
    }
    kept.take([], many, 1.0)
    assert len(kept.seen) == MAX_PEERS + 1
    assert kept.seen[Flow(WEB, True, "", 80)].count == 50
    kept.take([], {"x": Flow(DB, True, "10.0.0.2", 5432)}, 2.0)
    assert Flow(DB, True, "10.0.0.2", 5432) in kept.seen


def test_all_of_it_is_bounded_whatever_programs_there_are() -> None:
    kept = Flows()
    many: dict[Hashable, Flow | None] = {
        index: Flow(Program(f"p{index}"), False, f"10.0.{index % 200}.1", index) for index in range(2 * MAX_FLOWS)
    }
    kept.take([], many, 1.0)
    assert len(kept.seen) == MAX_FLOWS + 1
    assert kept.seen[Flow(Program(), False, "", 0)].count == MAX_FLOWS


def test_who_was_not_seen_for_a_week_makes_room() -> None:
    kept, flow = Flows(), Flow(WEB, True, "10.0.0.2", 80)
    kept.take([], {"a": flow}, 0.0)
    kept.take([], {}, flows.FORGET_AFTER_S)
    assert not kept.seen


def test_a_connection_that_lasts_is_told_again_only_now_and_then() -> None:
    told = Seen(1, 0.0, 10.0)
    assert worth_telling(Seen(1, 0.0, 10.0), None)
    assert not worth_telling(Seen(1, 0.0, 10.0 + flows.TELL_AGAIN_S - 1), told)
    assert worth_telling(Seen(1, 0.0, 10.0 + flows.TELL_AGAIN_S), told)
    assert worth_telling(Seen(2, 0.0, 11.0), told)


def test_the_largest_report_of_flows_and_sockets_fits_into_what_the_controller_takes() -> None:
    text, unit = "p" * 15, "u" * 256
    flow = FlowMessage(program=text, unit=unit, peer="2001:db8:1111:2222:3333:4444:5555:6666", port=65535, count=2**40)
    one = ListeningSocket(address=flow.peer, port=65535, protocol="tcp", pid=2**22, program=text, uid=2**31, unit=unit)
    caller = ObservedCall(chain="0.0.0.0_65535|plaintext-http", caller="spiffe://cluster.local/ns/default/sa/web" * 3)
    report = HostReport(
        flows=ObservedFlows(flows=[flow] * observing.MAX_TOLD),
        listening=[one] * services.MAX_SOCKETS,
        calls=ObservedCalls(calls=[caller] * calls.MAX_TOLD),
    )
    assert report.ByteSize() < REPORT_BYTES
