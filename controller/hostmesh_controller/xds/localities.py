"""Which endpoints of a service a caller uses first, by where both are: Istio's locality load balancing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Final

from hostmesh_controller.mesh.destination_rules import NETWORK, TOPOLOGY, Setting, label_keys
from hostmesh_controller.mesh.records import Endpoint
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.model.destination_rule import Distribute, LocalityLbSetting, ZoneAwareLbSetting
from hostmesh_controller.model.mesh_config import MeshConfigSpec
from hostmesh_controller.xds.policy import Policy

_STEPS: Final = 5
"""Same place, zone, region, a region that steps in, any other: what distance alone tells apart."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How endpoints of several localities are used. `failover`: failing ones are noticed, so others can step in."""

    setting: Setting
    failover: bool

    @property
    def enabled(self) -> bool:
        return self.setting.enabled is not False

    @property
    def weighted(self) -> bool:
        """Whether the weights of localities count. Otherwise they would disturb how endpoints are chosen."""
        if isinstance(self.setting, ZoneAwareLbSetting):
            return False
        steps_in = bool(self.setting.failover or self.setting.failover_priority)
        return bool(self.setting.distribute) or (self.failover and steps_in)

    @property
    def depends_on_caller(self) -> bool:
        """Whether endpoints differ with the caller's place or labels."""
        if isinstance(self.setting, ZoneAwareLbSetting):
            return self.enabled
        return self.failover or bool(self.setting.distribute)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a caller is, as far as it matters: its locality and the labels that are compared."""

    locality: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """Endpoints of one locality that are used alike. Priority 0 is used first."""

    locality: str
    endpoints: tuple[Endpoint, ...]
    weight: int
    priority: int = 0


def spread_of(policy: Policy, config: MeshConfigSpec) -> Spread | None:
    """Return how a policy spreads requests over localities: its own setting, else the mesh's; None where it is off."""
    balancer, failover = policy.load_balancer, policy.outlier_detection is not None
    if balancer is not None and balancer.zone_aware_lb_setting is not None:
        return Spread(balancer.zone_aware_lb_setting, failover)
    setting: Setting = config.locality_lb_setting
    if balancer is not None and balancer.locality_lb_setting is not None:
        setting = balancer.locality_lb_setting
    return None if setting.enabled is False else Spread(setting, failover)


def place_of(viewer: Viewer, how: Spread | None) -> Place:
    """Return the part of a viewer on which endpoints depend: equal for all who get the same."""
    if how is None or not how.depends_on_caller:
        return Place()
    keys = label_keys(how.setting)
    labels: dict[str, str] = {}
    for own in viewer.labels:
        for key, value in sorted(own):
            if key in keys:
                labels.setdefault(key, value)
    return Place(viewer.locality, labels)


def grouped(endpoints: Iterable[Endpoint], how: Spread | None, place: Place) -> tuple[Group, ...]:
    """Return the endpoints by locality, with weights and priorities as the caller's place makes them."""
    found: dict[str, list[Endpoint]] = {}
    for endpoint in endpoints:
        found.setdefault(endpoint.locality, []).append(endpoint)
    groups = [_group(locality, found[locality]) for locality in sorted(found)]
    if how is None:
        return tuple(groups)
    setting = how.setting
    if isinstance(setting, ZoneAwareLbSetting):
        return tuple(_by_region(groups, setting, place) if how.enabled else groups)
    if setting.distribute:
        return tuple(_distributed(groups, setting.distribute, place.locality))
    if not how.failover:
        return tuple(groups)
    if setting.failover_priority:
        groups = _by_labels(groups, setting.failover_priority, place)
        return tuple(_by_distance(groups, setting, place) if setting.failover else groups)
    return tuple(_by_distance(groups, setting, place))


def _group(locality: str, endpoints: Sequence[Endpoint], priority: int = 0) -> Group:
    weight = min(sum(endpoint.weight for endpoint in endpoints), 2**32 - 1)
    return Group(locality, tuple(endpoints), weight, priority)


def parts_of(locality: str) -> tuple[str, str, str]:
    """Return region, zone and subzone; "" for each that is not there."""
    region, zone, subzone = (*locality.split("/", 2), "", "")[:3]
    return region, zone, subzone


def _distributed(groups: Sequence[Group], rules: Sequence[Distribute], own: str) -> list[Group]:
    rule = next((each for each in rules if _covers(each.from_, own)), None)
    if rule is None:
        return list(groups)
    left, result = list(groups), []
    for target, share in rule.to.items():
        matched = [group for group in left if _covers(target, group.locality)]
        left = [group for group in left if group not in matched]
        total = sum(group.weight for group in matched)
        result += [replace(group, weight=ceil(group.weight * share / total)) for group in matched]
    return sorted(result, key=lambda group: group.locality)


def _covers(pattern: str, locality: str) -> bool:
    region, zone, subzone = parts_of(pattern)
    own = parts_of(locality)
    return region in {"*", own[0]} and zone in {"*", "", own[1]} and subzone in {"*", "", own[2]}


def _by_distance(groups: Sequence[Group], setting: LocalityLbSetting, place: Place) -> list[Group]:
    here = parts_of(place.locality)
    stand_in = next((each.to for each in setting.failover if each.from_ == here[0]), None)

    def distance(group: Group) -> int:
        there = parts_of(group.locality)
        same = next((index for index in range(3) if here[index] != there[index]), 3)
        if same == 0 and stand_in is not None and there[0] != stand_in:
            return 4
        return 3 - same

    return _ranked([replace(group, priority=group.priority * _STEPS + distance(group)) for group in groups])


def _by_region(groups: Sequence[Group], setting: ZoneAwareLbSetting, place: Place) -> list[Group]:
    if setting.failover_priority:
        groups = _by_labels(groups, setting.failover_priority, place)
    here = parts_of(place.locality)[0]
    stand_in = next((each.to for each in setting.failover if each.from_ == here), None)

    def distance(group: Group) -> int:
        region = parts_of(group.locality)[0]
        return 0 if region == here else 1 if region == stand_in else 2

    return _ranked([replace(group, priority=group.priority * 3 + distance(group)) for group in groups])


def _by_labels(groups: Sequence[Group], labels: Sequence[str], place: Place) -> list[Group]:
    """Return the groups cut into those that share as many of the first labels with the caller."""
    keys = [label.partition("=")[0] for label in labels]
    given = {key: value for key, is_given, value in (label.partition("=") for label in labels) if is_given}
    own = _augmented(place.labels, place.locality) | given
    result: list[Group] = []
    for group in groups:
        by_priority: dict[int, list[Endpoint]] = {}
        for endpoint in group.endpoints:
            theirs = _augmented(endpoint.labels, endpoint.locality)
            by_priority.setdefault(_mismatch(keys, own, theirs), []).append(endpoint)
        result += [_group(group.locality, by_priority[each], each) for each in sorted(by_priority)]
    return _ranked(result)


def _mismatch(keys: Sequence[str], own: Mapping[str, str], theirs: Mapping[str, str]) -> int:
    extra = 0
    for index, key in enumerate(keys):
        if own.get(key, "") == theirs.get(key, ""):
            continue
        if index == 0 and key == NETWORK:
            # Another network comes after all of the own one; within it the other labels still count.
            extra = len(keys)
            continue
        return len(keys) - index + extra
    return extra


def _augmented(labels: Mapping[str, str], locality: str) -> dict[str, str]:
    place = {key: part for key, part in zip(TOPOLOGY, parts_of(locality), strict=True) if part}
    return {**labels, **place}


def _ranked(groups: Sequence[Group]) -> list[Group]:
    """Return the groups with priorities 0, 1, 2 …: Envoy takes no gaps."""
    ranks = {priority: rank for rank, priority in enumerate(sorted({group.priority for group in groups}))}
    return [replace(group, priority=ranks[group.priority]) for group in groups]
