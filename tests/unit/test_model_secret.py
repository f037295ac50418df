"""Secrets: their certificates and keys fit each other, and no message tells anything of a key."""

from base64 import b64encode
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from hostmesh_controller.load import load_documents
from hostmesh_controller.model import from_document, read_document
from hostmesh_controller.model.faults import path_text
from hostmesh_controller.model.secret import SecretSpec

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
START = datetime(2025, 1, 1, tzinfo=UTC)


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def certificate(subject: str, issuer: str, key: Key, signer: Key) -> str:
    builder = x509.CertificateBuilder(
        named(issuer), named(subject), key.public_key(), 7, START, START + timedelta(days=9)
    )
    return builder.sign(signer, SHA256()).public_bytes(Encoding.PEM).decode()


def pem(key: Key, encryption: KeySerializationEncryption | None = None) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()).decode()


ROOT_KEY, LEAF_KEY = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
ROOT = certificate("root", "root", ROOT_KEY, ROOT_KEY)
LEAF = certificate("leaf", "root", LEAF_KEY, ROOT_KEY)
CRL = (
    x509.CertificateRevocationListBuilder(named("root"), START, START + timedelta(days=9))
    .sign(ROOT_KEY, SHA256())
    .public_bytes(Encoding.PEM)
    .decode()
)
LEAF_PEM = pem(LEAF_KEY)


def document(**fields: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "shop", "namespace": "default"}, **fields}


def encoded(**values: str) -> dict[str, str]:
    return {name.replace("_", "."): b64encode(text.encode()).decode() for name, text in values.items()}


def faults_of(**fields: Any) -> str:
    _, faults = read_document(document(**fields))
    return "\n".join(f"{path_text(fault.path)}: {fault.message}" for fault in faults)


def spec_of(**fields: Any) -> SecretSpec:
    spec = from_document(document(**fields)).spec
    assert isinstance(spec, SecretSpec)
    return spec


def test_a_secret_as_kubernetes_writes_it_comes_back_as_it_was() -> None:
    given = document(type="kubernetes.io/tls", data=encoded(tls_crt=LEAF + ROOT, tls_key=LEAF_PEM))
    made = from_document(given)
    assert made.to_dict() == given
    assert from_document(made.to_dict()) == made


def test_each_of_istio_s_names_of_a_part_is_read() -> None:
    first = spec_of(data=encoded(tls_crt=LEAF, tls_key=LEAF_PEM, ca_crt=ROOT, ca_crl=CRL))
    other = spec_of(stringData={"cert": LEAF, "key": LEAF_PEM, "cacert": ROOT, "crl": CRL})
    parts = (LEAF.encode(), LEAF_PEM.encode(), ROOT.encode(), CRL.encode())
    assert (first.certificate, first.key, first.roots, first.revocations) == parts
    assert (other.certificate, other.key, other.roots, other.revocations) == parts
    assert first.ocsp_staple == b""


def test_string_data_wins_over_data() -> None:
    assert spec_of(data=encoded(ca_crt=LEAF), stringData={"ca.crt": ROOT}).roots == ROOT.encode()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "give a certificate with its key (tls.crt, tls.key), or CA certificates (ca.crt)"),
        ({"type": "kubernetes.io/tls", "stringData": {"ca.crt": ROOT}}, "needs tls.crt and tls.key"),
        (
            {"type": "kubernetes.io/dockerconfigjson"},
            "type: type kubernetes.io/dockerconfigjson has no meaning for hosts",
        ),
        ({"stringData": {"tls.crt": LEAF}}, "there is a certificate, but not its key"),
        ({"stringData": {"tls.key": LEAF_PEM}}, "there is a key, but not its certificate"),
        ({"stringData": {"tls.crt": LEAF, "tls.kye": "x"}}, "stringData: 'tls.kye' means nothing here; did you mean"),
        ({"data": {"tls.crt": "not base64!"}}, "data['tls.crt']: expected bytes in base64"),
        ({"data": {"tls.crt": 5}}, "data['tls.crt']: expected a text"),
        ({"stringData": {"tls.crt": "x", "tls.key": LEAF_PEM}}, "stringData['tls.crt']: this is no certificate in PEM"),
        ({"stringData": {"tls.crt": LEAF, "tls.key": "x"}}, "stringData['tls.key']: this is no private key in PEM"),
        (
            {"stringData": {"tls.crt": ROOT, "tls.key": LEAF_PEM}},
            "stringData['tls.key']: the private key is not that of",
        ),
        ({"stringData": {"tls.crt": LEAF + LEAF, "tls.key": LEAF_PEM}}, "certificate 2 did not issue certificate 1"),
        ({"stringData": {"ca.crt": LEAF_PEM + ROOT}}, "stringData['ca.crt']: there is a private key among the"),
        ({"stringData": {"ca.crt": ROOT, "ca.crl": ROOT}}, "stringData['ca.crl']: this is no revocation list"),
        (
            {"data": encoded(ca_crt=ROOT) | {"tls.ocsp-staple": "AAAA"}},
            "data['tls.ocsp-staple']: this is no OCSP answer",
        ),
        (
            {"stringData": {"ca.crt": ROOT}, "immutable": True},
            "immutable: not supported: objects of hostmesh can always",
        ),
        ({"stringData": {"ca.crt": ROOT}, "spec": {}}, "spec: unknown field 'spec'"),
    ],
)
def test_what_is_no_certificate_or_key_is_refused_at_its_place(fields: dict[str, Any], expected: str) -> None:
    assert expected in faults_of(**fields)


def test_keys_that_envoy_cannot_use_are_refused() -> None:
    short = rsa.generate_private_key(65537, 1024)
    weak = {"tls.crt": certificate("leaf", "root", short, ROOT_KEY), "tls.key": pem(short)}
    assert "the RSA key has 1024 bits; Envoy needs 2048 at least" in faults_of(stringData=weak)
    locked = {"tls.crt": LEAF, "tls.key": pem(LEAF_KEY, BestAvailableEncryption(b"x"))}
    assert "the private key is encrypted" in faults_of(stringData=locked)


BODY = "".join(LEAF_PEM.splitlines()[1:-1])


@pytest.mark.parametrize(
    "fields",
    [
        {"stringData": LEAF_PEM},
        {"data": BODY},
        {"data": [BODY]},
        {"data": {"tls.key": BODY + "!"}},
        {"data": {BODY: "x"}},
        {"type": LEAF_PEM},
        {"type": {"a": BODY}},
        {"stringData": {"tls.crt": LEAF_PEM, "tls.key": LEAF}},
        {"stringData": {"tls.crt": ROOT, "tls.key": LEAF_PEM}},
        {"stringData": {"tls.crt": LEAF, "tls.key": LEAF_PEM.replace("\n", " ")}},
        {"stringData": {"tls.crt": LEAF, "tls.key": [BODY]}},
    ],
)
def test_no_message_has_a_word_of_the_key(fields: dict[str, Any]) -> None:
    said = faults_of(**fields)
    assert said
    words = {BODY[start : start + 8] for start in range(len(BODY) - 8)}
    assert not [word for word in words if word in said]


def test_lost_line_breaks_are_told_with_the_cure() -> None:
    joined = {"tls.crt": LEAF, "tls.key": LEAF_PEM.replace("\n", " ")}
    assert "write it as a block after '|'" in faults_of(stringData=joined)
    assert "write it as a block after '|'" in faults_of(stringData={"ca.crt": ROOT.replace("\n", " ")})


def test_a_secret_does_not_print_its_key() -> None:
    made = from_document(document(stringData={"tls.crt": LEAF, "tls.key": LEAF_PEM}))
    assert "PRIVATE" not in f"{made!r} {made.spec} {made.spec!r}"


def test_a_mistake_in_a_file_is_told_with_its_line() -> None:
    text = "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\nstringData:\n  ca.crt: x\n"
    _, [problem] = load_documents(text, "a.yaml")
    assert (problem.line, problem.path) == (5, "stringData['ca.crt']")
