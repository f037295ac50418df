"""VirtualServices that leave their routes to others, and those others."""

from collections.abc import Iterator

from hostmesh_controller.checks.finding import NOT_FOUND, Finding
from hostmesh_controller.checks.index import Relation
from hostmesh_controller.checks.relations import delegate_name, exported_to
from hostmesh_controller.checks.world import World
from hostmesh_controller.model import ApiObject, ObjectKey
from hostmesh_controller.model.delegation import conflict
from hostmesh_controller.model.http_match import HttpMatch
from hostmesh_controller.model.virtual_service import HttpRoute, VirtualServiceSpec
from hostmesh_controller.suggest import did_you_mean


def check_delegates(item: ApiObject, spec: VirtualServiceSpec, world: World) -> Iterator[Finding]:
    """Yield delegates that are not there or cannot be used, and routes that a delegate has for nothing."""
    for index, route in enumerate(spec.http):
        if route.delegate is not None:
            name = delegate_name(item, route.delegate)
            namespace, _, short = name.partition("/")
            delegate = world.objects.get(ObjectKey("VirtualService", namespace, short))
            for finding in _check_delegate(item, route, delegate, name, world):
                yield finding._replace(path=("spec", "http", index, "delegate"))
    if spec.is_delegate:
        yield from _check_use(item, spec, world)


def _check_delegate(
    item: ApiObject, route: HttpRoute, delegate: ApiObject | None, name: str, world: World
) -> Iterator[Finding]:
    if delegate is None:
        namespace = name.partition("/")[0]
        known = [f"{namespace}/{key.name}" for key in world.bucket(Relation.DELEGATE, namespace)]
        message = f"there is no VirtualService {name}{did_you_mean(name, known)}: requests of this rule get 404"
        yield Finding((), message, "unknown-delegate", istio_code=NOT_FOUND)
        return
    assert isinstance(delegate.spec, VirtualServiceSpec)
    if not delegate.spec.is_delegate:
        message = (
            f"{delegate.key} has hosts of its own, so that nothing can be left to it; remove them, or name another"
        )
        yield Finding((), message, "bad-delegate")
        return
    if not exported_to(delegate) & {"*", item.key.namespace}:
        message = f"{delegate.key} is not exported to {item.key.namespace}; add this namespace to its exportTo"
        yield Finding((), message, "unknown-delegate", istio_code=NOT_FOUND)
        return
    for place, leaf in enumerate(delegate.spec.http):
        if conflicting(route.match, leaf.match):
            message = (
                f"rule {leaf.name or f'#{place}'} of {delegate.key} matches nothing that this rule lets through, and "
                "is not used; narrow it, or widen this one"
            )
            yield Finding((), message, "conflicting-delegate")


def _check_use(item: ApiObject, spec: VirtualServiceSpec, world: World) -> Iterator[Finding]:
    name = f"{item.key.namespace}/{item.key.name}"
    roots = world.at(Relation.DELEGATOR, name)
    if not roots:
        message = "it has no hosts, and no VirtualService delegates to it: it does nothing (yet?)"
        yield Finding(("spec",), message, "unused-delegate", "info")
    for place, leaf in enumerate(spec.http):
        for root in roots:
            if all(conflicting(route.match, leaf.match) for route in _routes_to(name, root)):
                message = (
                    f"{root.key} lets nothing through that this rule matches: it is not used there. Narrow it, or "
                    "widen the match there"
                )
                yield Finding(("spec", "http", place, "match"), message, "conflicting-delegate")


def _routes_to(name: str, root: ApiObject) -> list[HttpRoute]:
    assert isinstance(root.spec, VirtualServiceSpec)
    return [each for each in root.spec.http if each.delegate and delegate_name(root, each.delegate) == name]


def conflicting(root: tuple[HttpMatch, ...], leaf: tuple[HttpMatch, ...]) -> bool:
    """Tell whether Istio drops a delegate's route: one of its matches is within none of the root's."""
    if not root or not leaf:
        return False
    return any(all(conflict(above, below) for above in root) for below in leaf)
