"""Which endpoints a caller uses first: the scenarios of Istio's locality load balancing."""

from typing import Any

import pytest

from hostmesh_controller.mesh.records import Endpoint
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.model.destination_rule import LoadBalancer, OutlierDetection
from hostmesh_controller.model.mesh_config import MeshConfigSpec
from hostmesh_controller.xds.localities import Place, grouped, place_of, spread_of
from hostmesh_controller.xds.policy import Policy

HERE = "region1/zone1/subzone1"
CONFIG = MeshConfigSpec()


def endpoint(locality: str, weight: int = 1, address: str = "10.0.0.1", **labels: Any) -> Endpoint:
    return Endpoint(address, 80, labels, weight, locality, tls=True)


def spread(setting: dict[str, Any] | None = None, *, outlier: bool = True, zone: dict[str, Any] | None = None) -> Any:
    balancer = None
    if setting is not None:
        balancer = LoadBalancer.model_validate({"localityLbSetting": setting})
    if zone is not None:
        balancer = LoadBalancer.model_validate({"zoneAwareLbSetting": zone})
    return spread_of(Policy(balancer, outlier_detection=OutlierDetection() if outlier else None), CONFIG)


def priorities(localities: list[str], how: Any, place: Place | None = None) -> dict[str, int]:
    found = grouped([endpoint(each) for each in localities], how, place or Place(HERE))
    return {group.locality: group.priority for group in found}


def weights(endpoints: list[Endpoint], how: Any, here: str = HERE) -> dict[str, int]:
    return {group.locality: group.weight for group in grouped(endpoints, how, Place(here))}


NEAR = [HERE, "region1/zone1/subzone2", "region1/zone2/subzone1", "region2/zone1/subzone1"]


def test_the_nearest_come_first_once_failing_endpoints_are_noticed() -> None:
    assert priorities(NEAR, spread()) == dict(zip(NEAR, range(4), strict=True))


def test_without_outlier_detection_all_are_used_alike() -> None:
    assert set(priorities(NEAR, spread(outlier=False)).values()) == {0}


def test_it_can_be_turned_off() -> None:
    assert spread({"enabled": False}) is None


def test_priorities_have_no_gaps() -> None:
    assert priorities([HERE, "region2/zone1/subzone1"], spread()) == {HERE: 0, "region2/zone1/subzone1": 1}


def test_a_region_steps_in_for_another_before_the_rest() -> None:
    how = spread({"failover": [{"from": "region1", "to": "region3"}]})
    assert priorities([HERE, "region2/z/s", "region3/z/s"], how) == {HERE: 0, "region3/z/s": 1, "region2/z/s": 2}


def test_what_steps_in_for_another_region_does_not_count() -> None:
    how = spread({"failover": [{"from": "region9", "to": "region3"}]})
    assert priorities([HERE, "region2/z/s", "region3/z/s"], how) == {HERE: 0, "region3/z/s": 1, "region2/z/s": 1}


def test_a_caller_without_a_place_is_nearest_to_endpoints_without_one() -> None:
    assert priorities(["", "region1/z/s"], spread(), Place()) == {"": 0, "region1/z/s": 1}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([{"from": "region1/zone1/subzone1", "to": {"region1/zone1": 90, "region1/zone2": 5, "region2": 5}}], None),
        (
            [{"from": "region1/zone1/*", "to": {"region1/*": 60, "region2/*": 40}}],
            {HERE: 20, "region1/zone1/subzone2": 20, "region1/zone2/subzone1": 20, "region2/zone1/subzone1": 40},
        ),
        ([{"from": "region9", "to": {"region1": 100}}], dict.fromkeys(NEAR, 1)),
        ([{"from": "*", "to": {"region2": 100}}], {"region2/zone1/subzone1": 100}),
    ],
)
def test_traffic_is_shared_out_as_the_callers_locality_says(
    rules: list[dict[str, Any]], expected: dict[str, int] | None
) -> None:
    if expected is None:
        expected = {HERE: 45, "region1/zone1/subzone2": 45, "region1/zone2/subzone1": 5, "region2/zone1/subzone1": 5}
    assert weights([endpoint(each) for each in NEAR], spread({"distribute": rules})) == expected


def test_a_share_is_divided_by_the_weights_of_the_endpoints_and_rounded_up() -> None:
    endpoints = [endpoint("region2/a", 2), endpoint("region2/b", 1), endpoint(HERE, 5)]
    how = spread({"distribute": [{"from": "region1", "to": {"region2": 80, "region1": 20}}]}, outlier=False)
    assert weights(endpoints, how) == {"region2/a": 54, "region2/b": 27, HERE: 20}


def test_a_locality_weighs_what_its_endpoints_weigh() -> None:
    assert weights([endpoint(HERE, 3), endpoint(HERE, 4)], None) == {HERE: 7}


def by_address(endpoints: list[Endpoint], how: Any, place: Place) -> dict[str, int]:
    return {each.address: group.priority for group in grouped(endpoints, how, place) for each in group.endpoints}


def test_endpoints_that_share_more_of_the_first_labels_come_first() -> None:
    how = spread({"failoverPriority": ["version", "rack"]})
    endpoints = [
        endpoint("", address="10.0.0.1", version="1", rack="a"),
        endpoint("", address="10.0.0.2", version="1", rack="b"),
        endpoint("", address="10.0.0.3", version="2", rack="a"),
    ]
    found = by_address(endpoints, how, Place(labels={"version": "1", "rack": "a"}))
    assert found == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 2}


def test_a_label_with_a_value_is_compared_with_that_and_not_with_the_callers() -> None:
    how = spread({"failoverPriority": ["version=2"]})
    endpoints = [endpoint("", address="10.0.0.1", version="1"), endpoint("", address="10.0.0.2", version="2")]
    assert by_address(endpoints, how, Place(labels={"version": "1"})) == {"10.0.0.2": 0, "10.0.0.1": 1}


def test_a_locality_counts_as_labels() -> None:
    how = spread({"failoverPriority": ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"]})
    assert priorities(NEAR, how) == {NEAR[0]: 0, NEAR[1]: 0, NEAR[2]: 1, NEAR[3]: 2}


def test_another_network_comes_after_all_of_the_own_one() -> None:
    how = spread({"failoverPriority": ["topology.istio.io/network", "version"]})
    network = "topology.istio.io/network"
    labels: list[dict[str, Any]] = [
        {network: "n2", "version": "1"},
        {network: "n1", "version": "2"},
        {network: "n2", "version": "2"},
    ]
    endpoints = [endpoint("", address=f"10.0.0.{index}", **own) for index, own in enumerate(labels, start=1)]
    place = Place(labels={network: "n1", "version": "1"})
    assert by_address(endpoints, how, place) == {"10.0.0.2": 0, "10.0.0.1": 1, "10.0.0.3": 2}


def test_labels_and_regions_together_keep_the_order_of_the_labels() -> None:
    how = spread({"failoverPriority": ["version"], "failover": [{"from": "region1", "to": "region2"}]})
    endpoints = [
        endpoint(HERE, address="10.0.0.1", version="2"),
        endpoint("region2/z/s", address="10.0.0.2", version="1"),
        endpoint("region3/z/s", address="10.0.0.3", version="1"),
    ]
    found = by_address(endpoints, how, Place(HERE, {"version": "1"}))
    assert found == {"10.0.0.2": 0, "10.0.0.3": 1, "10.0.0.1": 2}


def test_zone_awareness_leaves_the_zones_of_the_region_to_envoy() -> None:
    how = spread(zone={"failover": [{"from": "region1", "to": "region3"}]}, outlier=False)
    localities = [HERE, "region1/zone2/s", "region2/z/s", "region3/z/s"]
    expected = {HERE: 0, "region1/zone2/s": 0, "region3/z/s": 1, "region2/z/s": 2}
    assert priorities(localities, how) == expected


def test_callers_differ_only_in_what_the_setting_asks_for() -> None:
    viewer = Viewer("a", labels=(frozenset({("rack", "a"), ("version", "1")}),), locality=HERE)
    assert place_of(viewer, spread(outlier=False)) == Place()
    assert place_of(viewer, spread()) == Place(HERE)
    assert place_of(viewer, spread({"failoverPriority": ["rack", "zone=z"]})) == Place(HERE, {"rack": "a"})


def test_the_setting_of_the_mesh_holds_where_a_rule_has_none() -> None:
    config = MeshConfigSpec.model_validate({"localityLbSetting": {"enabled": False}})
    assert spread_of(Policy(outlier_detection=OutlierDetection()), config) is None
