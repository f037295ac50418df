"""PeerAuthentication: the modes of workloads' ports."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from hostmesh_controller.mesh.peers import by_age, compile_policy, selects
from hostmesh_controller.mesh.records import WorkloadKey
from hostmesh_controller.mesh.selection import label_keys
from hostmesh_controller.mesh.step import Step


def take_policies(step: Step) -> None:
    changes = step.before_and_after("PeerAuthentication")
    if not changes:
        return
    policies = dict(step.old.policies)
    for namespace in {key.namespace for key, _, _ in changes}:
        own = step.mesh.of_kind("PeerAuthentication", namespace)
        policies[namespace] = by_age(compile_policy(item) for item in own)
        if not policies[namespace]:
            del policies[namespace]
    step.mesh = replace(step.mesh, policies=policies)
    for key, before, after in changes:
        if key.namespace == step.old.settings.root_namespace:
            step.everything = True
            _recheck_policy(step, step.old.workloads)
            continue
        for item in (before, after):
            if item is not None:
                labels = compile_policy(item).labels or {}
                _recheck_policy(step, _workloads_selected(step, key.namespace, labels))


def _recheck_policy(step: Step, keys: Iterable[WorkloadKey]) -> None:
    for key in keys:
        step.recheck.add(key)
        host = step.old.workloads[key].host
        if host is not None:
            step.touched_hosts.add(host)


def _workloads_selected(step: Step, namespace: str, labels: Mapping[str, str]) -> Iterable[WorkloadKey]:
    if labels:
        keys = step.old.workloads_by_label.get(min(label_keys(namespace, labels)), frozenset())
        return [key for key in keys if selects(labels, step.old.workloads[key].labels)]
    return [key for key in step.old.workloads if key.namespace == namespace]
