"""Where this machine has Debian from. It is asked when something is built, and written into nothing that is kept."""

from dataclasses import dataclass
from typing import Final

from shipping.running import BuildError, run

_FORMAT: Final = "$(ORIGIN)|$(COMPONENT)|$(RELEASE)|$(REPO_URI)"
_BESIDE: Final = ("-security", "-updates", "-backports", "-proposed-updates")
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True, slots=True)
class Mirror:
    """`security` is None where the machine takes no security updates."""

    main: str
    security: str | None


def mirror() -> Mirror:
    return chosen(run(["apt-get", "indextargets", "--format", _FORMAT, "Created-By: Packages"], within_s=60))


def chosen(told: str) -> Mirror:
    """Return the mirror that apt's index targets name. Raises BuildError where there is none of Debian's."""
    rows = [line.split("|") for line in told.splitlines() if line.count("|") == 3]
    debian = [(release, uri) for origin, component, release, uri in rows if (origin, component) == ("Debian", "main")]
    main = [uri for release, uri in debian if not release.endswith(_BESIDE)]
    security = [uri for release, uri in debian if release.endswith("-security")]
    if not main:
        raise BuildError(
            "apt knows no archive of Debian's here, from which the interpreter's sources come: run apt-get update; "
            "packages are built on Debian 12 or later"
        )
    return Mirror(main[0], next(iter(security), None))
