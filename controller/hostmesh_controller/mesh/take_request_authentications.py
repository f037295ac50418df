"""RequestAuthentications, and the keys that were fetched for them."""

from collections.abc import Mapping
from dataclasses import replace

from hostmesh_controller.mesh.request_authentications import jwt_rules
from hostmesh_controller.mesh.step import Step
from hostmesh_controller.mesh.take_extensions import selected_hosts
from hostmesh_controller.model.objects import ApiObject

KIND = "RequestAuthentication"


def take_request_authentications(step: Step, jwks: Mapping[str, str]) -> None:
    changes = step.before_and_after(KIND)
    if changes:
        found = {key.namespace: step.mesh.of_kind(KIND, key.namespace) or None for key, _, _ in changes}
        step.mesh = replace(step.mesh, request_authentications=step.mesh.request_authentications.changed(found))
        for _, before, after in changes:
            for mesh, item in ((step.old, before), (step.mesh, after)):
                if item is not None:
                    step.touched_hosts.update(selected_hosts(mesh, item))
    if jwks is not step.old.jwks:
        _take_keys(step, jwks)


def _take_keys(step: Step, jwks: Mapping[str, str]) -> None:
    """Touch the hosts that verify with keys which are others now, and nobody else."""
    old = step.old.jwks
    differing = {url for url in old.keys() | jwks.keys() if old.get(url) != jwks.get(url)}
    step.mesh = replace(step.mesh, jwks=jwks)
    for items in step.mesh.request_authentications.values() if differing else ():
        for item in items:
            if _uses(item, differing):
                step.touched_hosts.update(selected_hosts(step.mesh, item))


def _uses(item: ApiObject, urls: set[str]) -> bool:
    return any(rule.keys_url in urls for rule in jwt_rules(item))
