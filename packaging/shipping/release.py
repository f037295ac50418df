"""Which release is built: its version, and the time that all its files have."""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from shipping.places import PROJECT
from shipping.running import BuildError, run

_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*((a|b|rc)[0-9]+|~[a-z0-9.]+|\.post[0-9]+)?")
_MAINTAINER = re.compile(r"[^<>\n]+ <[^<>@\s]+@[^<>@\s]+>")
_HOMEPAGE = re.compile(r"https?://[^\s<>]+")
NOBODY = "A build that names nobody <nobody@hostmesh.invalid>"
"""Packages must name a maintainer: whoever publishes them says who it is (MAINTAINER=…)."""


@dataclass(frozen=True, slots=True)
class Release:
    """`epoch` is in seconds: SOURCE_DATE_EPOCH, else the time of the last commit. `level` is xz's.

    `maintainer` and `homepage` are of whoever builds for others: MAINTAINER and HOMEPAGE. No homepage is "".
    """

    version: str
    epoch: int
    level: int = 6
    maintainer: str = NOBODY
    homepage: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """What reproducible-builds.org's tools go by."""
        return {"SOURCE_DATE_EPOCH": str(self.epoch), "TZ": "UTC", "LC_ALL": "C.UTF-8"}

    @property
    def when(self) -> datetime:
        return datetime.fromtimestamp(self.epoch, UTC)


def release(environment: Mapping[str, str] = os.environ) -> Release:
    """Read it from pyproject.toml and git; VERSION in the environment makes another version of the same code."""
    version = environment.get("VERSION") or str(
        tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    )
    if not _VERSION.fullmatch(version):
        raise BuildError(f"VERSION={version}: is no version such as 1.2.3, 1.2.3rc1 or 1.2.3~test1")
    given = environment.get("SOURCE_DATE_EPOCH", "")
    if given and not given.isdecimal():
        raise BuildError(f"SOURCE_DATE_EPOCH={given}: is no number of seconds")
    # A tree without git has no last commit: whoever builds it says when it is from.
    epoch = int(given or run(["git", "-C", str(PROJECT), "log", "-1", "--format=%ct"]).strip())
    # 1 makes packages a third larger in a third of the time: for trying out.
    level = environment.get("LEVEL", "6")
    if level not in set("123456789"):
        raise BuildError(f"LEVEL={level}: is no level of compression from 1 to 9")
    maintainer = environment.get("MAINTAINER") or NOBODY
    if not _MAINTAINER.fullmatch(maintainer):
        raise BuildError(f"MAINTAINER={maintainer}: is not like 'Name <address@host>'")
    homepage = environment.get("HOMEPAGE", "")
    if homepage and not _HOMEPAGE.fullmatch(homepage):
        raise BuildError(f"HOMEPAGE={homepage}: is not like 'https://host/path'")
    return Release(version, epoch, int(level), maintainer, homepage)
