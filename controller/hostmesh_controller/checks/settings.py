"""Settings that are accepted and do nothing, or less than they seem to: what Istio's webhook warns of."""

from collections.abc import Iterator
from typing import Final

from hostmesh_controller.checks.finding import Finding
from hostmesh_controller.model import ApiObject, Path
from hostmesh_controller.model.destination_rule import DestinationRuleSpec, TrafficPolicy
from hostmesh_controller.model.domains import is_ip
from hostmesh_controller.model.gateway import GatewaySpec
from hostmesh_controller.model.listeners import is_http
from hostmesh_controller.model.server_tls import CIPHER_SUITES, ServerTls
from hostmesh_controller.model.sidecar import SidecarSpec
from hostmesh_controller.model.virtual_service import HttpRoute, VirtualServiceSpec
from hostmesh_controller.model.workloads import ServiceEntrySpec, WorkloadEntrySpec

_OLD_TLS: Final = frozenset({"TLSV1_0", "TLSV1_1"})


def check_settings(item: ApiObject) -> Iterator[Finding]:
    """Yield what is doubtful in an object by itself."""
    match item.spec:
        case VirtualServiceSpec() as spec:
            yield from _virtual_service(spec)
        case DestinationRuleSpec() as spec:
            yield from _destination_rule(spec)
        case GatewaySpec() as spec:
            yield from _gateway(spec)
        case SidecarSpec() as spec:
            yield from _sidecar(item, spec)
        case ServiceEntrySpec() as spec:
            yield from _service_entry(spec)
        case WorkloadEntrySpec() as spec:
            if not spec.address:
                yield _warning(
                    ("spec",), f"without an address it is called nowhere; network {spec.network!r} alone has no meaning"
                )


def _warning(path: Path, message: str, code: str = "ineffective-setting", istio_code: str = "IST0133") -> Finding:
    return Finding(path, message, code, istio_code=istio_code)


def _virtual_service(spec: VirtualServiceSpec) -> Iterator[Finding]:
    for index, http in enumerate(spec.http):
        yield from _http(("spec", "http", index), http)
    for index, tls in enumerate(spec.tls):
        for place, match in enumerate(tls.match):
            for position, name in enumerate(match.sni_hosts):
                if is_ip(name):
                    path: Path = ("spec", "tls", index, "match", place, "sniHosts", position)
                    yield _warning(
                        path, f"{name!r}: TLS has no server names that are addresses; hardly any client sends one"
                    )
    for index, name in enumerate(spec.gateways):
        if "/" not in name and "." in name:
            short, namespace = name.split(".")[:2]
            message = f"{name!r} is an old form; write {namespace}/{short}"
            yield _warning(("spec", "gateways", index), message, "deprecated-field")


def _http(path: Path, http: HttpRoute) -> Iterator[Finding]:
    if http.mirror_percent is not None:
        yield _warning(
            (*path, "mirrorPercent"), "mirrorPercent is deprecated; use mirrorPercentage", "deprecated-field"
        )
    delay = http.fault.delay if http.fault else None
    abort = http.fault.abort if http.fault else None
    if delay is not None and delay.percent:
        message = "fault.delay.percent is deprecated; use fault.delay.percentage"
        yield _warning((*path, "fault", "delay", "percent"), message, "deprecated-field", "IST0002")
    for name, part, given in (
        ("delay", delay, delay is not None and (delay.percentage is not None or delay.percent is not None)),
        ("abort", abort, abort is not None and abort.percentage is not None),
    ):
        if part is not None and not given:
            message = "without a percentage no request is touched, as in Istio; set percentage.value: 100 for all"
            yield _warning((*path, "fault", name), message, istio_code="")


def _destination_rule(spec: DestinationRuleSpec) -> Iterator[Finding]:
    policies: list[tuple[Path, TrafficPolicy | None]] = [(("spec", "trafficPolicy"), spec.traffic_policy)]
    for index, subset in enumerate(spec.subsets):
        policies.append((("spec", "subsets", index, "trafficPolicy"), subset.traffic_policy))
    for path, policy in policies:
        if policy is None:
            continue
        outlier, balancer = policy.outlier_detection, policy.load_balancer
        if outlier is not None and outlier.consecutive_errors:
            message = "consecutiveErrors is deprecated; use consecutiveGatewayErrors or consecutive5xxErrors"
            yield _warning((*path, "outlierDetection", "consecutiveErrors"), message, "deprecated-field")
        hashing = balancer.consistent_hash if balancer is not None else None
        if hashing is not None and hashing.minimum_ring_size is not None:
            message = "minimumRingSize is deprecated here; use ringHash.minimumRingSize"
            yield _warning((*path, "loadBalancer", "consistentHash", "minimumRingSize"), message, "deprecated-field")
        locality = balancer.locality_lb_setting if balancer is not None else None
        if locality is not None and (locality.failover or locality.failover_priority) and outlier is None:
            message = "without outlierDetection nobody fails over: nothing tells that the nearer endpoints fail"
            yield _warning((*path, "loadBalancer", "localityLbSetting"), message)


def _gateway(spec: GatewaySpec) -> Iterator[Finding]:
    for index, server in enumerate(spec.servers):
        path: Path = ("spec", "servers", index, "tls")
        if server.tls is None:
            continue
        if server.tls.https_redirect and not is_http(server.port.protocol):
            message = f"httpsRedirect is for servers of plain HTTP; this one's protocol is {server.port.protocol}"
            yield _warning((*path, "httpsRedirect"), message)
        yield from _server_tls(path, server.tls)


def _server_tls(path: Path, tls: ServerTls) -> Iterator[Finding]:
    if tls.min_protocol_version in _OLD_TLS and not tls.cipher_suites:
        message = "before TLSV1_2, cipherSuites must be set too: the default ones do not work with it"
        yield _warning((*path, "minProtocolVersion"), message)
    for place, suite in enumerate(tls.cipher_suites):
        if suite not in CIPHER_SUITES or suite in tls.cipher_suites[:place]:
            why = "it is there twice" if suite in CIPHER_SUITES else "Envoy does not know it"
            yield _warning((*path, "cipherSuites", place), f"{suite!r} is left out: {why}")
    if tls.passes_through and (tls.credentials or tls.server_certificate or tls.private_key or tls.ca_certificates):
        yield _warning(
            (*path, "mode"), f"mode {tls.mode} (the default is PASSTHROUGH) uses no certificates; set SIMPLE?"
        )


def _sidecar(item: ApiObject, spec: SidecarSpec) -> Iterator[Finding]:
    if spec.workload_selector is not None and not spec.workload_selector.labels:
        yield _no_labels(item)
    for index, egress in enumerate(spec.egress):
        seen: dict[str, set[str]] = {}
        for place, text in enumerate(egress.hosts):
            namespace, _, host = text.partition("/")
            known = seen.setdefault(item.key.namespace if namespace == "." else namespace, set())
            if host in known or "*" in known or (host == "*" and known):
                yield _warning(("spec", "egress", index, "hosts", place), f"{text!r} is in another host of this list")
            known.add(host)
        if "*" in seen.get("*", set()) and len(seen) > 1:
            yield _warning(("spec", "egress", index, "hosts"), "'*/*' is everything: the other hosts have no effect")


def _no_labels(item: ApiObject) -> Finding:
    message = f"a workloadSelector without labels is for every workload of namespace {item.key.namespace!r}"
    return _warning(("spec", "workloadSelector"), message)


def _service_entry(spec: ServiceEntrySpec) -> Iterator[Finding]:
    if spec.workload_selector is not None and not spec.workload_selector.labels:
        yield _warning(("spec", "workloadSelector"), "a workloadSelector without labels selects nothing; give labels")
    if spec.workload_selector is not None and spec.resolution == "NONE":
        message = "resolution NONE calls whatever address was dialled: the workloadSelector has no effect. Set STATIC"
        yield _warning(("spec", "resolution"), message)
    tcp = any(port.protocol.upper() in {"TCP", ""} for port in spec.ports)
    if len(spec.hosts) > 1 and spec.addresses and tcp:
        message = "raw TCP to one of the addresses can mean each of the hosts: use one ServiceEntry for each"
        yield _warning(("spec", "hosts"), message)
