"""The simulated proxies speak to a real gRPC server, with mutual TLS."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from bench.fleet import PATH, REPORT_PATH, Fleet, Member
from hostmesh_api.v1.hostmesh_pb2 import HostReport, ReportResponse
from hostmesh_api.wire import CLUSTER_TYPE

BIG_BYTES = 100_000
"""More than one frame, and more than HTTP/2's first window."""
Context = grpc.ServicerContext


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One self-signed certificate for both ends: who trusts whom is not what is tested."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    file = tmp_path_factory.mktemp("identity") / "identity.pem"
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(pem + certificate.public_bytes(Encoding.PEM))
    return file


class Server:
    """Answers each first request with one resource, counts acknowledgements, notes what it was told."""

    def __init__(self, refusing: bool) -> None:
        self.refusing = refusing
        self.acks = 0
        self.offered: list[dict[str, str]] = []
        self.reported: list[str] = []

    def stream(self, requests: Iterator[DeltaDiscoveryRequest], context: Context) -> Iterator[DeltaDiscoveryResponse]:
        if self.refusing:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "not you")
        for request in requests:
            if request.response_nonce:
                self.acks += 1
                continue
            self.offered.append(dict(request.initial_resource_versions))
            response = DeltaDiscoveryResponse(type_url=request.type_url, nonce="1")
            response.resources.add(name="big", version="v1").resource.value = b"x" * BIG_BYTES
            yield response

    def report(self, report: HostReport, context: Context) -> ReportResponse:
        if self.refusing:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "not you")
        self.reported.append(report.facts.hostname)
        return ReportResponse(interval_s=60)


@contextmanager
def serving(identity: Path, *, refusing: bool = False) -> Iterator[tuple[Server, tuple[str, int]]]:
    server = Server(refusing)
    pem = identity.read_bytes()
    grpc_server = grpc.server(ThreadPoolExecutor(8))
    report = grpc.unary_unary_rpc_method_handler(
        server.report,
        request_deserializer=HostReport.FromString,
        response_serializer=ReportResponse.SerializeToString,
    )
    stream = grpc.stream_stream_rpc_method_handler(
        server.stream,
        request_deserializer=DeltaDiscoveryRequest.FromString,
        response_serializer=DeltaDiscoveryResponse.SerializeToString,
    )
    for path, handler in ((PATH, stream), (REPORT_PATH, report)):
        service, method = path.strip("/").split("/")
        grpc_server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    credentials = grpc.ssl_server_credentials([(pem, pem)], root_certificates=pem, require_client_auth=True)
    port = grpc_server.add_secure_port("127.0.0.1:0", credentials)
    grpc_server.start()
    try:
        yield server, ("127.0.0.1", port)
    finally:
        grpc_server.stop(None).wait(10)


def members(identity: Path, count: int = 3) -> list[Member]:
    return [Member(f"host-{index}", identity, {CLUSTER_TYPE: ("*",)}) for index in range(count)]


def test_every_proxy_gets_a_big_response_and_acknowledges_it(identity: Path) -> None:
    with serving(identity) as (server, address), Fleet(members(identity), identity, address) as fleet:
        fleet.connect()
        fleet.run(lambda: server.acks == 3, within_s=20)

        assert fleet.failures() == []
        assert fleet.settled()
        assert fleet.responses == 3
        assert fleet.response_bytes > 3 * BIG_BYTES
        assert fleet.wire().received > fleet.response_bytes


def test_a_proxy_that_comes_back_offers_the_versions_it_holds(identity: Path) -> None:
    with serving(identity) as (server, address), Fleet(members(identity, 1), identity, address) as fleet:
        for acks in (1, 2):
            fleet.connect()
            fleet.run(lambda acks=acks: server.acks == acks, within_s=20)  # type: ignore[misc] # binds the loop's value
            fleet.disconnect()

        assert server.offered == [{}, {"big": "v1"}]


def test_proxies_report_beside_their_stream_and_learn_when_to_do_it_again(identity: Path) -> None:
    with serving(identity) as (server, address), Fleet(members(identity), identity, address) as fleet:
        fleet.connect()
        fleet.run(lambda: server.acks == 3, within_s=20)
        fleet.start_reports(0)
        fleet.serve(0.1)
        fleet.run(lambda: fleet.reports == 3, within_s=20)

        assert sorted(server.reported) == ["host-0", "host-1", "host-2"]
        assert fleet.report_interval_s == 60
        assert fleet.failures() == []


def test_a_refused_stream_is_a_failure_with_the_name_of_its_host(identity: Path) -> None:
    with serving(identity, refusing=True) as (_, address), Fleet(members(identity, 1), identity, address) as fleet:
        fleet.connect()
        fleet.run(lambda: bool(fleet.failures()), within_s=20)

        assert fleet.failures() == ["host-0: ended by the server; its log says why"]
