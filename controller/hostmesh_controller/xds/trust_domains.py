"""Trust domains in AuthorizationPolicies: the mesh's own stands for its aliases, and they for it (Istio's rules)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hostmesh_controller.mesh.index import Mesh

_POINTER: Final = "cluster.local"
"""In a policy it means whatever the mesh's trust domain is."""
_STEPS: Final = 5
"""Of a principal: trust domain, ns, namespace, sa, service account."""


@dataclass(frozen=True, slots=True)
class TrustDomains:
    """The mesh's trust domain, then its aliases."""

    names: tuple[str, ...]

    def principals(self, values: Iterable[str]) -> tuple[str, ...]:
        """Return principals of one of these domains under each of them; others as they are."""
        return tuple(each for value in values for each in self._principal(value))

    def domains(self, values: Iterable[str]) -> tuple[str, ...]:
        """Return all the domains for one of them; others, and patterns, as they are."""
        found = (each for value in values for each in (self.names if value in self.names else (value,)))
        return tuple(dict.fromkeys(found))

    def _principal(self, value: str) -> tuple[str, ...]:
        domain, _, rest = value.partition("/")
        if rest.count("/") != _STEPS - 2 or domain == "*":
            return (value,)
        if domain != _POINTER and not any(_match(domain, name) for name in self.names):
            return (value,)
        # A pattern that takes a domain as it is stays; for the others it is written with their names.
        found = (value if _ends(name, domain) else f"{name}/{rest}" for name in self.names)
        return tuple(dict.fromkeys(found))


def trust_domains(mesh: Mesh) -> TrustDomains:
    return TrustDomains((mesh.settings.trust_domain, *mesh.config.trust_domain_aliases))


def _match(value: str, name: str) -> bool:
    return value == name or name == "*" or any(_begins(a, b) or _ends(a, b) for a, b in ((value, name), (name, value)))


def _begins(value: str, pattern: str) -> bool:
    return pattern.endswith("*") and value.startswith(pattern[:-1])


def _ends(value: str, pattern: str) -> bool:
    return pattern.startswith("*") and value.endswith(pattern[1:])
