"""controller.toml: what it may say, its defaults, and refusals that name the line and the nearest known name."""

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Literal, cast, get_args

from hostmesh_api.dialling import parse_blocks
from hostmesh_api.wire import ADMIN_PORT, AGENTS_PORT, JOIN_PORT
from hostmesh_controller.client_rules import ClientRule, parse_clients
from hostmesh_controller.config_attest import Attestation, attestation
from hostmesh_controller.limits import Limits, limit_ranges

DEFAULT_PATH: Final = Path("/etc/hostmesh/controller.toml")
DEFAULT_STATE_DIR: Final = Path("/var/lib/hostmesh-controller")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
CA_PROVIDERS: Final = ("self-signed", "files", "vault")
_CA_SETTINGS: Final = frozenset({"dir", "url", "mount", "token_file", "ca_file", "ttl_hours"})
_DNS_NAME: Final = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_UNIX_PATH_BYTES: Final = 107  # sun_path of Linux, less its terminating zero


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address to listen on."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


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
class Ca:
    """Whose root signs. `dir` is where the files of the provider "files" are, the rest is for "vault".

    `url` is the signer's, `ca_file` the roots by which its certificate is good ("": the system's), `mount` the path of
    its PKI engine, `token_file` holds what it lets us in with.
    """

    provider: str = "self-signed"
    dir: Path | None = None
    url: str = ""
    mount: str = "pki"
    token_file: Path | None = None
    ca_file: Path | None = None
    ttl_hours: int = 8760


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
class Config:
    """The controller's settings, complete: what the file leaves out has its default here."""

    state_dir: Path
    trust_domain: str
    domain: str
    addresses: tuple[str, ...]
    """IP addresses and DNS names under which agents reach this controller, best first."""
    listen: Listen
    certificates: Certificates = field(default_factory=Certificates)
    ca: Ca = field(default_factory=Ca)
    jwks: Jwks = field(default_factory=Jwks)
    log: Log = field(default_factory=Log)
    clones: Clones = field(default_factory=Clones)
    calls: Calls = field(default_factory=Calls)
    attest: Attestation = field(default_factory=Attestation)
    root_namespace: str = "istio-system"
    mesh_config: Path | None = None
    """Istio's mesh configuration as a plain YAML file, beneath the MeshConfig object; None: there is no such file."""
    admin: Admin = field(default_factory=Admin)
    audit: Audit = field(default_factory=Audit)
    limits: Limits = field(default_factory=Limits)


def called_at(listen: Endpoint, addresses: Sequence[str]) -> tuple[str, ...]:
    """Return where agents call a port: each address with its number, less those of a family that is not listened on."""
    family = ip_address(listen.host).version
    heard = [each for each in addresses if family == 6 or not _is_ip(each) or ip_address(each).version == 4]
    return tuple(str(Endpoint(each, listen.port)) for each in heard or addresses)


class ConfigError(Exception):
    """The file cannot be used; `problems` says where and why, one sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


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
    reader = _Reader(document, source, text.splitlines())
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


def _config(reader: "_Reader", own_addresses: Sequence[str]) -> Config:
    state_dir = reader.path("state_dir", DEFAULT_STATE_DIR)
    return Config(
        state_dir=state_dir,
        trust_domain=reader.dns_name("trust_domain", "cluster.local"),
        domain=reader.dns_name("domain", "cluster.local"),
        addresses=reader.addresses("addresses", own_addresses),
        listen=Listen(
            agents=reader.endpoint("listen.agents", Endpoint("0.0.0.0", AGENTS_PORT)),  # noqa: S104 - agents call from anywhere
            join=reader.endpoint("listen.join", Endpoint("0.0.0.0", JOIN_PORT)),  # noqa: S104 - hosts join from anywhere
            admin=reader.endpoint("listen.admin", Endpoint("127.0.0.1", ADMIN_PORT)),
            admin_socket=reader.socket_path("listen.admin_socket", state_dir / "admin.sock"),
        ),
        # A leaf shorter than an hour cannot be renewed at half-life by a host that sleeps; a longer one than 30 days
        # is a secret nobody rotates.
        certificates=Certificates(leaf_hours=reader.integer("certificates.leaf_hours", 72, 1, 720)),
        clones=Clones(cast("CloneAction", reader.choice("clones.action", "quarantine", CLONE_ACTIONS))),
        ca=_ca(reader),
        # A caller that calls once a month must not be forgotten in between.
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
        admin=reader.admin(),
        audit=Audit(
            keep_days=reader.integer("audit.keep_days", 365, 1, 36_500),
            keep_records=reader.integer("audit.keep_records", 1_000_000, 1_000, 1_000_000_000),
        ),
        limits=Limits(**{name: reader.integer(f"limits.{name}", *span) for name, span in limit_ranges().items()}),
    )


def _ca(reader: "_Reader") -> Ca:
    found = Ca(
        provider=reader.choice("ca.provider", "self-signed", CA_PROVIDERS),
        dir=reader.optional_path("ca.dir"),
        url=reader.text("ca.url", ""),
        mount=reader.text("ca.mount", "pki"),
        token_file=reader.optional_path("ca.token_file"),
        ca_file=reader.optional_path("ca.ca_file"),
        # Shorter than a day leaves no time to mend the signer; leaves are cut at its end.
        ttl_hours=reader.integer("ca.ttl_hours", 8760, 24, 87_600),
    )
    reader.check_ca(found)
    return found


class _Reader:
    """Takes typed values out of a TOML document and collects what is wrong with it."""

    def __init__(self, document: Mapping[str, object], source: str, lines: Sequence[str]) -> None:
        self._document = document
        self._source = source
        self._lines = lines
        self._known: dict[str, set[str]] = {"": set()}
        self.problems: list[str] = []

    def _problem(self, path: str, message: str) -> None:
        line = _line_of(self._lines, path)
        place = f"{self._source}:{line}" if line else self._source
        self.problems.append(f"{place}: {path}: {message}")

    def _get(self, path: str, kind: type, what: str) -> object | None:
        table, _, key = path.rpartition(".")
        self._known.setdefault(table, set()).add(key)
        holder: object = self._table(table)
        if not isinstance(holder, Mapping) or key not in holder:
            return None
        value = holder[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self._problem(path, f"must be {what}, not {value!r}")
            return None
        return value

    def _table(self, path: str) -> object:
        """Return the table at a dotted path, an empty one if it is not there, and what stands there if it is none."""
        holder: object = self._document
        above = ""
        for name in path.split(".") if path else ():
            self._known.setdefault(above, set()).add(name)
            holder = holder.get(name, {}) if isinstance(holder, Mapping) else {}
            above = f"{above}.{name}" if above else name
        return holder

    def has(self, table: str) -> bool:
        """Tell whether the file has the table, be it empty."""
        above, _, name = table.rpartition(".")
        self._table(table)
        holder = self._table(above)
        return isinstance(holder, Mapping) and name in holder

    def refuse(self, path: str, message: str) -> None:
        """Take note that a setting cannot be as it is."""
        self._problem(path, message)

    def duration(self, path: str, default: timedelta, most: timedelta) -> timedelta:
        """Return a time such as "30d", "12h", "90m" or "45s"; "0" is none."""
        value = self.text(path, "")
        if not value:
            return default
        match = re.fullmatch(r"(0|[1-9][0-9]{0,7})([smhd]?)", value)
        if match is None or (match[2] == "" and match[1] != "0"):
            self._problem(path, f"'{value}' is not a time such as '30d', '12h', '90m' or '45s'; '0' is none")
            return default
        found = int(match[1]) * timedelta(seconds={"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2]])
        if found > most:
            self._problem(path, f"must be at most {most.days} days, not '{value}'")
        return found

    def texts(self, path: str) -> tuple[str, ...]:
        """Return a list of strings; nothing if it is not there."""
        value = self._get(path, list, "a list of strings")
        if not isinstance(value, list):
            return ()
        for item in value:
            if not isinstance(item, str) or not item:
                self._problem(path, f"{item!r} is not a string")
        return tuple(str(item) for item in value)

    def paths(self, path: str) -> tuple[Path, ...]:
        """Return a list of absolute paths; nothing if it is not there."""
        found = tuple(map(Path, self.texts(path)))
        for each in found:
            if not each.is_absolute():
                self._problem(path, f"must be absolute paths, not '{each}'")
        return found

    def text(self, path: str, default: str) -> str:
        value = self._get(path, str, "a string")
        return default if value is None else str(value)

    def path(self, path: str, default: Path) -> Path:
        value = Path(self.text(path, str(default)))
        if not value.is_absolute():
            self._problem(path, f"must be an absolute path, not '{value}'")
        return value

    def optional_path(self, path: str) -> Path | None:
        return self.path(path, Path("/")) if self.text(path, "") else None

    def socket_path(self, path: str, default: Path) -> Path:
        value = self.path(path, default)
        if len(str(value).encode()) > _UNIX_PATH_BYTES:
            self._problem(path, f"'{value}' is longer than the kernel's {_UNIX_PATH_BYTES} bytes; use a shorter path")
        return value

    def dns_name(self, path: str, default: str) -> str:
        value = self.text(path, default)
        if not _DNS_NAME.fullmatch(value):
            self._problem(path, f"'{value}' is not a DNS name in lower case, such as 'mesh.example.org'")
        return value

    def choice(self, path: str, default: str, choices: Sequence[str]) -> str:
        value = self.text(path, default)
        if value not in choices:
            self._problem(path, f"'{value}' is not one of {', '.join(choices)}{_nearest(value, choices)}")
        return value

    def integer(self, path: str, default: int, least: int, most: int) -> int:
        value = self._get(path, int, f"a whole number from {least} to {most}")
        if value is None:
            return default
        number = int(str(value))
        if not least <= number <= most:
            self._problem(path, f"must be from {least} to {most}, not {number}")
        return number

    def addresses(self, path: str, default: Sequence[str]) -> tuple[str, ...]:
        value = self._get(path, list, "a list of IP addresses and DNS names")
        if not isinstance(value, list):
            return tuple(default)
        if not value:
            self._problem(path, "must name at least one address under which agents reach the controller")
        for item in value:
            if not isinstance(item, str) or not (_is_ip(item) or _DNS_NAME.fullmatch(item)):
                self._problem(path, f"{item!r} is neither an IP address nor a DNS name in lower case")
            elif _is_ip(item) and ip_address(item).is_unspecified:
                self._problem(path, f"{item!r} is not an address that agents can call; name the machine's own")
        return tuple(str(item) for item in value)

    def blocks(self, path: str) -> tuple[str, ...]:
        value = self._get(path, list, "a list of address blocks such as 10.0.0.0/8")
        for item in value if isinstance(value, list) else ():
            try:
                parse_blocks([str(item)])
            except ValueError as error:
                self._problem(path, f"{item!r} is not a block of addresses such as 10.0.0.0/8: {error}")
        return tuple(str(item) for item in value) if isinstance(value, list) else ()

    def endpoint(self, path: str, default: Endpoint) -> Endpoint:
        value = self.text(path, str(default))
        host, colon, port = value.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        if not colon or not _is_ip(bare) or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
            self._problem(path, f"'{value}' is not IP:PORT, such as '{default}'")
            return default
        return Endpoint(bare, int(port))

    def check_ca(self, ca: Ca) -> None:
        """Say what the provider lacks, and what is set that it does not look at."""
        wanted = {"files": {"dir"}, "vault": {"url", "token_file"}}.get(ca.provider, set())
        allowed = wanted | ({"mount", "ca_file", "ttl_hours"} if ca.provider == "vault" else set())
        table = self._document.get("ca", {})
        given = set(table) if isinstance(table, Mapping) else set()
        for name in sorted(wanted - given):
            self._problem("ca.provider", f"'{ca.provider}' needs the setting ca.{name}")
        for name in sorted((given & _CA_SETTINGS) - allowed):
            self._problem(f"ca.{name}", f"is not for the provider '{ca.provider}'")
        if ca.url and not re.fullmatch(r"https://[^/?#@\s]+(/[^?#\s]*)?", ca.url):
            self._problem("ca.url", f"'{ca.url}' is not https://HOST[:PORT][/PATH]")
        if not re.fullmatch(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*", ca.mount):
            self._problem("ca.mount", f"'{ca.mount}' is not the path of a mount, such as 'pki' or 'pki/mesh'")

    def admin(self) -> Admin:
        ca, path = self.optional_path("admin.client_ca"), "admin.client"
        value = self._get(path, list, "tables: write [[admin.client]]")
        clients, problems = parse_clients([] if value is None else value)
        for problem in problems:
            self._problem(path, problem)
        if (ca is None) != (not clients):
            missing = "client_ca, the CA that signs them" if ca is None else "[[admin.client]], whose they are"
            self._problem("admin", f"client certificates need {missing}")
        return Admin(ca, clients)

    def refuse_unknown(self) -> None:
        for table, known in list(self._known.items()):
            holder = self._table(table)
            if not isinstance(holder, Mapping):
                self._problem(table, f"must be a table: write [{table}]")
                continue
            for key in holder:
                if key not in known:
                    path = f"{table}.{key}" if table else str(key)
                    self._problem(path, f"unknown setting '{key}'{_nearest(key, sorted(known))}")


def _nearest(name: str, known: Sequence[str]) -> str:
    found = get_close_matches(name, known, n=1)
    return f"; did you mean '{found[0]}'?" if found else ""


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _line_of(lines: Sequence[str], path: str) -> int | None:
    """Find the line that sets `path`: tomllib keeps no places. Absent when it is written in an unusual way."""
    table, _, key = path.rpartition(".")
    current = ""
    for number, line in enumerate(lines, start=1):
        stripped = line.strip()
        if header := re.match(r"\[\s*([\w.-]+)\s*\]", stripped):
            current = header[1]
            if current == path:
                return number
        elif re.match(rf"[\"']?{re.escape(key)}[\"']?\s*[=.]", stripped) and current == table:
            return number
    return None
