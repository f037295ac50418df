"""Key work in another process: the same answers, whatever becomes of the process."""

import sys
from contextlib import closing
from datetime import UTC, datetime

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from hostmesh_agent import keyroom, keys
from hostmesh_agent.keyroom import Room
from hostmesh_agent.svid import SvidError
from hostmesh_api.identity import HostIdentity

IDENTITY = HostIdentity("cluster.local", "web-1")
ENDS_AT_ONCE = (sys.executable, "-P", "-c", "from hostmesh_agent import keyholder as k; k.LINGER_S = 0; k.serve()")


def test_a_key_made_elsewhere_is_one_that_can_be_asked_a_certificate_for() -> None:
    key, csr = keyroom.request()
    assert key.startswith(b"-----BEGIN PRIVATE KEY-----")
    public = x509.load_der_x509_csr(csr).public_key()
    assert load_pem_private_key(key, password=None).public_key() == public


def test_a_refusal_is_the_same_error_with_the_same_words() -> None:
    arguments = (b"no key", b"no chain", b"", IDENTITY, datetime.now(UTC))
    with pytest.raises(SvidError) as there:
        keyroom.checked(*arguments)
    with pytest.raises(SvidError) as here:
        keys.checked(*arguments)
    assert str(there.value) == str(here.value)


def test_a_process_that_has_ended_meanwhile_is_followed_by_another() -> None:
    with closing(Room(ENDS_AT_ONCE)) as room, structlog.testing.capture_logs() as logs:
        made = {room.work("request") for _ in range(3)}
    assert len(made) == 3
    assert not logs


@pytest.mark.parametrize("command", [("/does/not/exist",), ("true",), (sys.executable, "-c", "print('what?')")])
def test_where_no_process_can_be_had_the_work_is_done_all_the_same(command: tuple[str, ...]) -> None:
    with closing(Room(command)) as room, structlog.testing.capture_logs() as logs:
        key, _ = room.work("request")
    assert key.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert [each["log_level"] for each in logs] == ["warning"]
