"""translate: the pipeline offline, from documents to all that one host's Envoy can ask for."""

import json
from pathlib import Path

import pytest

from hostmesh_controller.translation import UnknownHostError, select_types, translate
from running_controller import run_cli

DOCUMENTS = """
apiVersion: hostmesh.io/v1
kind: Host
metadata: {name: caller}
spec: {addresses: [10.0.0.1]}
---
apiVersion: hostmesh.io/v1
kind: Host
metadata: {name: server}
spec: {addresses: [10.0.0.2]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-1}
spec: {address: 10.0.0.2, labels: {app: reviews, version: v1}, ports: {http: 8080, tcp: 9000}, serviceAccount: reviews}
---
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec:
  ports: [{port: 80, name: http, targetPort: 8080}, {port: 9000, name: tcp}]
  selector: {app: reviews}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: v1}}]}]}
"""
SUBSET = "outbound|80|v1|reviews.default.svc.cluster.local"


def names(host: str) -> dict[str, set[str]]:
    found = translate([("a.yaml", DOCUMENTS)], "default", host, trust_domain="cluster.local", domain="cluster.local")
    assert found.review.errors == ()
    return {kind: set(resources) for kind, resources in found.resources.items()}


def test_what_a_caller_can_ask_for_is_followed_from_name_to_endpoint() -> None:
    found = names("caller")
    assert found["host"] == {"self"}
    assert {"virtualInbound", "virtualOutbound", "0.0.0.0_80"} <= found["listener"]
    assert found["virtualhost"] == {"80/reviews.default.svc.cluster.local"}
    assert {SUBSET, "tcp|240.240.0.1:9000", "PassthroughCluster"} <= found["cluster"]
    assert SUBSET in found["endpoint"]


def test_a_server_has_its_inbound_cluster_and_a_caller_has_not() -> None:
    assert "inbound|8080||" in names("server")["cluster"]
    assert "inbound|8080||" not in names("caller")["cluster"]


def test_the_same_documents_give_the_same_translation_in_any_order() -> None:
    turned = "---".join(reversed(DOCUMENTS.split("---")))
    results = [
        translate([("a", text)], "default", "caller", trust_domain="cluster.local", domain="cluster.local").resources
        for text in (DOCUMENTS, turned)
    ]
    assert results[0] == results[1]


def test_an_unknown_host_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownHostError, match="did you mean 'caller'"):
        names("callr")


def test_types_are_named_in_any_case_and_number() -> None:
    assert select_types(["Clusters", "virtual-host"]) == {"cluster", "virtualhost"}
    with pytest.raises(ValueError, match="did you mean 'cluster'"):
        select_types(["clutser"])


def test_the_command_prints_json_of_the_asked_types(tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"
    path.write_text(DOCUMENTS)
    result = run_cli("translate", "-f", str(path), "--host", "caller", "-t", "endpoint", "-o", "json")
    assert result.returncode == 0, result.stderr
    shown = json.loads(result.stdout)
    assert list(shown) == ["endpoint"]
    assert shown["endpoint"][SUBSET]["clusterName"] == SUBSET


def test_documents_with_problems_are_not_translated(tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"
    path.write_text(DOCUMENTS.replace("subsets", "substs"))
    result = run_cli("translate", "-f", str(path), "--host", "caller")
    assert result.returncode == 1
    assert f"{path}:" in result.stderr
    assert "did you mean 'subsets'?" in result.stderr
    assert result.stdout == ""
