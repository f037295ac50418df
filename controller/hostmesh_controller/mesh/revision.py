"""From one revision of the mesh to the next: what changed, what that makes different, and whom it touches.

`build` is `update` of the empty mesh, so that both cannot disagree about what a configuration means. The steps of
`update` are in the order of the data: objects, policies, hosts, workloads, services, endpoints, rules.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from hostmesh_controller.mesh.compiled import (
    EVERYWHERE,
    blocks,
    compile_host,
    compile_inline_workloads,
    compile_services,
    compile_workload,
    single_addresses,
)
from hostmesh_controller.mesh.index import NO_ENDPOINTS, NO_HOST, Mesh
from hostmesh_controller.mesh.peers import by_age, compile_policy, selects
from hostmesh_controller.mesh.records import (
    Endpoints,
    Host,
    HostRuntime,
    Member,
    Resolution,
    Service,
    ServiceId,
    Settings,
    Touched,
    Workload,
    WorkloadKey,
)
from hostmesh_controller.mesh.rules import destination_rule_hosts, routes_tcp, virtual_service_hosts
from hostmesh_controller.mesh.selection import (
    label_keys,
    member,
    selector_key,
    services_of,
    workloads_behind,
)
from hostmesh_controller.mesh.table import IndexEdit
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.names import host_matches

SERVICE_KINDS = frozenset({"Service", "ServiceEntry"})
DEFAULT_NAMESPACE = "default"


def build(
    settings: Settings, objects: Iterable[ApiObject], vips: Mapping[str, int], runtime: Mapping[str, HostRuntime]
) -> Mesh:
    """Return the index of a whole configuration.

    Args:
        settings: what holds for the whole mesh.
        objects: every object; kinds that mean nothing to the mesh are kept and ignored.
        vips: index of the virtual addresses of each host name (see `virtual_hostnames`).
        runtime: what is true of hosts now; one that is missing has not joined.
    """
    return update(Mesh(settings), {item.key: item for item in objects}, vips, runtime)[0]


def update(
    mesh: Mesh,
    changed: Mapping[ObjectKey, ApiObject | None],
    vips: Mapping[str, int],
    runtime: Mapping[str, HostRuntime],
) -> tuple[Mesh, Touched]:
    """Return the mesh with changed objects (None: deleted) and new whole `vips` and `runtime`, and what it touches.

    The result equals what `build` makes of the same configuration. Passing the same mapping objects for `vips` and
    `runtime` again says that they did not change. Otherwise they are compared entry by entry.
    """
    step = _Revision(mesh, changed)
    step.take_objects()
    step.take_policies()
    step.take_hosts(runtime)
    step.take_workloads()
    step.take_services(vips)
    step.take_endpoints()
    step.take_host_namespaces()
    step.take_rules()
    return step.mesh, step.touched()


def host_dependency(host: str) -> str:
    """Return the dependency name of a host's own view: it changes when the host moves to another namespace."""
    return f"host:{host}"


class _Revision:
    """One update under way: `mesh` is the new revision as far as it is made, `old` the one before."""

    def __init__(self, mesh: Mesh, changed: Mapping[ObjectKey, ApiObject | None]) -> None:
        self.old = self.mesh = mesh
        # What is stored again as it was changes nothing.
        self.changed = {key: new for key, new in changed.items() if mesh.objects.get(key) != new}
        self.moved: set[WorkloadKey] = set()  # to be placed on a host again
        self.workloads: dict[WorkloadKey, Workload | None] = {}  # records that are different now
        self.recheck: set[WorkloadKey] = set()  # endpoints may differ though the record does not
        self.services: dict[ServiceId, Service | None] = {}  # records that are different now
        self.everything = False
        self.touched_hosts: set[str] = set()
        self.touched_services: set[str] = set()
        self.touched_endpoints: set[str] = set()

    def touched(self) -> Touched:
        return Touched(
            frozenset(self.touched_hosts),
            frozenset(self.touched_services),
            frozenset(self.touched_endpoints),
            self.everything,
        )

    def before_and_after(self, *kinds: str) -> list[tuple[ObjectKey, ApiObject | None, ApiObject | None]]:
        return [(key, self.old.objects.get(key), new) for key, new in self.changed.items() if key.kind in kinds]

    def take_objects(self) -> None:
        self.mesh = replace(self.mesh, objects=self.mesh.objects.changed(self.changed))

    def take_policies(self) -> None:
        changes = self.before_and_after("PeerAuthentication")
        if not changes:
            return
        policies = dict(self.old.policies)
        for namespace in {key.namespace for key, _, _ in changes}:
            own = self._objects_of("PeerAuthentication", namespace)
            policies[namespace] = by_age(compile_policy(item) for item in own)
            if not policies[namespace]:
                del policies[namespace]
        self.mesh = replace(self.mesh, policies=policies)
        for key, before, after in changes:
            if key.namespace == self.old.settings.root_namespace:
                self.everything = True
                self._recheck_policy(self.old.workloads)
                continue
            for item in (before, after):
                if item is not None:
                    labels = compile_policy(item).labels or {}
                    self._recheck_policy(self._workloads_selected(key.namespace, labels))

    def _recheck_policy(self, keys: Iterable[WorkloadKey]) -> None:
        for key in keys:
            self.recheck.add(key)
            host = self.old.workloads[key].host
            if host is not None:
                self.touched_hosts.add(host)

    def _objects_of(self, kind: str, namespace: str) -> list[ApiObject]:
        # Policies are few, and they change seldom: no index of their own.
        return [item for key, item in self.mesh.objects.items() if key.kind == kind and key.namespace == namespace]

    def _workloads_selected(self, namespace: str, labels: Mapping[str, str]) -> Iterable[WorkloadKey]:
        if labels:
            keys = self.old.workloads_by_label.get(min(label_keys(namespace, labels)), frozenset())
            return [key for key in keys if selects(labels, self.old.workloads[key].labels)]
        return [key for key in self.old.workloads if key.namespace == namespace]

    def take_hosts(self, runtime: Mapping[str, HostRuntime]) -> None:
        edit: IndexEdit[str, str] = IndexEdit()
        hosts: dict[str, Host | None] = {}
        for key, _, after in self.before_and_after("Host"):
            old, new = self.old.hosts.get(key.name), compile_host(after) if after else None
            hosts[key.name] = new
            self.touched_hosts.add(key.name)
            for address in old.addresses if old else ():
                edit.remove(address, key.name)
                self.moved.update(self.old.workloads_by_address.get(address, ()))
            for address in new.addresses if new else ():
                edit.add(address, key.name)
                self.moved.update(self.old.workloads_by_address.get(address, ()))
        self.mesh = replace(
            self.mesh,
            hosts=self.mesh.hosts.changed(hosts),
            hosts_by_address=edit.apply(self.mesh.hosts_by_address),
            runtime=runtime,
        )
        if runtime is not self.old.runtime:
            self._take_runtime(runtime)

    def _take_runtime(self, runtime: Mapping[str, HostRuntime]) -> None:
        for host in self.old.runtime.keys() | runtime.keys():
            old, new = self.old.runtime.get(host, NO_HOST), runtime.get(host, NO_HOST)
            if old is new or old == new:
                continue
            if old.ipv6 != new.ipv6:
                self.touched_hosts.add(host)
            here = self.old.workloads_by_host.get(host, frozenset())
            if (old.joined, old.captured) != (new.joined, new.captured):
                self.recheck.update(here)
            else:
                self.recheck.update(key for key in here if key in old.ready ^ new.ready)

    def take_workloads(self) -> None:
        placed: dict[WorkloadKey, Workload | None] = {}
        for key, _, after in self.before_and_after("WorkloadEntry"):
            placed[WorkloadKey(key.namespace, key.name)] = compile_workload(after) if after else None
        for key, _, after in self.before_and_after("ServiceEntry"):
            placed |= dict.fromkeys(self.old.workloads_by_owner.get(key, ()))
            if after is not None:
                placed |= {workload.key: workload for workload in compile_inline_workloads(after)}
        for moved in self.moved:
            placed.setdefault(moved, self.old.workloads.get(moved))
        for workload_key, workload in placed.items():
            new = self._on_its_host(workload) if workload else None
            if new != self.old.workloads.get(workload_key):
                self.workloads[workload_key] = new
        self._index_workloads()

    def _on_its_host(self, workload: Workload) -> Workload:
        # Two hosts with one address is a mistake of the user; whoever comes first by name has the workload.
        return replace(workload, host=min(self.mesh.hosts_by_address.get(workload.address, ()), default=None))

    def _index_workloads(self) -> None:
        by_address: IndexEdit[str, WorkloadKey] = IndexEdit()
        by_host: IndexEdit[str, WorkloadKey] = IndexEdit()
        by_label: IndexEdit[tuple[str, str, str], WorkloadKey] = IndexEdit()
        by_owner: IndexEdit[ObjectKey, WorkloadKey] = IndexEdit()
        for key, new in self.workloads.items():
            for workload, remove in ((self.old.workloads.get(key), True), (new, False)):
                if workload is None:
                    continue
                (by_address.remove if remove else by_address.add)(workload.address, key)
                if workload.host is not None:
                    (by_host.remove if remove else by_host.add)(workload.host, key)
                    self.touched_hosts.add(workload.host)
                if workload.owner is not None:
                    (by_owner.remove if remove else by_owner.add)(workload.owner, key)
                    continue
                for label_key in label_keys(key.namespace, workload.labels):
                    (by_label.remove if remove else by_label.add)(label_key, key)
        self.mesh = replace(
            self.mesh,
            workloads=self.mesh.workloads.changed(self.workloads),
            workloads_by_address=by_address.apply(self.mesh.workloads_by_address),
            workloads_by_host=by_host.apply(self.mesh.workloads_by_host),
            workloads_by_label=by_label.apply(self.mesh.workloads_by_label),
            workloads_by_owner=by_owner.apply(self.mesh.workloads_by_owner),
        )

    def take_services(self, vips: Mapping[str, int]) -> None:
        sources = {key for key, _, _ in self.before_and_after(*SERVICE_KINDS)}
        if vips is not self.old.vips:
            sources |= self._sources_with_other_vips(vips)
        for source in sources:
            after = self.mesh.objects.get(source)
            compiled = compile_services(after, self.mesh.settings, vips) if after else ()
            records = dict.fromkeys(self.old.services_by_source.get(source, ())) | {item.id: item for item in compiled}
            self.services |= {item: new for item, new in records.items() if new != self.old.services.get(item)}
        self._index_services()
        self.mesh = replace(self.mesh, vips=vips)

    def _sources_with_other_vips(self, vips: Mapping[str, int]) -> set[ObjectKey]:
        if len(vips) == len(self.old.vips) and vips == self.old.vips:
            return set()
        names = {name for name in self.old.vips.keys() | vips.keys() if self.old.vips.get(name) != vips.get(name)}
        ids = {item for name in names for item in self.old.services_by_hostname.get(name, ())}
        return {item.source for item in ids if item.source in self.mesh.objects}

    def _index_services(self) -> None:
        by_hostname: IndexEdit[str, ServiceId] = IndexEdit()
        by_address: IndexEdit[str, ServiceId] = IndexEdit()
        by_label: IndexEdit[tuple[str, str, str], ServiceId] = IndexEdit()
        by_source: IndexEdit[ObjectKey, ServiceId] = IndexEdit()
        for item, new in self.services.items():
            for service, remove in ((self.old.services.get(item), True), (new, False)):
                if service is None:
                    continue
                (by_hostname.remove if remove else by_hostname.add)(item.hostname, item)
                (by_source.remove if remove else by_source.add)(item.source, item)
                for address in single_addresses(service):
                    (by_address.remove if remove else by_address.add)(address, item)
                label_key = selector_key(service)
                if label_key is not None:
                    (by_label.remove if remove else by_label.add)(label_key, item)
                self._touch_service(service)
        self.mesh = replace(
            self.mesh,
            services=self.mesh.services.changed(self.services),
            services_by_hostname=by_hostname.apply(self.mesh.services_by_hostname),
            services_by_address=by_address.apply(self.mesh.services_by_address),
            services_by_label=by_label.apply(self.mesh.services_by_label),
            services_by_source=by_source.apply(self.mesh.services_by_source),
        )

    def _touch_service(self, service: Service) -> None:
        self.touched_services.add(service.id.hostname)
        self.touched_services.update(single_addresses(service))
        if blocks(service):
            # Any address inside the block may be called: there is no list of dependents by name.
            self.everything = True

    def take_endpoints(self) -> None:
        affected: dict[ServiceId, set[WorkloadKey]] = {}
        for key in self.workloads.keys() | self.recheck:
            for mesh in (self.old, self.mesh):
                workload = mesh.workloads.get(key)
                for behind in services_of(mesh, workload) if workload else ():
                    affected.setdefault(behind.id, set()).add(key)
        endpoints: dict[ServiceId, Endpoints | None] = {}
        for item, service in self.services.items():
            endpoints[item] = self._all_endpoints(service) if service else None
        for item, keys in affected.items():
            current = self.mesh.services.get(item)
            if item not in endpoints and current is not None:
                endpoints[item] = self._changed_endpoints(current, keys)
        for item, new in endpoints.items():
            self._touch_endpoints(item, new)
        self.mesh = replace(self.mesh, endpoints=self.mesh.endpoints.changed(endpoints))

    def _all_endpoints(self, service: Service) -> Endpoints:
        keys = sorted(workloads_behind(self.mesh, service))
        return _kept(
            self.old.endpoints.get(service.id, NO_ENDPOINTS),
            {key: member(self.mesh, service, self.mesh.workloads[key]) for key in keys},
        )

    def _changed_endpoints(self, service: Service, keys: set[WorkloadKey]) -> Endpoints:
        old = self.old.endpoints.get(service.id, NO_ENDPOINTS)
        members = dict(old.members)
        for key in keys:
            workload = self.mesh.workloads.get(key)
            if workload is not None and service.id in {item.id for item in services_of(self.mesh, workload)}:
                new = member(self.mesh, service, workload)
                if new != members.get(key):
                    members[key] = new
            else:
                members.pop(key, None)
        return _kept(old, members)

    def _touch_endpoints(self, item: ServiceId, new: Endpoints | None) -> None:
        before, after = self.old.endpoints.get(item) or NO_ENDPOINTS, new or NO_ENDPOINTS
        if item in self.services:
            # What a service says of its ports is what its workloads' hosts listen for.
            for key in before.members.keys() | after.members.keys():
                found = (mesh.workloads.get(key) for mesh in (self.old, self.mesh))
                self.touched_hosts.update(workload.host for workload in found if workload and workload.host)
        if after is before:
            return
        service = self.mesh.services.get(item) or self.old.services[item]
        in_the_cluster = service.resolution in {Resolution.DNS, Resolution.DNS_ROUND_ROBIN}
        if in_the_cluster or before.identities != after.identities:
            self.touched_services.add(item.hostname)
        self.touched_endpoints.add(item.hostname)

    def take_host_namespaces(self) -> None:
        namespaces: dict[str, str | None] = {}
        for name in self.touched_hosts:
            host = self.mesh.hosts.get(name)
            namespaces[name] = self._namespace(host) if host else None
            if namespaces[name] != self.old.host_namespaces.get(name):
                self.touched_services.add(host_dependency(name))
        changed = {name: new for name, new in namespaces.items() if new != self.old.host_namespaces.get(name)}
        self.mesh = replace(self.mesh, host_namespaces=self.mesh.host_namespaces.changed(changed))
        self._touch_hosts_that_see()

    def _namespace(self, host: Host) -> str:
        if host.namespace is not None:
            return host.namespace
        found = {key.namespace for key in self.mesh.workloads_by_host.get(host.name, ())}
        return found.pop() if len(found) == 1 else DEFAULT_NAMESPACE

    def _touch_hosts_that_see(self) -> None:
        # A service adds a name to the DNS listener and a port or an address to others, wherever it is visible.
        seen: set[str] = set()
        for item, new in self.services.items():
            for service in (self.old.services.get(item), new):
                seen |= service.export_to if service else set()
        if not seen:
            return
        for mesh in (self.old, self.mesh):
            hosts = mesh.host_namespaces
            self.touched_hosts.update(hosts if seen & EVERYWHERE else (h for h, ns in hosts.items() if ns in seen))

    def take_rules(self) -> None:
        virtual: IndexEdit[str, ObjectKey] = IndexEdit()
        rules: IndexEdit[str, ObjectKey] = IndexEdit()
        tcp: dict[ObjectKey, ApiObject | None] = {}
        domain = self.mesh.settings.domain
        for key, before, after in self.before_and_after("VirtualService", "DestinationRule"):
            is_rule = key.kind == "DestinationRule"
            edit = rules if is_rule else virtual
            for item, remove in ((before, True), (after, False)):
                if item is None:
                    continue
                for host in destination_rule_hosts(item, domain) if is_rule else virtual_service_hosts(item, domain):
                    (edit.remove if remove else edit.add)(host, key)
                    self._touch_pattern(host)
                if not is_rule and routes_tcp(item):
                    # Destinations of several weights are filter chains of the hosts' listeners.
                    self.touched_hosts.update(self.mesh.hosts)
            if not is_rule:
                tcp[key] = after if after is not None and routes_tcp(after) else None
        self.mesh = replace(
            self.mesh,
            virtual_services=virtual.apply(self.mesh.virtual_services),
            tcp_routes=self.mesh.tcp_routes.changed(tcp),
            destination_rules=rules.apply(self.mesh.destination_rules),
        )

    def _touch_pattern(self, pattern: str) -> None:
        self.touched_services.add(pattern)
        for mesh in (self.old, self.mesh):
            self.touched_services.update(item.hostname for item in mesh.services_by_address.get(pattern, ()))
        if pattern.startswith("*"):
            for hostname in self.mesh.services_by_hostname:
                if host_matches(pattern, hostname):
                    self.touched_services.add(hostname)


def _kept(old: Endpoints, members: Mapping[WorkloadKey, Member]) -> Endpoints:
    """Return the endpoints of these members; what is equal to the old ones is the same object."""
    if members == old.members:
        return old
    if members.keys() != old.members.keys():
        members = {key: members[key] for key in sorted(members)}
    identities = tuple(sorted({item.identity for item in members.values() if item.identity is not None}))
    return Endpoints(members, old.identities if identities == old.identities else identities)
