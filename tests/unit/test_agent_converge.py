from dataclasses import replace

import pytest

from hostmesh_agent.capture import CaptureRequest, HostFloor, Scope, plan
from hostmesh_agent.capture.who import Direction, Match, Narrowing
from hostmesh_agent.converge import Decision, Evidence, InForce, RefusedError, check, decide, in_force
from hostmesh_agent.state import HostRecord
from hostmesh_api.v1.hostmesh_pb2 import Capture, CaptureDirection, CaptureRule, HostConfig, Workload

WEB = "spiffe://cluster.local/ns/default/sa/web"
API = "spiffe://cluster.local/ns/default/sa/api"
HOST = "spiffe://cluster.local/host/h1"
RECORD = HostRecord("h1", "cluster.local", ("10.0.0.1:15012",))
FLOOR = HostFloor(envoy_uid=900)
LISTENERS = frozenset({"virtualInbound", "virtualOutbound"})
EVERYTHING = Evidence(frozenset({WEB, API, HOST}), LISTENERS, InForce())
NOTHING = Evidence(frozenset(), frozenset(), InForce())


def config(**changes: object) -> HostConfig:
    fields: dict[str, object] = {
        "host": "h1",
        "trust_domain": "cluster.local",
        "workloads": [
            Workload(namespace="default", name="web", spiffe_id=WEB, ports=[8080]),
            Workload(namespace="default", name="api", spiffe_id=API, ports=[9090]),
        ],
        "outbound_spiffe_id": HOST,
        "capture": Capture(
            inbound_ports=[8080, 9090],
            outbound_prefixes=["240.240.0.0/16"],
            virtual_prefixes=["240.240.0.0/16"],
            dns=True,
        ),
        "listeners": dict.fromkeys(LISTENERS, ""),
    }
    return HostConfig(**{**fields, **changes})  # type: ignore[arg-type]  # a test's table of fields


def test_with_all_evidence_everything_is_captured() -> None:
    assert decide(config(), EVERYTHING) == Decision(
        CaptureRequest(
            Scope.MESH,
            frozenset({8080, 9090}),
            frozenset({"240.240.0.0/16"}),
            frozenset({"240.240.0.0/16"}),
            dns=True,
        ),
        (),
    )


def test_without_listeners_nothing_is_captured_and_it_is_said_what_is_missing() -> None:
    decision = decide(config(), replace(EVERYTHING, listeners=frozenset({"virtualInbound"})))
    assert decision.request is None
    assert decision.lacking == (
        "inbound port 8080: Envoy does not have virtualOutbound yet",
        "inbound port 9090: Envoy does not have virtualOutbound yet",
        "outbound: Envoy does not have virtualOutbound yet",
    )


def test_a_missing_certificate_holds_up_its_own_workload_alone() -> None:
    decision = decide(config(), replace(EVERYTHING, certificates=frozenset({WEB, HOST})))
    assert decision.request is not None
    assert decision.request.inbound_ports == {8080}
    assert decision.lacking == (f"inbound port 9090: {API} has no certificate yet",)


def test_without_the_outbound_certificate_names_and_virtual_addresses_stay_out_of_it() -> None:
    decision = decide(config(), replace(EVERYTHING, certificates=frozenset({WEB, API})))
    assert decision.request == CaptureRequest(Scope.MESH, frozenset({8080, 9090}), frozenset(), frozenset(), dns=False)
    assert decision.lacking == (f"outbound: {HOST} has no certificate yet",)


def test_what_is_captured_stays_captured_when_all_evidence_is_gone() -> None:
    captured = InForce(frozenset({8080, 9090}), outbound=True)
    assert decide(config(), replace(NOTHING, in_force=captured)) == decide(config(), EVERYTHING)


def test_what_is_wanted_no_more_is_let_go_without_any_evidence() -> None:
    captured = InForce(frozenset({8080, 9090, 7070}), outbound=True)
    narrow = config(capture=Capture(inbound_ports=[8080]))
    assert decide(narrow, replace(NOTHING, in_force=captured)) == Decision(
        CaptureRequest(Scope.MESH, frozenset({8080}), frozenset(), frozenset(), dns=False), ()
    )
    assert decide(config(capture=Capture()), replace(NOTHING, in_force=captured)) == Decision(None, ())


def test_scope_all_needs_no_prefixes_to_be_wanted() -> None:
    decision = decide(config(capture=Capture(scope=Capture.ALL)), EVERYTHING)
    assert decision.request is not None
    assert decision.request.scope is Scope.ALL


def test_what_the_kernel_holds_is_read_back_from_its_table() -> None:
    request = decide(config(), EVERYTHING).request
    assert request is not None
    assert in_force(plan(request, FLOOR).table) == InForce(frozenset({8080, 9090}), outbound=True)
    assert in_force(plan(replace(request, mesh_prefixes=frozenset(), virtual_prefixes=frozenset()), FLOOR).table) == (
        InForce(frozenset({8080, 9090}), outbound=False)
    )
    assert in_force(None) == InForce()


def test_certificates_of_workloads_host_and_outbound_are_wanted() -> None:
    assert {each.uri for each in check(config(), RECORD, FLOOR).identities} == {WEB, API, HOST}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"host": "h2"}, "it is for host 'h2' of 'cluster.local', this is 'h1' of 'cluster.local'"),
        ({"trust_domain": "other"}, "it is for host 'h1' of 'other'"),
        ({"outbound_spiffe_id": "spiffe://other/ns/a/sa/b"}, "spiffe://other/ns/a/sa/b"),
        ({"outbound_spiffe_id": "spiffe://cluster.local/host/h2"}, "spiffe://cluster.local/host/h2"),
        ({"workloads": [Workload(spiffe_id="../../etc")]}, "../../etc"),
        ({"capture": Capture(inbound_ports=[70000])}, "70000"),
        ({"capture": Capture(outbound_prefixes=["10.0.0.0/99"])}, "10.0.0.0/99"),
        ({"agents_endpoints": ["10.0.0.1"]}, "'10.0.0.1' is not host:port"),
        ({"agents_endpoints": ["mesh:1"], "join_endpoints": ["::1:2"]}, "'::1:2' is not host:port"),
    ],
)
def test_a_configuration_that_cannot_be_for_this_host_is_refused_with_the_reason(
    changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(RefusedError) as caught:
        check(config(**changes), RECORD, FLOOR)
    assert reason in str(caught.value)


def test_a_port_that_was_strict_is_closed_before_there_is_any_evidence_if_it_is_still_wanted() -> None:
    decision = decide(config(), replace(NOTHING, guarded=frozenset({8080, 7070})))
    assert decision.request is not None
    assert decision.request.inbound_ports == {8080}
    assert decision.request.mesh_prefixes == frozenset()


def test_what_the_hosts_owner_keeps_closed_is_captured_whatever_the_controller_wants() -> None:
    decision = decide(config(capture=Capture()), replace(NOTHING, always=frozenset({7070})))
    kept = frozenset({7070})
    assert decision.request == CaptureRequest(Scope.MESH, kept, dns=False, strict_ports=kept)


# Without a proxy


def open_config(*strict: int, **capture: object) -> HostConfig:
    fields = {
        "scope": Capture.ALL,
        "inbound_ports": [8080, 9090],
        "outbound_prefixes": ["240.240.0.0/16", "10.1.0.0/16", "192.0.2.1/32"],
        "virtual_prefixes": ["240.240.0.0/16"],
        "open_prefixes": ["192.0.2.1/32"],
        "dns": True,
        "inbound": CaptureDirection(open=True),
        "outbound": CaptureDirection(open=True),
    }
    return config(capture=Capture(**{**fields, **capture}), strict_ports=strict)  # type: ignore[arg-type]


CAPTURED = InForce(frozenset({8080, 9090}), outbound=True)
IN, OUT = Direction.INBOUND, Direction.OUTBOUND


def test_while_there_is_no_envoy_what_is_open_passes_by_and_what_needs_mutual_tls_does_not() -> None:
    decision = decide(open_config(9090), replace(EVERYTHING, in_force=CAPTURED, gone=True))
    assert decision.passing == {IN, OUT}
    request = decision.request
    assert request is not None
    assert request.inbound_ports == {9090}, "the port that takes mutual TLS alone is closed"
    assert request.scope is Scope.MESH
    assert request.mesh_prefixes == {"240.240.0.0/16", "10.1.0.0/16"}, "what is of the mesh is closed"
    assert request.virtual_prefixes == {"240.240.0.0/16"}
    assert decision.lacking == (
        "inbound port 8080: connections pass by until Envoy is back",
        "outbound: what is not of the mesh passes by until Envoy is back",
    )


def test_each_direction_fails_by_its_own_mode() -> None:
    without = replace(EVERYTHING, in_force=CAPTURED, gone=True)
    inbound = decide(open_config(outbound=CaptureDirection()), without)
    assert inbound.passing == {IN}
    assert inbound.request is not None
    assert (inbound.request.inbound_ports, inbound.request.scope) == (frozenset(), Scope.ALL)
    outbound = decide(open_config(inbound=CaptureDirection()), without)
    assert outbound.passing == {OUT}
    assert outbound.request is not None
    assert outbound.request.inbound_ports == {8080, 9090}
    closed = decide(open_config(inbound=CaptureDirection(), outbound=CaptureDirection()), without)
    assert (closed.passing, closed.lacking) == (frozenset(), ())


def test_what_passes_is_captured_again_when_envoy_has_its_listeners_and_not_when_it_merely_runs() -> None:
    passing = replace(EVERYTHING, in_force=InForce(outbound=True), passing=frozenset({IN, OUT}))
    still = decide(open_config(9090), replace(passing, listeners=frozenset()))
    assert still.passing == {IN, OUT}
    assert still.request is not None
    assert still.request.inbound_ports == {9090}
    back = decide(open_config(9090), passing)
    assert (back.passing, back.lacking) == (frozenset(), ())
    assert back.request == decide(open_config(9090), replace(EVERYTHING, in_force=CAPTURED)).request


def test_ports_that_passed_by_are_closed_at_once_when_the_mode_turns_closed_while_there_is_no_envoy() -> None:
    passing = replace(EVERYTHING, in_force=InForce(outbound=True), passing=frozenset({IN}), gone=True)
    closed = decide(open_config(inbound=CaptureDirection()), replace(passing, listeners=frozenset()))
    assert closed.request is not None
    assert IN not in closed.passing
    assert closed.request.inbound_ports == {8080, 9090}


def test_an_open_port_for_which_policy_turns_strict_while_there_is_no_envoy_is_closed_at_once() -> None:
    now = replace(NOTHING, in_force=InForce(outbound=True), passing=frozenset({IN, OUT}), gone=True)
    before, after = decide(open_config(), now), decide(open_config(8080), now)
    assert before.request is not None
    assert after.request is not None
    assert before.request.inbound_ports == frozenset()
    assert after.request.inbound_ports == {8080}


def test_ports_that_the_owner_keeps_closed_never_pass() -> None:
    decision = decide(open_config(), replace(NOTHING, in_force=CAPTURED, gone=True, always=frozenset({8080})))
    assert decision.request is not None
    assert decision.request.inbound_ports == {8080}
    assert decision.request.strict_ports == {8080}


def test_with_scope_mesh_and_nothing_outside_of_it_outbound_has_nothing_that_could_pass() -> None:
    closed = open_config(scope=Capture.MESH, open_prefixes=[])
    assert decide(closed, replace(EVERYTHING, in_force=CAPTURED, gone=True)).passing == {IN}


def test_a_policy_that_cannot_be_planned_is_refused_by_its_name() -> None:
    bad = Capture(policy="default/p", outbound=CaptureDirection(exclude=[CaptureRule(cidrs=["10.0.0.1/8"])]))
    with pytest.raises(
        RefusedError, match=r"^CapturePolicy default/p: rule 1 of outbound\.exclude: not an address prefix"
    ):
        check(config(capture=bad), RECORD, FLOOR)


def test_the_rules_of_a_policy_reach_the_plan_whole() -> None:
    rule = CaptureRule(ports=[1], cidrs=["10.0.0.0/8"], users=["a"], units=["b.service"], interfaces=["c"])
    given = config(capture=Capture(inbound_ports=[8080], outbound=CaptureDirection(include=[rule], exclude=[rule])))
    request = decide(given, EVERYTHING).request
    assert request is not None
    match = Match(*(frozenset({each}) for each in (1, "10.0.0.0/8", "a", "b.service", "c")))  # type: ignore[arg-type]
    assert request.outbound == Narrowing((match,), (match,))
