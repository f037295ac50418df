"""Our annotations of WorkloadEntries: probes and capacity, and what is wrong with them."""

from pathlib import Path

import pytest
from envoy.service.discovery.v3.discovery_pb2 import Resource

from golden.objects import SETTINGS, obj
from hostmesh_api import wire
from hostmesh_api.v1 import hostmesh_pb2 as pb
from hostmesh_controller import xds
from hostmesh_controller.checks.annotations import check_annotations
from hostmesh_controller.mesh import HostRuntime, Mesh, build, update
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.model.probes import NamedProbe
from hostmesh_controller.workload_annotations import CAPACITY, CORES, LOAD, PROBES, probes, problems
from hostmesh_controller.yaml_nodes import Document, read_yaml

TWO = """
- name: answers
  httpGet: {port: 8080, path: /live, scheme: HTTPS}
  periodSeconds: 2
- name: runs
  systemd: {unit: web.service}
"""


def entry(probes: str | None) -> ApiObject:
    annotations = {} if probes is None else {PROBES: probes}
    return obj("WorkloadEntry", "web", {"address": "10.0.0.1"}, annotations=annotations)


def mesh(probes: str | None) -> Mesh:
    runtime = {"h1": HostRuntime(True)}
    return build(SETTINGS, [obj("Host", "h1", {"addresses": ["10.0.0.1"]}), entry(probes)], {}, runtime)


def configured(found: Mesh) -> pb.Workload:
    resource = xds.resource(found, "h1", wire.HOST_CONFIG_TYPE, "self")
    assert resource is not None
    assert resource.body is not None
    config = pb.HostConfig()
    assert Resource.FromString(resource.body).resource.Unpack(config)
    (workload,) = config.workloads
    return workload


def test_the_agent_is_told_of_each_probe_and_where_the_workload_is() -> None:
    workload = configured(mesh(TWO))
    assert workload.address == "10.0.0.1"
    assert not workload.HasField("probe")
    answers, runs = workload.more_probes
    assert (answers.name, answers.probe.http_get.port, answers.probe.http_get.tls) == ("answers", 8080, True)
    assert (answers.probe.period_s, answers.probe.failure_threshold) == (2, 3)
    assert (runs.name, runs.probe.systemd.unit) == ("runs", "web.service")


def test_an_agent_hears_whether_it_has_to_measure_its_load() -> None:
    host = obj("Host", "h1", {"addresses": ["10.0.0.1"]})
    for capacity, weight, asked in (("load", 0, True), ("load", 3, False), ("cores", 0, False)):
        spec = {"address": "10.0.0.1", **({"weight": weight} if weight else {})}
        item = obj("WorkloadEntry", "web", spec, annotations={"hostmesh.io/capacity": capacity})
        found = build(SETTINGS, [host, item], {}, {"h1": HostRuntime(True)})
        assert configured(found).weighed_by_load is asked


def test_one_probe_needs_no_list_and_no_name() -> None:
    (probe,) = configured(mesh('{"tcpSocket": {"port": 80}}')).more_probes
    assert (probe.name, probe.probe.tcp_socket.port) == ("probe", 80)
    assert not configured(mesh(None)).more_probes


def test_a_workload_with_probes_is_well_when_its_agent_says_so() -> None:
    found = mesh(TWO)
    (workload,) = found.workloads_of("h1")
    assert not found.is_healthy(workload)
    runtime = {"h1": HostRuntime(True, healthy=frozenset({("default", "web")}))}
    assert update(found, {}, found.vips, runtime)[0].is_healthy(workload)
    bare = mesh(None)
    assert bare.is_healthy(*bare.workloads_of("h1"))


def test_a_change_of_probes_touches_the_host_alone() -> None:
    before = mesh(TWO)
    changed = entry('{"tcpSocket": {"port": 81}}')
    after, touched = update(before, {changed.key: changed}, before.vips, before.runtime)
    assert touched.hosts == {"h1"}
    assert not touched.services
    assert configured(after).more_probes[0].probe.tcp_socket.port == 81


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected one probe"),
        ("a: [", "line 1"),
        ("tcpSocket: {prot: 80}", "tcpSocket.port: required"),
        ("- tcpSocket: {port: 80}\n- tcpSocket: {port: 81}", "give each of several probes a name"),
        ("- {name: a, tcpSocket: {port: 80}}\n- {name: a, tcpSocket: {port: 81}}", "two probes are named 'a'"),
        ("systemd: {unit: ../x}", "unit"),
        ("systemd: {unit: web}", "unit"),
        ("name: a", "give one of httpGet, tcpSocket, exec, grpc and systemd"),
        ("http: {port: 80}", "unknown field 'http': write httpGet: {port: 8080, path: /}"),
        ("https: {port: 80}", "unknown field 'https': write httpGet: {port: 8443, path: /, scheme: HTTPS}"),
        ("tcp: {port: 80}", "unknown field 'tcp': write tcpSocket: {port: 5432}"),
        ("tcpSocket: {port: 80}\nexec: {command: [x]}", "exec"),
        ("[]", "at least 1"),
        ("- {name: a, tcpSocket: {port: 0}}", "[0].tcpSocket.port"),
        ("&a [*a]", "line 1"),
    ],
)
def test_a_mistake_is_told_with_its_place(text: str, said: str) -> None:
    found = problems({PROBES: text})
    assert {name for name, _ in found} == {PROBES}
    assert any(said in message for _, message in found), found
    (finding, *_) = check_annotations(entry(text))
    assert (finding.path, finding.severity) == (("metadata", "annotations", PROBES), "error")
    assert not configured(mesh(text)).more_probes


def test_a_group_is_told_what_is_wrong_with_what_it_gives_its_members() -> None:
    group = obj("WorkloadGroup", "web", {"template": {}, "metadata": {"annotations": {CAPACITY: "memory"}}})
    (finding,) = check_annotations(group)
    assert finding.path == ("spec", "metadata", "annotations", CAPACITY)
    assert "'cores'" in finding.message


def test_the_operators_guide_shows_each_way_to_probe_and_each_capacity() -> None:
    text = (Path(__file__).parents[2] / "OPERATING.md").read_text()
    section = text.partition("### Probes, and how much a host takes")[2].partition("\n## ")[0]
    blocks = [each.removeprefix("    ") for each in section.splitlines() if each.startswith("    ") or not each]
    (shown,) = (each.value for each in read_yaml("\n".join(blocks)) if isinstance(each, Document))
    annotations = shown["metadata"]["annotations"]
    assert problems(annotations) == []
    written = probes(annotations)
    assert {way for each in written for way in each.ways if getattr(each, way) is not None} == set(NamedProbe.ways)
    assert any(each.http_get is not None and each.http_get.scheme == "HTTPS" for each in written)
    assert all(f"`{each}`" in section for each in (CORES, LOAD, PROBES, CAPACITY))
