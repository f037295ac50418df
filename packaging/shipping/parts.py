"""What each of the four packages is: name, texts, what it needs, which files of the project go where. Pure."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

ARCHITECTURES: Final = ("amd64", "x86_64")
"""As Debian and as rpm call the one machine that is built for."""
UNITS: Final = "usr/lib/systemd/system"
SYSUSERS: Final = "usr/lib/sysusers.d"
_LIBC: Final = "libc6 (>= 2.30)"
_USERS: Final = "systemd | systemd-standalone-sysusers"


@dataclass(frozen=True, slots=True)
class Part:
    """One package.

    Attributes:
        name: of the package, and of its files' names.
        summary, description: for both kinds of package.
        section: Debian's.
        depends: Debian's relations; `{version}` is this release's.
        requires: rpm's.
        recommends: Debian's, and rpm's by the same names.
        extra: the part of the project that its tree has; "": it has no tree of its own.
        home: where that tree is.
        code: our own packages in it.
        programs: of /usr/bin, each with the module and function that it calls, and the tree whose Python runs it.
        scripts: what units run: its name in `home`, and the file of `code` that its Python runs alone, or the module.
        files: of the project's packaging/, with where they go.
        links: of systemd's units, with where they lead.
        configuration: among those, what belongs to the owner of the host from then on.
        manuals: pages by name and section.
    """

    name: str
    summary: str
    description: tuple[str, ...]
    depends: tuple[str, ...]
    requires: tuple[str, ...]
    section: str = "net"
    recommends: tuple[str, ...] = ()
    extra: str = ""
    home: str = ""
    code: tuple[str, ...] = ()
    programs: tuple[tuple[str, str, str], ...] = ()
    scripts: tuple[tuple[str, str], ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    configuration: tuple[str, ...] = ()
    manuals: tuple[str, ...] = ()


RECOVERS: Final = "hostmesh-upgrade-recover.service"
_AGENT_UNITS: Final = (
    "hostmesh-agent.service",
    "hostmesh-drain.service",
    "hostmesh-envoy@.service",
    "hostmesh-guard.service",
    "hostmesh-privileged.socket",
    "hostmesh-privileged@.service",
    "hostmesh-ready.service",
    "hostmesh-ready.target",
    RECOVERS,
    "hostmesh-upgrade@.service",
)

AGENT: Final = Part(
    name="hostmesh-agent",
    summary="service mesh for virtual machines and bare metal: the part of a host",
    description=(
        "The agent makes a host a part of a hostmesh: it keeps an Envoy with the",
        "mesh's configuration, certificates for the host's programs, and the kernel's",
        "rules that lead their calls through it. A host that has not joined runs",
        "nothing.",
        "",
        "This package brings its own Python and what it needs, so that it depends on",
        "nothing of the distribution's but its C library and systemd.",
    ),
    depends=(_LIBC, "hostmesh-envoy", _USERS, "init-system-helpers (>= 1.54~)"),
    requires=("hostmesh-envoy", "systemd", "shadow-utils", "/bin/sh"),
    recommends=("nftables",),
    extra="agent",
    home="usr/lib/hostmesh-agent",
    code=("hostmesh_agent", "hostmesh_api"),
    programs=(("hostmesh-agent", "hostmesh_agent.cli", "usr/lib/hostmesh-agent"),),
    scripts=(
        ("envoy-exec", "hostmesh_agent/launch.py"),
        ("own", "hostmesh_agent/ownership.py"),
        ("privileged", "hostmesh_agent.privileged"),
        ("hostmesh-upgrade", "hostmesh_agent.upgrader.program"),
    ),
    files=(
        *((f"systemd/{each}", f"{UNITS}/{each}") for each in _AGENT_UNITS),
        ("sysusers.d/hostmesh.conf", f"{SYSUSERS}/hostmesh.conf"),
        ("etc/agent.toml", "etc/hostmesh/agent.toml"),
        *(
            (f"systemd/as-root/{each}.service.conf", f"usr/lib/hostmesh-agent/as-root/{each}.service.conf")
            for each in ("hostmesh-agent", "hostmesh-drain", "hostmesh-ready")
        ),
        ("etc/needrestart.conf", "etc/needrestart/conf.d/hostmesh.conf"),
    ),
    links=((f"{UNITS}/multi-user.target.wants/{RECOVERS}", f"../{RECOVERS}"),),
    configuration=("etc/hostmesh/agent.toml", "etc/needrestart/conf.d/hostmesh.conf"),
    manuals=("hostmesh-agent.8", "agent.toml.5"),
)

ENVOY: Final = Part(
    name="hostmesh-envoy",
    summary="Envoy proxy for hostmesh-agent",
    description=(
        "The Envoy that hostmesh-agent starts, with the digest by which it is known.",
        "Installing another version touches no process: the agent exchanges the Envoy",
        "that runs, without a failed request, when it is told to.",
    ),
    depends=(_LIBC,),
    requires=("/bin/sh",),
    extra="envoy",
    home="usr/lib/hostmesh-envoy",
)

CLI: Final = Part(
    name="hostmesh",
    summary="service mesh for virtual machines and bare metal: the command line",
    description=(
        "The hostmesh command tells the controller of a mesh what to do and shows",
        "what it does. The package brings its own Python and what it needs.",
    ),
    depends=(_LIBC, "ca-certificates"),
    requires=("ca-certificates", "/bin/sh"),
    extra="controller",
    home="usr/lib/hostmesh",
    code=("hostmesh_controller", "hostmesh_api"),
    programs=(("hostmesh", "hostmesh_controller.cli", "usr/lib/hostmesh"),),
    manuals=("hostmesh.1",),
)

CONTROLLER: Final = Part(
    name="hostmesh-controller",
    summary="service mesh for virtual machines and bare metal: the controller",
    description=(
        "The controller of a hostmesh: it takes Istio's configuration API, issues the",
        "hosts' certificates and tells each Envoy what it needs. It keeps all it knows",
        "in one directory and needs no other service.",
    ),
    depends=("hostmesh (= {version})", _USERS, "init-system-helpers (>= 1.54~)"),
    requires=("hostmesh = {version}", "systemd", "shadow-utils", "/bin/sh"),
    programs=(("hostmesh-controller", "hostmesh_controller.serve", "usr/lib/hostmesh"),),
    files=(
        ("systemd/hostmesh-controller.service", f"{UNITS}/hostmesh-controller.service"),
        ("sysusers.d/hostmesh-controller.conf", f"{SYSUSERS}/hostmesh-controller.conf"),
        ("etc/controller.toml", "etc/hostmesh/controller.toml"),
    ),
    configuration=("etc/hostmesh/controller.toml",),
    manuals=("hostmesh-controller.8", "controller.toml.5"),
)

PARTS: Final = (AGENT, ENVOY, CLI, CONTROLLER)


def deb_name(part: Part, version: str) -> str:
    return f"{part.name}_{version}_{ARCHITECTURES[0]}.deb"


def rpm_name(part: Part, version: str) -> str:
    return f"{part.name}-{version}-1.{ARCHITECTURES[1]}.rpm"


def launcher(program: str, module: str, home: str, python: str) -> str:
    """Return a program of /usr/bin: a script, so that the process is called as it is and no shell is in between."""
    return (
        f'#!/{Path(home)}/bin/{python} -I\nimport sys\nsys.argv[0] = "{program}"\n'
        f"from {module} import main\nsys.exit(main())\n"
    )


def script(python: str, site: str, what: str) -> str:
    """Return what runs one file with nothing but Python's own library, or a module. Its process becomes that Python."""
    run = f"-S {site}/{what}" if what.endswith(".py") else f"-m {what}"
    return f'#!/bin/sh\nexec {python} -I {run} "$@"\n'
