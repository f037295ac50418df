"""An endpoint that a ServiceEntry lists without a service account has that of the WorkloadEntry at its address."""

from typing import Any

import pytest

from golden.objects import SETTINGS, obj
from hostmesh_controller.mesh import Mesh, build, update
from hostmesh_controller.mesh.records import WorkloadKey
from hostmesh_controller.mesh.selection import identity_of
from hostmesh_controller.model.adoption import Account, Standing, adopted
from hostmesh_controller.model.objects import ApiObject, ObjectKey

ONE, TWO = Account("a", "one"), Account("b", "two")
INLINE = WorkloadKey("default", "e@10.0.0.1")
DEFAULT = "spiffe://cluster.local/ns/default/sa/default"


def standing(account: Account, *ports: int) -> Standing:
    return Standing(account, frozenset(ports))


@pytest.mark.parametrize(
    ("there", "account"),
    [
        ((), None),
        ((standing(ONE),), ONE),
        ((standing(ONE), standing(ONE)), ONE),
        ((standing(ONE), standing(TWO)), None),
        ((standing(ONE, 80), standing(TWO, 81)), ONE),
        ((standing(ONE, 80), standing(TWO)), ONE),
        ((standing(ONE), standing(TWO, 81)), ONE),
        ((standing(ONE, 81),), None),
        ((standing(ONE, 80), standing(TWO, 80)), None),
    ],
)
def test_an_endpoint_adopts_the_one_account_that_can_be_meant(
    there: tuple[Standing, ...], account: Account | None
) -> None:
    assert adopted(frozenset({80}), there) == account


def entry(*endpoints: dict[str, Any]) -> ApiObject:
    ports = [{"number": 80, "name": "http", "protocol": "HTTP"}]
    spec = {"hosts": ["api.example.com"], "ports": ports, "location": "MESH_INTERNAL", "resolution": "STATIC"}
    return obj("ServiceEntry", "e", spec | {"endpoints": list(endpoints)})


def workload(name: str, account: str, namespace: str = "shop", **more: Any) -> ApiObject:
    return obj("WorkloadEntry", name, {"address": "10.0.0.1", "serviceAccount": account} | more, namespace)


def mesh(*objects: ApiObject) -> Mesh:
    return build(SETTINGS, [obj("Host", "h1", {"addresses": ["10.0.0.1"]}), *objects], {}, {})


def inline(found: Mesh) -> str:
    return identity_of(found.workloads[INLINE], "cluster.local").uri


def test_an_endpoint_serves_under_the_identity_of_the_workload_at_its_address() -> None:
    found = mesh(entry({"address": "10.0.0.1"}), workload("w", "web"))
    assert inline(found) == "spiffe://cluster.local/ns/shop/sa/web"
    (endpoints,) = found.endpoints.values()
    assert endpoints.identities == ("spiffe://cluster.local/ns/shop/sa/web",)


def test_an_endpoint_that_declares_an_account_or_stands_alone_adopts_none() -> None:
    own = mesh(entry({"address": "10.0.0.1", "serviceAccount": "own"}), workload("w", "web"))
    assert inline(own) == "spiffe://cluster.local/ns/default/sa/own"
    assert inline(mesh(entry({"address": "10.0.0.1"}))) == DEFAULT


def test_an_endpoint_follows_the_workload_that_comes_changes_moves_and_goes() -> None:
    key = ObjectKey("WorkloadEntry", "shop", "w")
    now = mesh(entry({"address": "10.0.0.1"}))
    for change, identity in (
        (workload("w", "web"), "spiffe://cluster.local/ns/shop/sa/web"),
        (workload("w", "other"), "spiffe://cluster.local/ns/shop/sa/other"),
        (workload("w", "other", address="10.0.0.2"), DEFAULT),
        (workload("w", "web"), "spiffe://cluster.local/ns/shop/sa/web"),
        (None, DEFAULT),
    ):
        now, touched = update(now, {key: change}, now.vips, now.runtime)
        assert inline(now) == identity
        assert "h1" in touched.hosts
