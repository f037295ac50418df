"""What may be asked for: the name of a unit's instance, PACKAGE:VERSION:VERB:TOKEN. Pure."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from hostmesh_api.manifest import AGENT, ENVOY, PACKAGES, is_package_version

SPOOL: Final = "updates"
"""A directory of the agent's."""
PACKAGE: Final = "package"
MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "manifest.sig"
"""In the spool, beside the package: what the mirror has of it."""
_COMPONENTS: Final = {PACKAGES[AGENT]: AGENT, PACKAGES[ENVOY]: ENVOY}
_MAX_CHARS: Final = 160
_TOKEN: Final = re.compile(r"[0-9a-f]{16}")
_ESCAPED: Final = {"~": r"\x7e", "+": r"\x2b"}
"""What a version may have and a unit's name may not, as systemd-escape(1) writes it."""


class Verb(StrEnum):
    """MIRROR and PACKAGES install a version, from there. BACK: what was there before. SETTLE: it is everywhere."""

    MIRROR = "mirror"
    PACKAGES = "packages"
    BACK = "back"
    SETTLE = "settle"


class BadRequestError(Exception):
    """It is none; the text does not repeat it."""


@dataclass(frozen=True, slots=True)
class Request:
    """`token` names the answer, for whoever asked."""

    package: str
    version: str
    verb: Verb
    token: str

    @property
    def component(self) -> str:
        return _COMPONENTS[self.package]

    @property
    def unit(self) -> str:
        """The unit that does it."""
        version = "".join(_ESCAPED.get(each, each) for each in self.version)
        return f"hostmesh-upgrade@{self.package}:{version}:{self.verb}:{self.token}.service"


def parse(text: str) -> Request:
    """Read an instance's name. Raises BadRequestError."""
    if len(text) > _MAX_CHARS or not text.isascii():
        raise BadRequestError("not PACKAGE:VERSION:VERB:TOKEN")
    for plain, escaped in _ESCAPED.items():
        text = text.replace(escaped, plain)
    words = text.split(":")
    if len(words) != len(("package", "version", "verb", "token")):
        raise BadRequestError("not PACKAGE:VERSION:VERB:TOKEN")
    package, version, verb, token = words
    if package not in _COMPONENTS:
        raise BadRequestError(f"the package must be one of {', '.join(_COMPONENTS)}")
    if not is_package_version(version):
        raise BadRequestError("the version is not one such as 1.2.3 or 1.2.3~rc1")
    if verb not in {each.value for each in Verb}:
        raise BadRequestError(f"the verb must be one of {', '.join(Verb)}")
    if verb == Verb.MIRROR and package != PACKAGES[AGENT]:
        raise BadRequestError("the mirror has no package of Envoy")
    if not _TOKEN.fullmatch(token):
        raise BadRequestError("the token is not 16 hexadecimal digits")
    return Request(package, version, Verb(verb), token)
