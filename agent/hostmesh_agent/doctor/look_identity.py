"""Looks at the host's certificate, at the files that hold secrets, and at the clock."""

import ctypes
import os
import pwd
import stat
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

from hostmesh_agent.certs import CERTS
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.doctor.facts import IdentityFacts
from hostmesh_agent.keyroom import standing
from hostmesh_agent.places import Instance
from hostmesh_agent.state import State, StateError
from hostmesh_agent.svid import SvidError

_TIMEX_BYTES: Final = 512
"""struct timex is smaller on every machine; its first field, `modes`, is 0: nothing is changed."""
_NOT_SYNCHRONISED: Final = 5  # TIME_ERROR, adjtimex(2)
_ENVOYS: Final = "svid.pem"
_TIMESYNC: Final = Path("/run/systemd/timesync/synchronized")


def look(config: AgentConfig, now: datetime) -> IdentityFacts:
    """Return what is on the disk and what the kernel says of its clock."""
    state = State(config.state_dir)
    problem = chain_problem = ""
    begins = ends = None
    try:
        state.host()
        files = state.files()
        found = standing(files.chain_pem, files.bundle_pem)
        begins, ends = found.not_before, found.not_after
        if not found.root:
            chain_problem = "none of the roots in bundle.pem leads to chain.pem"
    except (StateError, SvidError) as error:
        problem = str(error)
    return IdentityFacts(
        now=now,
        joined=state.joined,
        problem=problem if state.joined else "",
        not_before=begins,
        not_after=ends,
        chain_problem=chain_problem,
        open_files=dict(_open_files(config)),
        synchronised=_synchronised(),
    )


def _open_files(config: AgentConfig) -> Iterator[tuple[str, str]]:
    """Yield secret files that are not their owner's alone. Envoy's are Envoy's, the others the agent's."""
    secrets = [*(config.state_dir / "identity").glob("*.pem"), config.state_dir / "host.json"]
    secrets += [path for each in Instance for path in config.directory_of(each).glob(f"{CERTS}/*/{_ENVOYS}")]
    envoys = _envoys_group(config)
    for path in secrets:
        try:
            info = path.lstat()
        except OSError:
            continue
        if not stat.S_ISREG(info.st_mode):
            yield str(path), "it is no plain file"
        elif info.st_mode & (0o037 if path.name == _ENVOYS and info.st_gid == envoys else 0o077):
            yield str(path), f"its mode is {stat.S_IMODE(info.st_mode):04o}"
        elif path.name != _ENVOYS and info.st_uid != os.geteuid() == 0:
            yield str(path), f"it is uid {info.st_uid}'s"


def _envoys_group(config: AgentConfig) -> int | None:
    """Return the group for which an agent that is not root keeps Envoy's certificates; None where it is root."""
    if os.geteuid() == 0:
        return None
    try:
        return pwd.getpwnam(config.envoy.user).pw_gid
    except KeyError:
        return None


def _synchronised() -> bool | None:
    """Return what the kernel says of its clock; None where it does not say."""
    if _TIMESYNC.exists():
        return True
    found = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return None if found < 0 else found != _NOT_SYNCHRONISED
