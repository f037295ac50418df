"""A host that was away until its certificate ended comes back by itself, without a visit."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from e2e.driver import Lab, eventually
from hostmesh_agent.keys import key_pem, new_key, proof
from hostmesh_api.identity import HostIdentity
from hostmesh_controller.authority import Authority
from hostmesh_controller.store import CertificateRecord
from hostmesh_controller.store.sqlite import open_store

IDENTITY = "/var/lib/hostmesh/identity"
LIFE = timedelta(hours=72)


def let_it_end(state_dir: Path, host: str) -> tuple[bytes, bytes]:
    """Make the host's last certificate one that ended three days ago; return it with its key, PEM."""
    issued_at = datetime.now(UTC) - 2 * LIFE
    authority = Authority.load_or_create(state_dir, "cluster.local", issued_at)
    identity, key = HostIdentity("cluster.local", host), new_key()
    issued = authority.issue(key.public_key(), identity, issued_at, LIFE)
    _, public, _ = proof(key_pem(key), issued.chain_pem, b"")
    store = open_store(state_dir / "store.sqlite")
    try:
        store.forget_host(host)
        digest = hashlib.sha256(public).hexdigest()
        store.add_certificate(CertificateRecord(issued.serial, identity.uri, host, issued.not_after, issued_at, digest))
    finally:
        store.close()
    return key_pem(key), issued.chain_pem


def test_a_host_whose_certificate_ended_while_it_was_away_comes_back_by_itself(empty_lab: Lab) -> None:
    lab = empty_lab
    lab.verb("up", "away")
    lab.verb("stop", "agent/away")
    lab.verb("stop", "controller")
    key, chain = let_it_end(lab.root / "controller" / "state", "away")
    for name, pem in (("key", key), ("chain", chain)):
        lab.exec("away", "sh", "-c", f"umask 077 && cat > {IDENTITY}/{name}.pem", text_in=pem.decode())
    lab.verb("start", "agent/away", check=False)
    said = eventually(lambda: "; ".join(lab.agent("away")["problems"]), "the agent says what is wrong", timeout_s=30)
    assert "ended at" in said or "not connected" in said
    lab.verb("start", "controller")
    eventually(lambda: lab.agent("away")["controller"]["connected"], "the host is back", timeout_s=60)
    status = lab.agent("away")
    ends = {each["name"]: datetime.fromisoformat(each["not_after"]) for each in status["certificates"]}
    assert ends["agent"] > datetime.now(UTC)
    events = json.loads(lab.hostmesh("audit", "-o", "json").stdout)
    assert [each["actor"] for each in events if each["action"] == "host.reattest"] == ["host:away"]
    eventually(lambda: lab.agent("away")["healthy"], "all is well", timeout_s=30)
