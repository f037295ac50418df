"""Instance documents of AWS, GCP and Azure in their real formats, from our own authorities; and those who copy them."""

import asyncio
import base64
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from structlog.testing import capture_logs

import clouds
import pki
from clouds import ACCOUNT, AZURE, AZURE_ISSUER, GOOGLE, INSTANCE, MACHINE, PROJECT, REGION, SUBSCRIPTION, Metadata
from hostmesh_agent import enrol, evidence, keys
from hostmesh_agent.enrol import EnrolError, PendingError
from hostmesh_agent.evidence import EvidenceError as NoEvidenceError
from hostmesh_agent.state import State
from hostmesh_api.joinstring import JoinString
from hostmesh_api.proof import audience, azure_nonce
from hostmesh_api.v1.hostmesh_pb2 import HostFacts, JoinRequest
from hostmesh_controller.attest.clouds import Allowed, AwsAttestor, AzureAttestor, GcpAttestor
from hostmesh_controller.attest.evidence import Attested, EvidenceError, Shown
from hostmesh_controller.config_attest import Policy, Trust
from identity_servers import Controller
from machines import CLIENT, SERVER, authority

NONCE = b"n" * 56
CSR = keys.request()[1]
AWS_ATTESTOR = AwsAttestor(lambda: [REGION.certificate], Allowed((ACCOUNT,), ("eu-central-1",)))
GCP_ATTESTOR = GcpAttestor(clouds.jwks, Allowed((PROJECT,), ("europe-west3",)))
AZURE_ATTESTOR = AzureAttestor(lambda: [AZURE_ISSUER.certificate], Allowed((SUBSCRIPTION,)))


def shown(**what: Any) -> Shown:
    return Shown(JoinRequest(csr_der=CSR, nonce=NONCE, **what))


def aws(document: bytes) -> Attested:
    return AWS_ATTESTOR.verify(shown(aws=document), pki.now())


def gcp(token: str) -> Attested:
    return GCP_ATTESTOR.verify(shown(gcp=token), pki.now())


def azure(document: bytes) -> Attested:
    return AZURE_ATTESTOR.verify(shown(azure=document), pki.now())


def why_not(verify: Callable[..., Attested], what: object) -> str:
    with pytest.raises(EvidenceError) as raised:
        verify(what)
    return str(raised.value)


# AWS


@pytest.mark.parametrize("options", [(), ("-stream",), ("-noattr",), ("-stream", "-nocerts"), ("-nosmimecap",)])
def test_an_aws_document_is_read_however_its_signature_is_encoded(tmp_path: Path, options: tuple[str, ...]) -> None:
    document = clouds.signed_by_openssl(clouds.aws_document(), REGION, tmp_path, *options)
    if "-stream" in options:
        assert base64.b64decode(document)[1] == 0x80  # indefinite length
    attested = aws(document)
    assert attested.names == [{"instance_id": INSTANCE, "account": ACCOUNT, "region": "eu-central-1"}]
    assert attested.subject == f"aws:{ACCOUNT}/{INSTANCE}"
    assert attested.born is not None
    assert pki.now() - attested.born < timedelta(minutes=3)


def test_an_aws_document_of_others_is_refused() -> None:
    for changes, said in (
        ({"accountId": "210987654321"}, "an instance of '210987654321', whose instances may not join"),
        ({"region": "us-east-1"}, "an instance in 'us-east-1', where none may join from"),
        ({"instanceId": "../x"}, "without a usable instanceId"),
        ({"instanceId": "mi-0123456789"}, "without an instance"),
        ({"instanceId": None}, "without a usable instanceId"),
        ({"pendingTime": "yesterday"}, "without a usable pendingTime"),
        ({"pendingTime": "2999-01-01T00:00:00Z"}, "of the future"),
    ):
        assert said in why_not(aws, clouds.signed(clouds.aws_document(**changes), REGION))
    foreign = authority().issue("Amazon Web Services LLC", key=clouds.rsa_key(), usage=None)
    assert "certificate that is not configured" in why_not(aws, clouds.signed(clouds.aws_document(), foreign))


def test_a_document_that_was_changed_is_refused_wherever_it_was_changed() -> None:
    for attributes in (True, False):
        whole = base64.b64decode(clouds.signed(clouds.aws_document(), REGION, attributes=attributes))
        for at in range(0, len(whole), 31):
            changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
            document = base64.b64encode(changed)
            # Some bytes are of the certificate that comes along, which nobody looks at.
            try:
                assert aws(document).subject == f"aws:{ACCOUNT}/{INSTANCE}"
            except EvidenceError:
                continue
        other = whole.replace(INSTANCE.encode(), b"i-0123456789abcdef1")
        assert other != whole
        assert why_not(aws, base64.b64encode(other))


def test_what_is_no_signed_document_is_refused_and_costs_little() -> None:
    nested = b"\x30\x80" * 6000
    for bad in (b"", b"junk", b"A" * 17_000, base64.b64encode(nested), base64.b64encode(b"\x30\x84\xff\xff\xff\xff")):
        assert why_not(aws, bad)
    assert "not JSON" in why_not(aws, clouds.signed(b"<xml/>", REGION))
    assert "no JSON object" in why_not(aws, clouds.signed(b"[]", REGION))
    assert "not JSON" in why_not(aws, clouds.signed(b"[" * 5000, REGION))
    two = clouds.signed(clouds.aws_document(), REGION)
    assert "at most" in why_not(aws, two + b"\n" * 20_000)


# Azure


def azure_now(**changes: Any) -> bytes:
    return clouds.azure_document(azure_nonce(NONCE, CSR), **changes)


def test_an_azure_document_made_for_the_nonce_is_believed() -> None:
    attested = azure(clouds.signed(azure_now(), AZURE))
    assert attested.names == [{"vm_id": MACHINE, "subscription": SUBSCRIPTION}]
    assert attested.subject == f"azure:{SUBSCRIPTION}/{MACHINE}"
    # The intermediate may come along; the root above it is then enough.
    whole = AzureAttestor(lambda: [clouds.AUTHORITY.certificate], Allowed((SUBSCRIPTION,)))
    assert whole.verify(shown(azure=clouds.signed(azure_now(), AZURE, AZURE_ISSUER)), pki.now())


def test_an_azure_document_that_is_copied_old_or_of_others_is_refused() -> None:
    for document, said in (
        (clouds.azure_document("0123456789"), "for another nonce"),
        (clouds.azure_document(azure_nonce(b"m" * 56, CSR)), "for another nonce"),
        (clouds.azure_document(azure_nonce(NONCE, keys.request()[1])), "for another nonce"),
        (azure_now(at=pki.now() - timedelta(hours=7)), "of another time"),
        (azure_now(at=pki.now() + timedelta(hours=1)), "of another time"),
        (azure_now(timeStamp=None), "without a time"),
        (azure_now(timeStamp={"createdOn": "now", "expiresOn": "never"}), "without a usable"),
        (azure_now(subscriptionId="00000000-0000-0000-0000-000000000000"), "whose instances may not join"),
        (azure_now(vmId="a/b"), "without a usable vmId"),
    ):
        assert said in why_not(azure, clouds.signed(document, AZURE))


def test_an_azure_document_signed_by_anybody_else_is_refused() -> None:
    for signer, said in (
        (authority().issue("metadata.azure.com", key=clouds.rsa_key(), usage=SERVER), "not trusted"),
        (AZURE_ISSUER.issue("www.example.org", key=clouds.rsa_key(), usage=SERVER), "by another service"),
        (AZURE_ISSUER.issue("metadata.azure.com.evil.org", key=clouds.rsa_key(), usage=SERVER), "by another service"),
        (AZURE_ISSUER.issue("metadata.azure.com", key=clouds.rsa_key(), usage=CLIENT), "usage serverAuth"),
    ):
        assert said in why_not(azure, clouds.signed(azure_now(), signer))


# GCP


def gcp_now(**changes: Any) -> dict[str, Any]:
    return clouds.gcp_claims(audience(NONCE, CSR), **changes)


def test_a_gcp_token_made_for_the_nonce_is_believed() -> None:
    attested = gcp(clouds.gcp_token(gcp_now()))
    assert attested.names[0]["instance_name"] == "vm-7"
    assert attested.subject == f"gcp:{PROJECT}/152986662232938449"


def test_a_gcp_token_that_is_copied_old_or_of_others_is_refused() -> None:
    engine = gcp_now()["google"]["compute_engine"]
    for claims, said in (
        (clouds.gcp_claims("https://vault.example.org"), "Audience"),
        (clouds.gcp_claims(audience(b"m" * 56, CSR)), "Audience"),
        (gcp_now(iss="https://evil.example.org"), "issuer"),
        (gcp_now(at=pki.now() - timedelta(hours=2)), "of another time"),
        (gcp_now(at=pki.now() + timedelta(hours=2)), "of another time"),
        (gcp_now(google={}), "format=full"),
        (gcp_now(google={"compute_engine": {**engine, "project_id": "other"}}), "whose instances may not join"),
        (gcp_now(google={"compute_engine": {**engine, "zone": "us-east1-b"}}), "where none may join from"),
        (gcp_now(google={"compute_engine": {**engine, "instance_id": 7}}), "without a usable instance_id"),
        ({key: value for key, value in gcp_now().items() if key != "exp"}, "exp"),
    ):
        assert said in why_not(gcp, clouds.gcp_token(claims))


def test_a_gcp_token_of_another_key_or_algorithm_is_refused() -> None:
    claims = gcp_now()
    assert "Signature verification failed" in why_not(gcp, clouds.gcp_token(claims, clouds.rsa_key()))
    assert "not in the file of Google's keys" in why_not(gcp, clouds.gcp_token(claims, GOOGLE, "k2"))
    assert why_not(gcp, jwt.encode(claims, "", algorithm="none", headers={"kid": "k1"}))
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"k1"}').rstrip(b"=").decode()
    body = clouds.gcp_token(claims).split(".")[1]
    assert why_not(gcp, f"{header}.{body}.{'A' * 43}")
    for bad in ("", "a.b.c", "x" * 20_000, "..", "é"):
        assert why_not(gcp, bad)
    small = GcpAttestor(lambda: clouds.jwks(clouds.rsa_key(1024)), Allowed((PROJECT,)))
    with pytest.raises(EvidenceError, match="RSA key of 1024 bits"):
        small.verify(shown(gcp=clouds.gcp_token(claims)), pki.now())


# From the metadata service to the mesh


def trust(kind: str, template: str, **more: Any) -> Trust:
    return Trust(Policy(template, manual=False, group="shop/pool"), **more)


@pytest.fixture
def cloudy(controller: Controller) -> Controller:
    controller.attestors |= {"aws": AWS_ATTESTOR, "gcp": GCP_ATTESTOR, "azure": AZURE_ATTESTOR}
    controller.trust["aws"] = trust("aws", "{instance_id}")
    controller.trust["gcp"] = trust("gcp", "{instance_name}")
    controller.trust["azure"] = trust("azure", "vm-{vm_id}")
    return controller


async def come(controller: Controller, state: State, what: evidence.Evidence) -> str:
    where = JoinString((f"127.0.0.1:{controller.join_port}",), controller.authority.root_der, "")
    return (await enrol.join(where, state, HostFacts(), controller.now, evidence=what, pause_s=0.01)).host


@pytest.mark.parametrize(("kind", "host"), [("aws", INSTANCE), ("gcp", "vm-7"), ("azure", f"vm-{MACHINE}")])
async def test_an_instance_joins_by_what_its_metadata_service_says(
    cloudy: Controller, state: State, kind: str, host: str
) -> None:
    with clouds.serving(Metadata()) as url:
        assert await come(cloudy, state, evidence.CLOUDS[kind](url)) == host
    assert cloudy.members[host].address == "127.0.0.1"
    await enrol.renew_host(state, pki.now)


@pytest.mark.parametrize("kind", ["aws", "gcp", "azure"])
async def test_an_instance_joins_once_whoever_on_it_asks_the_metadata_service_again(
    cloudy: Controller, state: State, tmp_path: Path, kind: str
) -> None:
    with clouds.serving(Metadata()) as url:
        await come(cloudy, state, evidence.CLOUDS[kind](url))
        with capture_logs() as logs, pytest.raises(EnrolError, match="the evidence is not accepted"):
            await come(cloudy, State(tmp_path / "thief"), evidence.CLOUDS[kind](url))
    (reason,) = [str(each["reason"]) for each in logs if each["event"] == "join_refused"]
    assert "has joined at" in reason
    assert "by another key" in reason
    await enrol.renew_host(state, pki.now)


async def test_of_many_who_claim_one_instance_at_once_one_gets_it(cloudy: Controller, tmp_path: Path) -> None:
    with clouds.serving(Metadata()) as url:
        calls = [come(cloudy, State(tmp_path / str(each)), evidence.AwsInstance(url)) for each in range(16)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [each for each in outcomes if isinstance(each, str)] == [INSTANCE]
    assert len(cloudy.store.certificates(INSTANCE)) == 1


async def test_an_old_aws_instance_does_not_join_but_may_wait_for_approval_as_long_as_it_takes(
    cloudy: Controller, state: State
) -> None:
    started = pki.now() - timedelta(minutes=50)
    document = clouds.aws_document(pendingTime=started.strftime("%Y-%m-%dT%H:%M:%SZ"))
    cloudy.trust["aws"] = trust("aws", "{instance_id}", max_age=timedelta(minutes=30))
    with clouds.serving(Metadata(clouds.signed(document, REGION))) as url:
        with capture_logs() as logs, pytest.raises(EnrolError):
            await come(cloudy, state, evidence.AwsInstance(url))
        assert any("longer ago than max_age" in str(each.get("reason")) for each in logs)
        cloudy.trust["aws"] = Trust(Policy("{instance_id}", group="shop/pool"), max_age=timedelta(hours=1))
        with pytest.raises(PendingError):
            await come(cloudy, state, evidence.AwsInstance(url))
        (entry,) = cloudy.store.pending()
        cloudy.ahead = timedelta(minutes=30)
        cloudy.store.decide_pending(entry.id, "approved", "ann", cloudy.now())
        assert await come(cloudy, state, evidence.AwsInstance(url)) == INSTANCE


@pytest.mark.parametrize("kind", ["aws", "gcp", "azure"])
def test_a_metadata_service_that_is_none_is_named_and_its_redirects_are_not_followed(kind: str) -> None:
    with pytest.raises(NoEvidenceError, match=r"does not answer: .* is this an instance of that cloud"):
        evidence.CLOUDS[kind]("http://127.0.0.1:1").make(NONCE, CSR)
    for status in (404, 302):
        with clouds.serving(Metadata(status=status)) as url, pytest.raises(NoEvidenceError, match=f"answered {status}"):
            evidence.CLOUDS[kind](url).make(NONCE, CSR)
    with pytest.raises(NoEvidenceError, match="is not the http"):
        evidence.CLOUDS[kind]("file:///etc/shadow").make(NONCE, CSR)


def test_what_a_metadata_service_sends_without_end_is_cut() -> None:
    with clouds.serving(Metadata(b"x" * 200_000)) as url, pytest.raises(NoEvidenceError, match="answered 200"):
        evidence.AwsInstance(url).make(NONCE, CSR)
