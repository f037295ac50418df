"""Looks at Envoy, at the rules, at who has our ports, and at the way to the controllers."""

import asyncio
import hashlib
import json
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from hostmesh_agent import life_file, process, workdir
from hostmesh_agent.admin import Admin, AdminError
from hostmesh_agent.bootstrap import ADMIN_SOCKET
from hostmesh_agent.capture import Capture
from hostmesh_agent.capture.rules import TABLE_NAME
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.doctor.facts import ControllerFacts, EnvoyFacts, ForeignChain, RuleFacts
from hostmesh_agent.services import holders
from hostmesh_agent.sock_diag import listeners
from hostmesh_api import wire

ANSWERS_WITHIN_S: Final = 5.0
MAX_CONTROLLERS: Final = 8
_OUR_PORTS: Final = (wire.OUTBOUND_PORT, wire.INBOUND_PORT, wire.DNS_TCP_PORT)
_OUR_PROGRAMS: Final = ("envoy", "hostmesh", "python")
"""Beginnings of names: Envoy names its threads otherwise (`wrk:worker_0`), its first one keeps its own."""
_NOT_IN_TIME: Final = {9, 10}  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED


def look_envoy(config: AgentConfig) -> EnvoyFacts:
    directory = life_file.active_directory(config)
    record = process.read_record(directory)
    runs = record is not None and record.runs()
    return EnvoyFacts(
        pid=record.pid if record is not None and runs else None,
        answers=_answers(directory / ADMIN_SOCKET) if runs else None,
        binary_problem="" if record is None else _binary_problem(record, runs=runs),
        last_words="" if runs else workdir.last_words(directory),
        held=(config.envoy_dir / workdir.HOLD).exists(),
    )


def _answers(admin_socket: Path) -> bool:
    try:
        asyncio.run(Admin(admin_socket, ANSWERS_WITHIN_S).server_info())
    except AdminError:
        return False
    return True


def _binary_problem(record: process.Record, *, runs: bool) -> str:
    path = Path(f"/proc/{record.pid}/exe") if runs else Path(record.binary)
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"{record.binary} cannot be read: {error.strerror}"
    return "" if found == record.sha256 else f"sha256 of {record.binary} is {found}, wanted {record.sha256}"


def look_rules() -> RuleFacts:
    """Return what of capture is in the kernel. What is not permitted is told as an error."""
    found = Capture().state()
    return RuleFacts(found.state, found.error, tuple(_foreign()), dict(_taken()))


def _foreign() -> Iterator[ForeignChain]:
    """Yield chains of others that may redirect connections before ours; nothing where there is no `nft` to ask."""
    program = shutil.which("nft")
    if program is None or os.geteuid() != 0:
        return
    done = subprocess.run(
        [program, "-j", "list", "ruleset"], capture_output=True, text=True, timeout=ANSWERS_WITHIN_S, check=False
    )
    with suppress(ValueError):
        yield from foreign_chains(json.loads(done.stdout or "{}").get("nftables", []))


def foreign_chains(ruleset: Iterable[Mapping[str, Any]]) -> Iterator[ForeignChain]:
    """Yield chains of others with rules that redirect, at a hook that ours is at, too, and before it. Pure."""
    ruleset = list(ruleset)
    chains = [each["chain"] for each in ruleset if "chain" in each and each["chain"].get("type") == "nat"]
    ours = {each["hook"]: each["prio"] for each in chains if each["table"] == TABLE_NAME}
    redirecting = {
        (each["rule"]["family"], each["rule"]["table"], each["rule"]["chain"])
        for each in ruleset
        if "rule" in each and any({"dnat", "redirect", "xt"} & word.keys() for word in each["rule"].get("expr", ()))
    }
    for each in chains:
        before = each["table"] != TABLE_NAME and each["hook"] in ours and each["prio"] < ours[each["hook"]]
        if before and (each["family"], each["table"], each["name"]) in redirecting:
            yield ForeignChain(f"{each['family']} {each['table']}", each["name"], each["hook"], each["prio"])


def _taken() -> Iterator[tuple[int, str]]:
    """Yield our TCP ports on which programs of others listen. Whose are not known are not told."""
    found = {each.inode: each.port for each in listeners() if each.port in _OUR_PORTS}
    for inode, holder in holders(found.keys()).items():
        if holder.program and not holder.program.startswith(_OUR_PROGRAMS):
            yield found[inode], f"{holder.program} (pid {holder.pid})"


def look_controllers(config: AgentConfig, endpoints: Iterable[str]) -> list[ControllerFacts]:
    """Connect to each, all at once: by TCP and then by TLS, with the host's own certificate."""
    wanted = list(endpoints)[:MAX_CONTROLLERS]
    if not wanted:
        return []
    with ThreadPoolExecutor(len(wanted)) as pool:
        return list(pool.map(lambda each: _controller(config.state_dir / "identity", each), wanted))


def _controller(identity: Path, endpoint: str) -> ControllerFacts:
    host, _, port = endpoint.rpartition(":")
    host = host.strip("[]")
    try:
        connection = socket.create_connection((host, int(port)), ANSWERS_WITHIN_S)
    except (OSError, ValueError) as error:
        return ControllerFacts(endpoint, _said(error), None)
    with connection:
        try:
            context = ssl.create_default_context(cafile=str(identity / "bundle.pem"))
            context.load_cert_chain(identity / "chain.pem", identity / "key.pem")
            context.set_alpn_protocols(["h2"])
            with context.wrap_socket(connection, server_hostname=host) as speaking:
                # It speaks first, once it has taken our certificate; else it says why not.
                speaking.recv(1)
        except TimeoutError:
            return ControllerFacts(endpoint, "", f"no answer within {ANSWERS_WITHIN_S:g} s", timed_out=True)
        except ssl.SSLCertVerificationError as error:
            late = error.verify_message if error.verify_code in _NOT_IN_TIME else ""
            return ControllerFacts(endpoint, "", _said(error), not_valid_now=late)
        except (OSError, ValueError) as error:
            return ControllerFacts(endpoint, "", _said(error))
    return ControllerFacts(endpoint, "", "")


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
