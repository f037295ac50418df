"""Whether a delegate's match can be for requests of the match that delegates to it."""

from collections.abc import Mapping
from typing import Final

from hostmesh_controller.model.http_match import HttpMatch, StringMatch

TEXTS: Final = ("uri", "scheme", "method", "authority")
MAPPINGS: Final = ("headers", "without_headers", "query_params")


def conflict(root: HttpMatch, leaf: HttpMatch) -> bool:
    """Tell whether what `leaf` takes is not surely part of what `root` takes, as Istio judges it."""
    return (
        any(_text_conflict(getattr(root, field), getattr(leaf, field)) for field in TEXTS)
        or any(_mapping_conflict(getattr(root, field), getattr(leaf, field)) for field in MAPPINGS)
        or root.ignore_uri_case != leaf.ignore_uri_case
        or bool(root.port and leaf.port and root.port != leaf.port)
        # As in Istio: where the root tells the namespace, the delegate must tell it again.
        or bool(root.source_namespace and leaf.source_namespace != root.source_namespace)
        or any(root.source_labels.get(key, value) != value for key, value in leaf.source_labels.items())
        or bool(root.gateways and leaf.gateways and not _covers(root.gateways, leaf.gateways))
    )


def _covers(root: tuple[str, ...], leaf: tuple[str, ...]) -> bool:
    return len(root) >= len(leaf) and set(leaf) <= set(root)


def _mapping_conflict(root: Mapping[str, StringMatch], leaf: Mapping[str, StringMatch]) -> bool:
    return any(_text_conflict(root.get(key), value) for key, value in leaf.items())


def _text_conflict(root: StringMatch | None, leaf: StringMatch | None) -> bool:
    """Tell whether what `leaf` takes is not surely part of what `root` takes."""
    if root is None or leaf is None:
        return False
    if (root.regex and _says_something(leaf)) or (leaf.regex and _says_something(root)):
        return True
    if root.exact:
        return bool(leaf.prefix) or leaf.exact != root.exact
    if root.prefix and (leaf.prefix or leaf.exact):
        return not (leaf.prefix or leaf.exact or "").startswith(root.prefix)
    return True


def _says_something(match: StringMatch) -> bool:
    return bool(match.regex or match.prefix or match.exact)
