"""Which secret a host gets for a name: certificates and keys for its gateways, and for its calls with credentials.

A host gets a stored credential only if one of its Gateways, or a DestinationRule that it sees, names it. Files are told
by their paths, which are the host's own.
"""

from typing import Final

from envoy.config.core.v3.base_pb2 import DataSource
from envoy.extensions.transport_sockets.tls.v3.common_pb2 import CertificateValidationContext, TlsCertificate
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret

from hostmesh_api.delta import Resource
from hostmesh_controller.mesh.gateways import CREDENTIAL, NO_GATEWAYS, ROOTS_SUFFIX
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host
from hostmesh_controller.mesh.step import object_dependency
from hostmesh_controller.model.destination_rule import DestinationRuleSpec
from hostmesh_controller.model.exports import export_to
from hostmesh_controller.model.objects import ObjectKey
from hostmesh_controller.model.secret import SecretSpec
from hostmesh_controller.xds.encoding import resource as encoded
from hostmesh_controller.xds.file_secrets import file_secret, is_file_secret
from hostmesh_controller.xds.keeping import kept

_KIND: Final = "Secret"


def dependencies(mesh: Mesh, host: str, name: str) -> tuple[str, ...]:
    """Return the Secrets that a name can mean to a host, existing or not, and the rules that let it ask."""
    keys = (*_candidates(mesh, host, name), *_candidates(mesh, host, _whole(name)))
    rules = mesh.credential_users.get(_own_name(name), frozenset()) | mesh.credential_users.get(
        _own_name(_whole(name)), frozenset()
    )
    return tuple(map(object_dependency, (*keys, *sorted(rules))))


def resource(mesh: Mesh, host: Host, name: str) -> Resource | None:
    if is_file_secret(name):
        made = file_secret(name)
        return None if made is None else encoded(name, made)
    found = _found(mesh, host.name, name)
    if found is None:
        return None
    key, wants_roots = found
    item = mesh.objects[key]
    spec = item.spec
    assert isinstance(spec, SecretSpec)
    if not (spec.roots if wants_roots else spec.key):
        return None
    make = _roots if wants_roots else _certificate
    return kept(mesh, (_KIND, name, key), (item,), name, lambda: make(name, spec))


def _found(mesh: Mesh, host: str, name: str) -> tuple[ObjectKey, bool] | None:
    """Return the Secret that a name means to a host, and whether its CA certificates are meant.

    As in Istio those are in a Secret of their own, `NAME-cacert`, or else beside the certificate.
    """
    for key in _candidates(mesh, host, name):
        if key in mesh.objects:
            return key, name.endswith(ROOTS_SUFFIX)
    if name.endswith(ROOTS_SUFFIX):
        for key in _candidates(mesh, host, _whole(name)):
            if key in mesh.objects:
                return key, True
    return None


def _whole(name: str) -> str:
    return name.removesuffix(ROOTS_SUFFIX)


def _own_name(name: str) -> str:
    return name.removeprefix(CREDENTIAL).rpartition("/")[2]


def _candidates(mesh: Mesh, host: str, name: str) -> tuple[ObjectKey, ...]:
    """Return the Secrets that a name can mean to a host that may have them; the first that exists is meant."""
    if not name.startswith(CREDENTIAL):
        return ()
    stored = mesh.gateways.get(host, NO_GATEWAYS).stored
    for_gateways = stored.get(name, ())
    if name.endswith(ROOTS_SUFFIX) and not for_gateways:
        for_gateways = tuple(
            ObjectKey(_KIND, key.namespace, f"{key.name}{ROOTS_SUFFIX}") for key in stored.get(_whole(name), ())
        )
    owner, _, own = name.removeprefix(CREDENTIAL).rpartition("/")
    namespace = mesh.viewer_of(host).namespace
    calls = owner in {"", namespace} and _calls_with(mesh, host, own)
    return tuple(dict.fromkeys((*([ObjectKey(_KIND, namespace, own)] if calls else []), *for_gateways)))


def _calls_with(mesh: Mesh, host: str, credential: str) -> bool:
    """Tell whether a DestinationRule that holds for the host names a credential, or the certificate beside it."""
    viewer = mesh.viewer_of(host)
    names = {credential, credential.removesuffix(ROOTS_SUFFIX)}
    for key in (key for name in names for key in mesh.credential_users.get(name, ())):
        spec = mesh.objects[key].spec
        assert isinstance(spec, DestinationRuleSpec)
        exports = export_to(spec.export_to or mesh.config.default_destination_rule_export_to, key.namespace)
        labels = spec.workload_selector.match_labels if spec.workload_selector else {}
        if exports & {"*", viewer.namespace} and viewer.selected_by(labels):
            return True
    return False


def _certificate(name: str, spec: SecretSpec) -> Secret:
    certificate = TlsCertificate(certificate_chain=_inline(spec.certificate), private_key=_inline(spec.key))
    if spec.ocsp_staple:
        certificate.ocsp_staple.CopyFrom(_inline(spec.ocsp_staple))
    return Secret(name=name, tls_certificate=certificate)


def _roots(name: str, spec: SecretSpec) -> Secret:
    context = CertificateValidationContext(trusted_ca=_inline(spec.roots))
    if spec.revocations:
        context.crl.CopyFrom(_inline(spec.revocations))
    return Secret(name=name, validation_context=context)


def _inline(content: bytes) -> DataSource:
    return DataSource(inline_bytes=content)
