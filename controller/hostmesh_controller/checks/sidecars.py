"""Sidecars: the workloads they are for, and others for the same."""

from collections.abc import Iterator

from hostmesh_controller.checks.finding import NOT_FOUND, Finding
from hostmesh_controller.checks.index import Relation
from hostmesh_controller.checks.relations import selector_text
from hostmesh_controller.checks.world import World
from hostmesh_controller.model import ApiObject, Path
from hostmesh_controller.model.sidecar import SidecarSpec


def check_sidecar(item: ApiObject, spec: SidecarSpec, world: World) -> Iterator[Finding]:
    """Yield a selector that chooses nobody, Sidecars for the same workloads, and namespaces that are not there."""
    labels = _labels(spec)
    if labels and not any(True for _ in world.selected(labels, item.key.namespace)):
        message = f"no workload of namespace {item.key.namespace!r} has the labels {selector_text(labels)} (yet?)"
        yield Finding(("spec", "workloadSelector", "labels"), message, "unknown-selector", istio_code=NOT_FOUND)
    yield from _check_others(item, labels, world)
    for index, egress in enumerate(spec.egress):
        for place, host in enumerate(egress.hosts):
            namespace = host.partition("/")[0].removeprefix("~")
            if namespace not in {"", ".", "*"} and not world.has_namespace(namespace):
                path: Path = ("spec", "egress", index, "hosts", place)
                message = f"there is nothing in the namespace {namespace!r} to be seen (yet?)"
                yield Finding(path, message, "unknown-namespace")
    yield from _check_proxy(item, spec, world)


def _labels(spec: SidecarSpec) -> dict[str, str]:
    return dict(spec.workload_selector.labels) if spec.workload_selector is not None else {}


def _check_others(item: ApiObject, labels: dict[str, str], world: World) -> Iterator[Finding]:
    for other in world.others_at(Relation.SIDECAR, item.key.namespace, item):
        assert isinstance(other.spec, SidecarSpec)
        theirs = _labels(other.spec)
        if not labels and not theirs:
            message = (
                f"{other.key} is for all of namespace {item.key.namespace!r} too; the older one holds. Give one of "
                "them a workloadSelector"
            )
            yield Finding(("metadata", "name"), message, "duplicate-sidecar", istio_code="IST0111")
        elif labels and theirs and not any(labels[name] != theirs[name] for name in labels.keys() & theirs.keys()):
            both = next(world.selected({**labels, **theirs}, item.key.namespace), None)
            if both is not None:
                message = (
                    f"{other.key} selects {both.key} too; the older one holds for it. Let their selectors choose "
                    "different workloads"
                )
                path = ("spec", "workloadSelector", "labels")
                yield Finding(path, message, "duplicate-sidecar", istio_code="IST0110")


def _check_proxy(item: ApiObject, spec: SidecarSpec, world: World) -> Iterator[Finding]:
    policy = spec.outbound_traffic_policy
    if policy is None or policy.egress_proxy is None:
        return
    path: Path = ("spec", "outboundTrafficPolicy", "egressProxy")
    host = world.full(policy.egress_proxy.host, item)
    if not world.services_named(host, {item.key.namespace}):
        message = f"no Service or ServiceEntry defines {host!r}{world.near(host)}"
        yield Finding((*path, "host"), message, "unknown-host", istio_code=NOT_FOUND)
    message = "egressProxy is deprecated in Istio; route to an egress gateway with a VirtualService"
    yield Finding(path, message, "deprecated-field", istio_code="IST0002")
