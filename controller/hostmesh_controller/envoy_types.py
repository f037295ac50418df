"""Envoy's messages by their names: what an operator writes, or what a resource holds, may be of any type Envoy has."""

from functools import lru_cache
from importlib import import_module
from pkgutil import iter_modules

from google.protobuf.message import Message
from google.protobuf.symbol_database import Default


@lru_cache(4096)
def message_class(full_name: str) -> type[Message] | None:
    """Return the class of a message such as `envoy.config.cluster.v3.Cluster`, or None if there is no such message.

    Modules have the names of the messages' packages, so only those of one package are loaded.
    """
    known = _known(full_name)
    parts = full_name.split(".")
    # A nested message's package is shorter than its name by more than one part.
    for length in range(len(parts) - 1, 1, -1):
        if known is not None:
            break
        _load(".".join(parts[:length]))
        known = _known(full_name)
    return known


def _known(full_name: str) -> type[Message] | None:
    try:
        found: type[Message] = Default().GetSymbol(full_name)
    except KeyError:
        return None
    return found


def _load(package: str) -> tuple[str, ...]:
    """Load the modules of one package; return the names of the messages in them."""
    if not all(part.isidentifier() for part in package.split(".")):
        return ()
    try:
        found = import_module(package)
    except ModuleNotFoundError:
        return ()
    names: list[str] = []
    for module in iter_modules(getattr(found, "__path__", ())):
        if module.name.endswith("_pb2"):
            loaded = import_module(f"{package}.{module.name}")
            names += [f"{package}.{name}" for name in loaded.DESCRIPTOR.message_types_by_name]
    return tuple(names)


def neighbours(full_name: str) -> tuple[str, ...]:
    """Return the messages beside a name that is none: of its package, or of those that a misspelt one may mean.

    At most one package is loaded for each sibling of the part that is wrong, so a wrong name costs little.
    """
    *package, _ = full_name.split(".")
    if not all(part.isidentifier() for part in package):
        return ()
    found = _load(".".join(package))
    while package and not found:
        *parent, _ = package
        rest = full_name.split(".")[len(package) :]
        siblings = _children(".".join(parent))
        found = tuple(name for each in siblings for name in _load(".".join([*parent, each, *rest[:-1]])))
        package = parent
    return found


def _children(package: str) -> tuple[str, ...]:
    try:
        found = import_module(package) if package else None
    except ModuleNotFoundError:
        return ()
    return tuple(each.name for each in iter_modules(getattr(found, "__path__", ())) if not each.name.endswith("_pb2"))
