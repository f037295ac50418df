"""From a document (what YAML and JSON give: mappings, lists, scalars) to an object, or to all that is wrong with it."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from hostmesh_controller.model.faults import Fault, faults_of, field_names, found_text, path_text
from hostmesh_controller.model.kinds import KINDS, KUBERNETES_ONLY, NOT_YET, KindInfo
from hostmesh_controller.model.objects import ApiObject, Metadata, ObjectKey, Path
from hostmesh_controller.model.schema import Spec, check_label, check_label_key, check_label_value, check_subdomain
from hostmesh_controller.suggest import did_you_mean

SpecT = TypeVar("SpecT", bound=Spec)

_GATEWAY_API: Final = "gateway.networking.k8s.io/"
_OBJECT: Final = frozenset({"apiVersion", "kind", "metadata", "status"})
_TOP: Final = ("apiVersion", "kind", "metadata", "spec", "status")
_METADATA: Final = ("name", "namespace", "labels", "annotations")
_KUBECTL_METADATA: Final = frozenset(
    {"uid", "resourceVersion", "generation", "managedFields", "creationTimestamp", "selfLink", "ownerReferences"}
    | {"finalizers", "deletionTimestamp", "deletionGracePeriodSeconds"}
)
"""Written by Kubernetes into what `kubectl get -o yaml` prints; dropped."""
_BARE_KINDS: Final = frozenset({"ServiceAccount"})
"""Kinds whose Kubernetes form has fields beside metadata that mean nothing here."""
_BARE_FIELDS: Final = frozenset({"secrets", "imagePullSecrets", "automountServiceAccountToken"})
_LABEL_KINDS: Final = frozenset({"Namespace", "Service", "Gateway"})
"""Kinds whose names are one DNS label; the others may have dots."""
_ONLY_NAMES: Final = {"MeshConfig": "default"}
"""Kinds of which there is one object, and its name."""


class DocumentError(ValueError):
    """A document is not a valid object; `faults` says all that is wrong."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(f"{path_text(f.path)}: {f.message}" if f.path else f.message for f in faults))
        self.faults = faults


def from_document(
    document: Mapping[str, Any], *, uid: str | None = None, creation_timestamp: datetime | None = None
) -> ApiObject:
    """Return the object of a stored document, with the store's facts about it.

    It is validated again: what an older version stored may no longer be valid.

    Raises:
        DocumentError: it is not valid.
    """
    made, faults = read_document(document, uid=uid, creation_timestamp=creation_timestamp)
    if made is None or faults:
        raise DocumentError(faults)
    return made


def read_document(
    document: object,
    default_namespace: str = "default",
    *,
    uid: str | None = None,
    creation_timestamp: datetime | None = None,
) -> tuple[ApiObject | None, list[Fault]]:
    """Return the object, or None and everything that is wrong with the document.

    Args:
        document: what the YAML or JSON says; anything.
        default_namespace: of objects that name none and whose kind has namespaces.
        uid: the store's, None if it is not stored.
        creation_timestamp: the store's, None if it is not stored.
    """
    if not isinstance(document, Mapping):
        return None, [
            Fault((), f"expected an object (a mapping with apiVersion and kind), found {found_text(document)}", "type")
        ]
    info, faults = _kind(document)
    if info is None:
        return None, faults
    if not _is_text(document):
        return None, [Fault((), "a text holds half of a surrogate pair, which is no character", "character")]
    faults += _top_level(document, info)
    metadata, wrong = _metadata(document.get("metadata"), info, default_namespace, uid, creation_timestamp)
    faults += wrong
    namespace = metadata.namespace if metadata else None
    if info.spec_model.at_top:
        fields = {key: document[key] for key in document if key not in _OBJECT}
        spec, wrong = read_spec(fields, info.spec_model, namespace=namespace)
    else:
        spec, wrong = read_spec(document.get("spec"), info.spec_model, ("spec",), namespace)
    faults += wrong
    if faults or metadata is None or spec is None:
        return None, faults
    key = ObjectKey(info.kind, metadata.namespace, metadata.name)
    return ApiObject(key, document["apiVersion"], metadata, spec), []


def _is_text(document: Mapping[str, Any]) -> bool:
    """Tell whether all that is in the document can be written; JSON can escape what is no character."""
    try:
        json.dumps(document, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(document: Mapping[str, Any]) -> tuple[KindInfo | None, list[Fault]]:
    faults = []
    for field in ("apiVersion", "kind"):
        value = document.get(field)
        if value is None or value == "":
            faults.append(Fault((field,), f"required field {field!r} is missing", "missing"))
        elif not isinstance(value, str):
            faults.append(Fault((field,), f"expected a string, found {found_text(value)}", "type"))
    kind = document.get("kind")
    if not isinstance(kind, str) or not kind:
        return None, faults
    info = KINDS.get(kind)
    if str(document.get("apiVersion")).startswith(_GATEWAY_API):
        message = f"Kubernetes' Gateway API ({kind}) is not supported: write Istio's Gateway and VirtualService instead"
        return None, [*faults, Fault(("apiVersion",), message, "unknown-kind")]
    if info is None:
        return None, [*faults, Fault(("kind",), _unknown_kind(kind), "unknown-kind")]
    api_version = document.get("apiVersion")
    if isinstance(api_version, str) and api_version and api_version not in info.api_versions:
        allowed = " or ".join(info.api_versions)
        faults.append(Fault(("apiVersion",), f"{kind} has apiVersion {allowed}, not {api_version!r}", "api-version"))
    return info, faults


def _unknown_kind(kind: str) -> str:
    if kind in NOT_YET:
        return f"kind {kind!r} is not supported yet"
    if kind in KUBERNETES_ONLY:
        return f"kind {kind!r} is Kubernetes' own and has no meaning for hosts; leave it out"
    return f"unknown kind {kind!r}{did_you_mean(kind, KINDS)}"


def _top_level(document: Mapping[str, Any], info: KindInfo) -> list[Fault]:
    faults: list[Fault] = []
    if info.spec_model.at_top:
        # All that is not of every object is the spec's, which knows its fields.
        return faults
    for field in document:
        if field in _TOP or (info.kind in _BARE_KINDS and field in _BARE_FIELDS):
            continue
        if field in field_names(info.spec_model):
            message = f"field {field!r} belongs under spec"
        else:
            message = f"unknown field {field!r}{did_you_mean(field, _TOP)}"
        faults.append(Fault((field,), message, "unknown-field"))
    return faults


def _metadata(
    metadata: object, info: KindInfo, default_namespace: str, uid: str | None, creation_timestamp: datetime | None
) -> tuple[Metadata | None, list[Fault]]:
    if metadata is None:
        return None, [Fault(("metadata", "name"), "required field 'name' is missing", "missing")]
    if not isinstance(metadata, Mapping):
        return None, [Fault(("metadata",), f"expected a mapping, found {found_text(metadata)}", "type")]
    faults = _metadata_fields(metadata)
    name, wrong = _name(metadata.get("name"), info)
    faults += wrong
    namespace, wrong = _namespace(metadata.get("namespace"), info, default_namespace)
    faults += wrong
    labels, wrong = _string_map(metadata.get("labels"), ("metadata", "labels"), check_values=True)
    faults += wrong
    annotations, wrong = _string_map(metadata.get("annotations"), ("metadata", "annotations"), check_values=False)
    faults += wrong
    if faults:
        return None, faults
    return Metadata(name, namespace, labels, annotations, uid, creation_timestamp), []


def _metadata_fields(metadata: Mapping[str, Any]) -> list[Fault]:
    faults = []
    for field in metadata:
        path: Path = ("metadata", field)
        if field == "generateName":
            faults.append(Fault(path, "not supported: give every object a name", "not-supported"))
        elif field not in _METADATA and field not in _KUBECTL_METADATA:
            message = f"unknown field {field!r}{did_you_mean(field, _METADATA)}"
            faults.append(Fault(path, message, "unknown-field"))
    return faults


def _name(name: object, info: KindInfo) -> tuple[str, list[Fault]]:
    path: Path = ("metadata", "name")
    if name is None or name == "":
        return "", [Fault(path, "required field 'name' is missing", "missing")]
    if not isinstance(name, str):
        return "", [Fault(path, f"expected a string, found {found_text(name)}; put it in quotes", "type")]
    try:
        (check_label if info.kind in _LABEL_KINDS else check_subdomain)(name)
    except ValueError as error:
        return "", [Fault(path, str(error), "name")]
    only = _ONLY_NAMES.get(info.kind, name)
    if name != only:
        return "", [Fault(path, f"there is one {info.kind}: name it {only!r}", "name")]
    return name, []


def _namespace(namespace: object, info: KindInfo, default: str) -> tuple[str, list[Fault]]:
    path: Path = ("metadata", "namespace")
    if not info.namespaced:
        if namespace:
            return "", [Fault(path, f"a {info.kind} is in no namespace; remove this", "namespace")]
        return "", []
    if namespace is None or namespace == "":
        # Not to be trusted either: it comes from a command line or a URL.
        namespace = default
    if not isinstance(namespace, str):
        return "", [Fault(path, f"expected a string, found {found_text(namespace)}; put it in quotes", "type")]
    try:
        return check_label(namespace), []
    except ValueError as error:
        return "", [Fault(path, str(error), "name")]


def _string_map(value: object, path: Path, *, check_values: bool) -> tuple[dict[str, str], list[Fault]]:
    if value is None:
        return {}, []
    if not isinstance(value, Mapping):
        return {}, [Fault(path, f"expected a mapping, found {found_text(value)}", "type")]
    faults = []
    for key, text in value.items():
        if not isinstance(text, str):
            quotes = "" if isinstance(text, Mapping | list) or text is None else "; put it in quotes"
            faults.append(Fault((*path, key), f"expected a string, found {found_text(text)}{quotes}", "type"))
            continue
        try:
            check_label_key(key)
            if check_values:
                check_label_value(text)
        except ValueError as error:
            faults.append(Fault((*path, key), str(error), "label"))
    return dict(value), faults


def read_spec(
    value: object, model: type[SpecT], at: Path = (), namespace: str | None = None
) -> tuple[SpecT | None, list[Fault]]:
    """Return the spec, or None and all that is wrong with it.

    Args:
        value: what the YAML or JSON says; anything. None is an empty spec.
        model: the kind's.
        at: where the spec stands in the document; the faults' paths start with it.
        namespace: the object's, for fields that mean something beside it; None if it is not known.
    """
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        return None, [Fault(at, f"expected a mapping, found {found_text(value)}", "type")]
    try:
        return model.model_validate(_without_nulls(value), context={"namespace": namespace}), []
    except ValidationError as error:
        return None, [fault._replace(path=(*at, *fault.path)) for fault in faults_of(model, error)]


_ENTRIES_MEAN_SOMETHING: Final = frozenset({"headers", "withoutHeaders", "queryParams"})
"""Mappings from names that the user chooses: to drop an entry would make a route take more than was meant."""


def _without_nulls(value: Any, *, drop: bool = True) -> Any:
    """Drop fields that are null: as in Kubernetes they count as left out."""
    if isinstance(value, Mapping):
        return {
            key: _without_nulls(inner, drop=key not in _ENTRIES_MEAN_SOMETHING)
            for key, inner in value.items()
            if inner is not None or not drop
        }
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value
