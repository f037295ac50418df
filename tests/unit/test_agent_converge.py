from dataclasses import replace

import pytest

from hostmesh_agent.capture import CaptureRequest, HostFloor, Scope, plan
from hostmesh_agent.converge import Decision, Evidence, InForce, RefusedError, check, decide, in_force
from hostmesh_agent.state import HostRecord
from hostmesh_api.v1.hostmesh_pb2 import Capture, HostConfig, Workload

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
