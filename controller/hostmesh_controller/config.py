"""controller.toml: what it may say, its defaults, and refusals that name the line and the nearest known name."""

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Literal, cast, get_args

from hostmesh_api.wire import ADMIN_PORT, AGENTS_PORT, JOIN_PORT
from hostmesh_controller.client_rules import ClientRule, parse_clients
from hostmesh_controller.config_attest import Attestation, attestation
from hostmesh_controller.config_ca import Ca, certificate_authority
from hostmesh_controller.config_reader import ConfigError, Endpoint, Reader, is_ip
from hostmesh_controller.leases import PanicLimits
from hostmesh_controller.limits import Limits, limit_ranges

DEFAULT_PATH: Final = Path("/etc/hostmesh/controller.toml")
DEFAULT_STATE_DIR: Final = Path("/var/lib/hostmesh-controller")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Listen:
    agents: Endpoint
    join: Endpoint
    admin: Endpoint
    admin_socket: Path


@dataclass(frozen=True, slots=True)
class Certificates:
    leaf_hours: int = 72


CloneAction = Literal["quarantine", "warn"]
CLONE_ACTIONS: Final[tuple[CloneAction, ...]] = get_args(CloneAction)


@dataclass(frozen=True, slots=True)
class Clones:
    """What is done where one host's identity is used by two machines."""

    action: CloneAction = "quarantine"


@dataclass(frozen=True, slots=True)
class Calls:
    """`keep_days`: how long an observed caller is remembered after its last call."""

    keep_days: int = 30


@dataclass(frozen=True, slots=True)
class Jwks:
    """How the keys of RequestAuthentications are fetched.

    `allow_cidrs`: blocks that may be asked though they are loopback, link-local or a cloud's metadata service.
    `ca_file`: certificates (PEM) that are trusted beside the system's.
    """

    refresh_s: int = 1200
    allow_cidrs: tuple[str, ...] = ()
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Log:
    level: str = "info"


@dataclass(frozen=True, slots=True)
class Admin:
    """Whose certificates let callers in at the admin port: of those that `client_ca` (PEM) signed, `clients` says."""

    client_ca: Path | None = None
    clients: tuple[ClientRule, ...] = ()


@dataclass(frozen=True, slots=True)
class Audit:
    """How long the audit log is kept; the oldest records go first."""

    keep_days: int = 365
    keep_records: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Artifacts:
    """The mirror from which hosts fetch what rollouts bring."""

    dir: Path


@dataclass(frozen=True, slots=True)
class Config:
    """The controller's settings, complete: what the file leaves out has its default here."""

    state_dir: Path
    trust_domain: str
    domain: str
    addresses: tuple[str, ...]
    """IP addresses and DNS names under which agents reach this controller, best first."""
    listen: Listen
    artifacts: Artifacts
    certificates: Certificates = field(default_factory=Certificates)
    ca: Ca = field(default_factory=Ca)
    jwks: Jwks = field(default_factory=Jwks)
    log: Log = field(default_factory=Log)
    clones: Clones = field(default_factory=Clones)
    calls: Calls = field(default_factory=Calls)
    locality: str = "reported"
    """Where a host is whose Host and workloads declare nothing: where its agent reports it to be, or nowhere."""
    attest: Attestation = field(default_factory=Attestation)
    root_namespace: str = "istio-system"
    mesh_config: Path | None = None
    """Istio's mesh configuration as a plain YAML file, beneath the MeshConfig object; None: there is no such file."""
    admin: Admin = field(default_factory=Admin)
    audit: Audit = field(default_factory=Audit)
    limits: Limits = field(default_factory=Limits)
    leases: PanicLimits = field(default_factory=PanicLimits)

    @property
    def agents_endpoints(self) -> tuple[str, ...]:
        """Where agents call, `host:port`, best first."""
        return called_at(self.listen.agents, self.addresses)

    @property
    def join_endpoints(self) -> tuple[str, ...]:
        """Where hosts join, and come back after a long absence: `host:port`, best first."""
        return called_at(self.listen.join, self.addresses)


def called_at(listen: Endpoint, addresses: Sequence[str]) -> tuple[str, ...]:
    """Return where agents call a port: each address with its number, less those of a family that is not listened on.

    At "::" both are, and at "0.0.0.0" the operator has said IPv4.
    """
    family = ip_address(listen.host).version
    heard = [each for each in addresses if family == 6 or not is_ip(each) or ip_address(each).version == 4]
    return tuple(str(Endpoint(each, listen.port)) for each in heard or addresses)


def parse_config(text: str, source: str, own_addresses: Sequence[str]) -> Config:
    """Read controller.toml.

    Args:
        text: the file's content; empty means all defaults.
        source: the file's name, for messages.
        own_addresses: names and addresses of this machine, used where the file sets no `addresses`.

    Raises:
        ConfigError: with every problem of the file, not just the first.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{source}: not valid TOML: {error}"]) from error
    reader = Reader(document, source, text.splitlines())
    config = _config(reader, own_addresses)
    reader.refuse_unknown()
    if reader.problems:
        raise ConfigError(reader.problems)
    return config


def load_config(path: Path, own_addresses: Callable[[], Sequence[str]]) -> Config:
    """Read the file at `path`; see `parse_config`."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            [f"{path}: no such file; create it (an empty one takes all defaults) or give --config"]
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from error
    return parse_config(text, str(path), own_addresses())


def _config(reader: Reader, own_addresses: Sequence[str]) -> Config:
    state_dir = reader.path("state_dir", DEFAULT_STATE_DIR)
    return Config(
        state_dir=state_dir,
        trust_domain=reader.dns_name("trust_domain", "cluster.local"),
        domain=reader.dns_name("domain", "cluster.local"),
        addresses=reader.addresses("addresses", own_addresses),
        listen=Listen(
            agents=reader.endpoint("listen.agents", Endpoint("::", AGENTS_PORT)),  # agents call from anywhere
            join=reader.endpoint("listen.join", Endpoint("::", JOIN_PORT)),  # hosts join from anywhere
            admin=reader.endpoint("listen.admin", Endpoint("127.0.0.1", ADMIN_PORT)),
            admin_socket=reader.socket_path("listen.admin_socket", state_dir / "admin.sock"),
        ),
        artifacts=Artifacts(reader.path("artifacts.dir", state_dir / "artifacts")),
        # A leaf shorter than an hour cannot be renewed at half-life by a host that sleeps; a longer one than 30 days
        # is a secret nobody rotates.
        certificates=Certificates(leaf_hours=reader.integer("certificates.leaf_hours", 72, 1, 720)),
        clones=Clones(cast("CloneAction", reader.choice("clones.action", "quarantine", CLONE_ACTIONS))),
        ca=certificate_authority(reader),
        # A caller that calls once a month must not be forgotten in between.
        locality=reader.choice("locality", "reported", ("reported", "declared")),
        calls=Calls(keep_days=reader.integer("calls.keep_days", 30, 1, 400)),
        jwks=Jwks(
            refresh_s=reader.integer("jwks.refresh_s", 1200, 1, 86400),
            allow_cidrs=reader.blocks("jwks.allow_cidrs"),
            ca_file=reader.optional_path("jwks.ca_file"),
        ),
        attest=attestation(reader),
        log=Log(level=reader.choice("log.level", "info", LOG_LEVELS)),
        root_namespace=reader.dns_name("root_namespace", "istio-system"),
        mesh_config=reader.optional_path("mesh_config"),
        admin=_admin(reader),
        audit=Audit(
            keep_days=reader.integer("audit.keep_days", 365, 1, 36_500),
            keep_records=reader.integer("audit.keep_records", 1_000_000, 1_000, 1_000_000_000),
        ),
        # 100 percent is never exceeded: then nobody is held.
        leases=PanicLimits(
            percent=reader.integer("leases.panic_percent", 30, 1, 100),
            hosts=reader.integer("leases.panic_hosts", 3, 1, 1_000_000),
        ),
        limits=Limits(**{name: reader.integer(f"limits.{name}", *span) for name, span in limit_ranges().items()}),
    )


def _admin(reader: Reader) -> Admin:
    ca, path = reader.optional_path("admin.client_ca"), "admin.client"
    clients, problems = parse_clients(reader.tables(path))
    for problem in problems:
        reader.refuse(path, problem)
    if (ca is None) != (not clients):
        missing = "client_ca, the CA that signs them" if ca is None else "[[admin.client]], whose they are"
        reader.refuse("admin", f"client certificates need {missing}")
    return Admin(ca, clients)
