"""What the judges are given. Pure. None always means: not known, and nobody is judged by it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class IdentityFacts:
    """The host's own certificate and its files.

    Attributes:
        now: this host's clock.
        joined: host.json is there.
        problem: why the files cannot be used; "" if they can.
        not_before: of the certificate.
        not_after: of the certificate.
        chain_problem: why the chain does not lead to a trusted root; "" if it does.
        open_files: secret files with a mode or an owner that lets others in, with what it is.
        synchronised: the kernel says that something keeps its clock right.
    """

    now: datetime
    joined: bool
    problem: str = ""
    not_before: datetime | None = None
    not_after: datetime | None = None
    chain_problem: str = ""
    open_files: Mapping[str, str] = field(default_factory=dict)
    synchronised: bool | None = None


@dataclass(frozen=True, slots=True)
class ControllerFacts:
    """One controller's port. `tcp`, `tls`: what went wrong, "" if nothing; `tls` None: not tried."""

    endpoint: str
    tcp: str
    tls: str | None
    timed_out: bool = False
    not_valid_now: str = ""
    """What its certificate says of time, where this host's clock is outside of it."""


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """`status` is the document of the agent, or the one made without it.

    Attributes:
        answers: the agent answered.
        listens: somebody holds its socket.
        status: see `status.document` and `status.offline`.
        open_files: by program: how many, and how many it may have.
    """

    answers: bool
    listens: bool
    status: Mapping[str, Any]
    open_files: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class EnvoyFacts:
    """Envoy as it is found, whatever the agent says of it.

    Attributes:
        pid: of the recorded Envoy, if it runs.
        answers: its admin socket answers.
        binary_problem: in what the binary is not the pinned one; "" if it is, or there is none.
        last_words: of its log.
        held: the file `hold` is there.
    """

    pid: int | None
    answers: bool | None
    binary_problem: str
    last_words: str
    held: bool


@dataclass(frozen=True, slots=True)
class ForeignChain:
    """A chain of another table at a hook before ours, that changes destinations."""

    table: str
    chain: str
    hook: str
    priority: int


@dataclass(frozen=True, slots=True)
class RuleFacts:
    """What of capture is in the kernel.

    Attributes:
        state: "on", "off" or "error".
        error: why it is an error.
        foreign: chains of others that come first.
        taken: our ports that other programs have, with whose they are.
    """

    state: str
    error: str
    foreign: tuple[ForeignChain, ...]
    taken: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """What the kernel can do, and how full its table of connections is.

    Attributes:
        nf_tables: it answered.
        release: such as (6, 9).
        cgroup_v2: it is mounted.
        connections: how many are tracked; None where none are.
        connections_max: how many can be.
        dropped: how many found no room since the boot.
    """

    nf_tables: bool | None
    release: tuple[int, int]
    cgroup_v2: bool
    connections: int | None = None
    connections_max: int | None = None
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """The file system of the state directory; None where there is no such directory."""

    free_bytes: int
    total_bytes: int
    free_inodes: int
    total_inodes: int
    read_only: bool
    open_directories: tuple[str, ...] = ()
