"""Where the agent's keys are made and its certificates checked: a process that ends when there is nothing to do.

The agent needs `cryptography` for a moment when it starts and when a certificate is half-way through its life. Kept
loaded it would be a fifth of the agent's memory. The functions are those of `keys`, where they are explained. All may
block for as long as Python takes to start: call them from a thread.
"""

import atexit
import importlib
import pickle
import select
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import IO, Any, Final

import structlog

from hostmesh_agent.svid import Standing, Svid
from hostmesh_api.identity import HostIdentity, WorkloadIdentity

ANSWER_WITHIN_S: Final = 30.0
"""The work takes milliseconds; the start of Python on a host that swaps may take seconds."""

# -P: not what lies in the working directory.
COMMAND: Final = (sys.executable, "-P", "-m", "hostmesh_agent.keyholder")
_KEYS: Final = "hostmesh_agent.keys"

_log: Final = structlog.get_logger(__name__)


class KeyroomError(Exception):
    """The process did not answer."""


def request() -> tuple[bytes, bytes]:
    """Make a key; see `keys.request`."""
    key_pem, csr_der = _room.work("request")
    return key_pem, csr_der


def root_pem(root_der: bytes) -> bytes:
    """See `keys.root_pem`."""
    pem: bytes = _room.work("root_pem", root_der)
    return pem


def request_for(key: bytes) -> bytes:
    """See `keys.request_for`."""
    csr_der: bytes = _room.work("request_for", key)
    return csr_der


def fingerprint(key: bytes) -> str:
    """See `keys.fingerprint`."""
    return str(_room.work("fingerprint", key))


def machine_proof(key: bytes, chain: bytes, statement: bytes) -> tuple[list[bytes], bytes]:
    """See `keys.machine_proof`."""
    chain_der, signature = _room.work("machine_proof", key, chain, statement)
    return chain_der, signature


def proof(key: bytes, chain: bytes, statement: bytes) -> tuple[str, bytes, bytes]:
    """See `keys.proof`."""
    serial, public_key_der, signature = _room.work("proof", key, chain, statement)
    return serial, public_key_der, signature


def checked(key: bytes, chain: bytes, bundle: bytes, identity: WorkloadIdentity | HostIdentity, now: datetime) -> Svid:
    """See `keys.checked`."""
    svid: Svid = _room.work("checked", key, chain, bundle, identity, now)
    return svid


def read_one_file(data: bytes, bundle: bytes, identity: WorkloadIdentity | HostIdentity, now: datetime) -> Svid:
    """See `keys.read_one_file`."""
    svid: Svid = _room.work("read_one_file", data, bundle, identity, now)
    return svid


def signed_by(key: bytes, data: bytes, signature: bytes) -> bool:
    """See `keys.signed_by`."""
    return bool(_room.work("signed_by", key, data, signature))


# These depend on nothing but their arguments, and are asked about the same files at each connection.


@lru_cache(maxsize=4)
def belongs_together(key: bytes, chain: bytes) -> bool:
    """See `keys.belongs_together`."""
    return bool(_room.work("belongs_together", key, chain))


@lru_cache(maxsize=4)
def validity(chain: bytes) -> tuple[str, datetime, datetime]:
    """See `keys.validity`."""
    serial, not_before, not_after = _room.work("validity", chain)
    return serial, not_before, not_after


@lru_cache(maxsize=4)
def standing(chain: bytes, bundle: bytes) -> Standing:
    """See `keys.standing`."""
    found: Standing = _room.work("standing", chain, bundle)
    return found


@lru_cache(maxsize=4)
def roots(bundle: bytes) -> tuple[str, ...]:
    """See `keys.roots`."""
    return tuple(_room.work("roots", bundle))


class Room:
    """Starts the process when there is work; it ends itself. For any thread; one piece of work at a time."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = command
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def work(self, function: str, *arguments: object) -> Any:
        """Return what the function of `keys` returns, or raise what it raises."""
        with self._lock:
            try:
                done, answer = self._ask(function, arguments)
            except (KeyroomError, OSError) as error:
                # Better a large agent than a host without certificates.
                _log.warning("key work is done by the agent itself", reason=str(error))
                return getattr(importlib.import_module(_KEYS), function)(*arguments)
        if done:
            return answer
        raise answer

    def close(self) -> None:
        """End the process, if there is one; the next work starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for stream in (process.stdin, process.stdout):
                # What it was not told any more is still to be written.
                with suppress(OSError):
                    if stream is not None:
                        stream.close()

    def _ask(self, function: str, arguments: tuple[object, ...]) -> tuple[bool, Any]:
        if self._process is not None:
            try:
                return _exchange(self._process, function, arguments)
            except KeyroomError:
                self.close()  # it has ended meanwhile, as it should
        self._process = _start(self._command)
        try:
            return _exchange(self._process, function, arguments)
        except KeyroomError:
            self.close()
            raise


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
    # It ends when it likes: somebody has to take notice.
    threading.Thread(target=process.wait, name="keyroom", daemon=True).start()
    return process


def _exchange(process: subprocess.Popen[bytes], function: str, arguments: tuple[object, ...]) -> tuple[bool, Any]:
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None:
        raise KeyroomError("it was started without pipes")
    try:
        pickle.dump((function, arguments), stdin)
        stdin.flush()
        if not _readable(stdout, ANSWER_WITHIN_S):
            raise KeyroomError(f"no answer within {ANSWER_WITHIN_S:g} s")
        done, answer = pickle.load(stdout)  # noqa: S301 - from our own child
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise KeyroomError(f"it ended without an answer: {error}") from error
    return done, answer


def _readable(stream: IO[bytes], within_s: float) -> bool:
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(within_s * 1000))


_room: Final = Room()
atexit.register(_room.close)
