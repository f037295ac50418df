"""The names under which a route asks for claims of a token instead of headers."""

from typing import Final

PREFIX: Final = "@request.auth.claims"


def routing_claim(name: str) -> tuple[str, ...] | None:
    """Return the path to the claim that a name of a header match means; None: it is a header's.

    `@request.auth.claims.a.b` and `@request.auth.claims[a][b]` are b in a, as in Istio. The second form is for claims
    with dots in their names.
    """
    if not name.lower().startswith(PREFIX):
        return None
    rest = name[len(PREFIX) :]
    if rest.startswith(".") and len(rest) > 1:
        return tuple(rest[1:].split("."))
    if rest.startswith("[") and rest.endswith("]") and len(rest) > 2:
        return tuple(rest[1:-1].split("]["))
    return None
