"""The Envoy of the package hostmesh-envoy: the binary, and the manifest that pins it.

The package's files are root's, so what the manifest says is as good as what the agent itself was installed with. Where
somebody else may write into them they prove nothing and are refused, not passed over: another binary would run instead.
"""

import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HOME: Final = Path("/usr/lib/hostmesh-envoy")
_CURE: Final = "reinstall the package hostmesh-envoy, or set envoy.binary and envoy.sha256 in agent.toml"
_VERSION: Final = re.compile(r"[0-9][0-9A-Za-z.+~-]{0,63}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class PackageDamagedError(Exception):
    """The owner of the host must mend the package; the message names the file."""


@dataclass(frozen=True, slots=True)
class Packaged:
    """What the package brings. `version` names a directory, and can be nothing else."""

    binary: Path
    version: str
    sha256: str


def read(home: Path = HOME) -> Packaged | None:
    """Return what the package brings; None where it is not installed.

    Raises:
        PackageDamagedError: others than root may write into it, or it is not whole.
    """
    manifest, binary = home / "manifest.json", home / "envoy"
    try:
        document = json.loads(manifest.read_bytes())
        version, sha256 = document["version"], document["sha256"]
        for each in (home, manifest, binary):
            _check_owner(each)
    except (FileNotFoundError, NotADirectoryError) as error:
        if home.is_dir():
            raise PackageDamagedError(f"{error.filename}: is missing; {_CURE}") from None
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PackageDamagedError(f"{manifest}: cannot be read: {error}; {_CURE}") from None
    if not (isinstance(version, str) and _VERSION.fullmatch(version) and ".." not in version):
        raise PackageDamagedError(f"{manifest}: {version!r} is no version; {_CURE}")
    if not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        raise PackageDamagedError(f"{manifest}: sha256 must be 64 hexadecimal digits; {_CURE}")
    return Packaged(binary, version, sha256)


def package_version(home: Path = HOME) -> str:
    """Return the version of the package, which is not that of its Envoy; "" where none is, or it does not say."""
    try:
        said = json.loads((home / "manifest.json").read_bytes()).get("package", "")
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
    return said if isinstance(said, str) and _VERSION.fullmatch(said) else ""


def mark(home: Path = HOME) -> tuple[int, ...]:
    """Return numbers that change when the package is installed, upgraded or removed."""
    try:
        info = (home / "manifest.json").stat()
    except OSError:
        return ()
    return info.st_dev, info.st_ino, info.st_mtime_ns, info.st_ctime_ns


def _check_owner(path: Path) -> None:
    info = path.stat()
    if info.st_uid not in {0, os.geteuid()} or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PackageDamagedError(f"{path}: others than root may write into it; {_CURE}")
