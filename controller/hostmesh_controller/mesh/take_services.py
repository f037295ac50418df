"""Services, and the names and addresses by which they are called."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from hostmesh_controller.mesh.compiled import blocks, compile_services, single_addresses
from hostmesh_controller.mesh.records import Service, ServiceId
from hostmesh_controller.mesh.selection import selector_key
from hostmesh_controller.mesh.step import BLOCKS, BY_NAME, Step
from hostmesh_controller.mesh.table import IndexEdit
from hostmesh_controller.model.objects import ObjectKey

SERVICE_KINDS: Final = ("Service", "ServiceEntry")


def take_services(step: Step, vips: Mapping[str, int]) -> None:
    sources = {key for key, _, _ in step.before_and_after(*SERVICE_KINDS)}
    if vips is not step.old.vips:
        sources |= _sources_with_other_vips(step, vips)
    for source in sources:
        after = step.mesh.objects.get(source)
        exports = step.mesh.config.default_service_export_to
        compiled = compile_services(after, step.mesh.settings, vips, exports) if after else ()
        records = dict.fromkeys(step.old.services_by_source.get(source, ())) | {item.id: item for item in compiled}
        step.services |= {item: new for item, new in records.items() if new != step.old.services.get(item)}
    _index_services(step)
    step.mesh = replace(step.mesh, vips=vips)


def _sources_with_other_vips(step: Step, vips: Mapping[str, int]) -> set[ObjectKey]:
    if len(vips) == len(step.old.vips) and vips == step.old.vips:
        return set()
    names = {name for name, _ in step.old.vips.items() ^ vips.items()}
    ids = {item for name in names for item in step.old.services_by_hostname.get(name, ())}
    return {item.source for item in ids if item.source in step.mesh.objects}


def _index_services(step: Step) -> None:
    by_hostname: IndexEdit[str, ServiceId] = IndexEdit()
    by_address: IndexEdit[str, ServiceId] = IndexEdit()
    by_label: IndexEdit[tuple[str, str, str], ServiceId] = IndexEdit()
    by_source: IndexEdit[ObjectKey, ServiceId] = IndexEdit()
    for item, new in step.services.items():
        for service, gone in ((step.old.services.get(item), True), (new, False)):
            if service is None:
                continue
            by_hostname.note(item.hostname, item, gone=gone)
            by_source.note(item.source, item, gone=gone)
            for address in single_addresses(service):
                by_address.note(address, item, gone=gone)
            label_key = selector_key(service)
            if label_key is not None:
                by_label.note(label_key, item, gone=gone)
            _touch_service(step, service)
    step.mesh = replace(
        step.mesh,
        services=step.mesh.services.changed(step.services),
        services_by_hostname=by_hostname.apply(step.mesh.services_by_hostname),
        services_by_address=by_address.apply(step.mesh.services_by_address),
        services_by_label=by_label.apply(step.mesh.services_by_label),
        services_by_source=by_source.apply(step.mesh.services_by_source),
    )


def _touch_service(step: Step, service: Service) -> None:
    step.touched_services.add(service.id.hostname)
    step.touched_services.update(single_addresses(service))
    if not service.addresses and service.vip4 is None:
        step.touched_services.add(BY_NAME)
    if blocks(service):
        # Any address inside the block may be called: what was found by a block, or not at all, depends on all of them.
        step.touched_services.add(BLOCKS)
