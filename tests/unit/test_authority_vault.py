"""An intermediate that a signer in Vault's style signs: a real HTTPS server, which checks the token and signs."""

import json
import logging
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs

import pki
from hostmesh_agent.keys import checked, key_pem
from hostmesh_controller.authority import Authority, AuthorityError
from hostmesh_controller.authority_certificates import Issuer, new_root, pem
from hostmesh_controller.authority_upstream import Demand
from hostmesh_controller.authority_vault import Vault
from http_servers import serving

TOKEN = "hvs.CAESIJ-not-to-be-told"
KEY = ec.generate_private_key(ec.SECP256R1())
DEMAND = Demand(pki.TRUST_DOMAIN, ("127.0.0.1",))
PATH = "/v1/pki/mesh/root/sign-intermediate"


@dataclass
class Signer:
    """What the server does; `root` may be exchanged, `spoil` changes an answer."""

    root: Issuer
    asked: list[dict[str, Any]] = field(default_factory=list)
    spoil: dict[str, Any] = field(default_factory=dict)
    port: int = 0

    def sign(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Sign as the engine does with `use_csr_values`: names and constraints are the request's."""
        csr = x509.load_pem_x509_csr(asked["csr"].encode())
        assert csr.is_signature_valid
        key = csr.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        now = pki.now()
        builder = (
            x509.CertificateBuilder()
            .subject_name(csr.subject)
            .issuer_name(self.root.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=30))
            .not_valid_after(now + timedelta(seconds=int(asked["ttl"].removesuffix("s"))))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )
        for extension in csr.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        signed = pem([builder.sign(self.root.key, hashes.SHA256())]).decode()
        above = pem([self.root.certificate]).decode()
        return {"certificate": signed, "issuing_ca": above, "ca_chain": [above], **self.spoil}

    def answer(self, path: str, token: str | None, body: bytes) -> tuple[int, dict[str, Any]]:
        if token != TOKEN:
            return 403, {"errors": ["permission denied"]}
        if path != PATH:
            return 404, {"errors": ["no handler for route"]}
        asked = json.loads(body)
        self.asked.append(asked)
        return 200, {"data": self.sign(asked)}


def server_context(directory: Path) -> ssl.SSLContext:
    """Make a root and a certificate for the server itself; the root is in server-ca.pem."""
    root = new_root("signer.test", pki.now())
    key = ec.generate_private_key(ec.SECP256R1())
    now = pki.now()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(root.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=True)
        .sign(root.key, hashes.SHA256())
    )
    (directory / "server-ca.pem").write_bytes(pem([root.certificate]))
    (directory / "server.pem").write_bytes(key_pem(key) + pem([certificate]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem")
    return context


@pytest.fixture
def signer(tmp_path: Path) -> Iterator[Signer]:
    found = Signer(new_root("corporate", pki.now()))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status, document = found.answer(self.path, self.headers.get("x-vault-token"), body)
            text = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "token").chmod(0o600)
    with serving(Handler, server_context(tmp_path)) as found.port:
        yield found


def vault(
    tmp_path: Path, signer: Signer, *, url: str = "", mount: str = "pki/mesh", ca: str = "server-ca.pem"
) -> Vault:
    url = url or f"https://127.0.0.1:{signer.port}"
    return Vault(url, mount, tmp_path / "token", tmp_path / ca, timedelta(days=100), DEMAND)


def authority(tmp_path: Path, signer: Signer, at: datetime | None = None, **where: str) -> Authority:
    upstream = vault(tmp_path, signer, **where)
    return Authority.load_or_create(tmp_path / "state", pki.TRUST_DOMAIN, at or pki.now(), upstream)


def test_the_signers_root_is_trusted_and_what_our_key_signs_leads_to_it(tmp_path: Path, signer: Signer) -> None:
    found = authority(tmp_path, signer)
    issued = found.issue(KEY.public_key(), pki.CART, pki.now())
    assert found.bundle_pem == pem([signer.root.certificate])
    assert checked(key_pem(KEY), issued.chain_pem, found.bundle_pem, pki.CART, pki.now())
    (asked,) = signer.asked
    assert "PRIVATE" not in json.dumps(asked)
    assert asked["ttl"] == "8640000s"


def test_a_second_start_needs_no_signer(tmp_path: Path, signer: Signer) -> None:
    first = authority(tmp_path, signer)
    second = authority(tmp_path, signer, url="https://127.0.0.1:9")
    second.tend(pki.now())
    assert not second.problem
    assert second.signing_until == first.signing_until
    assert len(signer.asked) == 1


def test_the_intermediate_is_renewed_at_half_of_its_life_with_another_key(tmp_path: Path, signer: Signer) -> None:
    found = authority(tmp_path, signer)
    first = found.intermediate(found.roots.active.id)
    found.tend(pki.now() + timedelta(days=49))
    assert len(signer.asked) == 1
    found.tend(pki.now() + timedelta(days=51))
    second = found.intermediate(found.roots.active.id)
    assert first is not None
    assert second is not None
    assert second.public_key() != first.public_key()
    assert authority(tmp_path, signer).intermediate(found.roots.active.id) == second


def test_with_the_signer_away_leaves_are_signed_until_the_intermediate_ends_and_there_is_an_alarm(
    tmp_path: Path, signer: Signer
) -> None:
    authority(tmp_path, signer)
    found = authority(tmp_path, signer, url="https://127.0.0.1:9")
    late = pki.now() + timedelta(days=60)
    with capture_logs() as logs:
        for minutes in range(5):
            found.tend(late + timedelta(minutes=minutes))
    assert "cannot be reached" in found.problem
    # Once, not at each attempt.
    assert [each["event"] for each in logs] == ["intermediate_not_obtained"]
    assert found.issue(KEY.public_key(), pki.CART, late)
    with pytest.raises(AuthorityError, match=r"ended at .* cannot be reached"):
        found.issue(KEY.public_key(), pki.CART, late + timedelta(days=50))


def test_a_signer_that_comes_back_ends_the_alarm(tmp_path: Path, signer: Signer) -> None:
    found = authority(tmp_path, signer)
    late = pki.now() + timedelta(days=60)
    (tmp_path / "token").write_text("another")
    found.tend(late)
    assert "refused with status 403: permission denied" in found.problem
    assert "must allow `update` on pki/mesh/root/sign-intermediate" in found.problem
    (tmp_path / "token").write_text(TOKEN)
    asked = len(signer.asked)
    found.tend(late + timedelta(seconds=30))
    assert len(signer.asked) == asked
    assert found.problem
    found.tend(late + timedelta(seconds=90))
    assert not found.problem


def test_who_asks_need_not_wait(tmp_path: Path, signer: Signer) -> None:
    found = authority(tmp_path, signer)
    late = pki.now() + timedelta(days=60)
    (tmp_path / "token").write_text("another")
    found.tend(late)
    (tmp_path / "token").write_text(TOKEN)
    found.tend(late + timedelta(seconds=1), at_once=True)
    assert not found.problem


def test_another_root_of_the_signer_is_prepared_and_not_used_before_it_is_activated(
    tmp_path: Path, signer: Signer
) -> None:
    found = authority(tmp_path, signer)
    old = signer.root
    signer.root = new_root("corporate", pki.now())
    assert found.prepare(pki.now()).source == "vault"
    assert found.bundle_pem == pem([old.certificate, signer.root.certificate])
    issued = found.issue(KEY.public_key(), pki.CART, pki.now())
    assert checked(key_pem(KEY), issued.chain_pem, pem([old.certificate]), pki.CART, pki.now())
    found.activate(pki.now())
    issued = found.issue(KEY.public_key(), pki.CART, pki.now())
    assert checked(key_pem(KEY), issued.chain_pem, pem([signer.root.certificate]), pki.CART, pki.now())


def test_preparing_the_same_root_is_refused(tmp_path: Path, signer: Signer) -> None:
    found = authority(tmp_path, signer)
    with pytest.raises(Exception, match=r"is .* still, which is active: have it use a new one first"):
        found.prepare(pki.now())


def other_root() -> str:
    return pem([new_root("other", pki.now()).certificate]).decode()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ({"certificate": None}, "without `certificate` and `ca_chain`"),
        ({"certificate": "junk"}, "certificates that cannot be read"),
        ({"ca_chain": [], "issuing_ca": None}, "without `certificate` and `ca_chain`"),
        ({"ca_chain": [other_root()]}, "was not issued by any of the roots"),
        ({"certificate": other_root()}, "the key is not that of the certificate"),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_not_used(
    tmp_path: Path, signer: Signer, spoil: dict[str, Any], reason: str
) -> None:
    signer.spoil = spoil
    with pytest.raises(AuthorityError, match=reason):
        authority(tmp_path, signer)


def test_a_signer_that_cannot_prove_who_it_is_gets_no_token(tmp_path: Path, signer: Signer) -> None:
    (tmp_path / "wrong-ca.pem").write_text(other_root())
    with pytest.raises(AuthorityError, match="CERTIFICATE_VERIFY_FAILED"):
        authority(tmp_path, signer, ca="wrong-ca.pem")
    assert not signer.asked


@pytest.mark.parametrize("content", [None, "junk"])
def test_roots_of_the_signer_that_cannot_be_read_are_named(tmp_path: Path, signer: Signer, content: str | None) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    with pytest.raises(AuthorityError, match=r"ca\.pem \(ca\.ca_file\) cannot be used"):
        authority(tmp_path, signer, ca="ca.pem")


def test_a_token_that_others_may_read_is_not_sent(tmp_path: Path, signer: Signer) -> None:
    (tmp_path / "token").chmod(0o644)
    with pytest.raises(AuthorityError, match=r"open to others \(mode 0644\)"):
        authority(tmp_path, signer)
    assert not signer.asked


def test_the_token_is_in_no_log_and_no_message(
    tmp_path: Path, signer: Signer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), capture_logs() as logs:
        found = authority(tmp_path, signer)
        late = pki.now() + timedelta(days=60)
        found.tend(late)
        signer.spoil = {"certificate": None}
        found.tend(late + timedelta(days=60))
        with pytest.raises(AuthorityError) as raised:
            authority(tmp_path / "other", signer, url="https://127.0.0.1:9")
    for text in (caplog.text, str(logs), found.problem, str(raised.value)):
        assert TOKEN not in text
