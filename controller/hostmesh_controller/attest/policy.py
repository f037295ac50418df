"""What an attested host may be: its name, whether somebody must approve, which group it joins. Pure."""

import re
from collections.abc import Mapping, Sequence

from hostmesh_api.identity import MAX_NAME_CHARS, require_subdomain
from hostmesh_controller.attest.evidence import Attested, EvidenceError, printable
from hostmesh_controller.config_attest import FIELD, Policy
from hostmesh_controller.names import is_within


def name_of(attested: Attested, policy: Policy, wanted: str) -> str:
    """Return the name of an attested host.

    Args:
        attested: who it is.
        policy: of the attestor.
        wanted: the name that the host gives itself; it decides where several are vouched for, and only then.

    Raises:
        EvidenceError: no name that may be given, or several.
    """
    if attested.approved:
        return _usable(wanted)
    made = dict.fromkeys(_made(policy.name, fields) for fields in attested.names)
    allowed = [name for name in made if name is not None and allows(policy.allow_names, name)]
    if not allowed:
        shown = ", ".join(repr(printable(name)) for name in list(made)[:8] if name is not None) or "none"
        raise EvidenceError(f"no name that allow_names allows: {shown}")
    if wanted in allowed:
        return _usable(wanted)
    if len(allowed) > 1:
        raise EvidenceError(f"several names are possible: {', '.join(allowed[:8])}; the host must choose (--name)")
    return _usable(allowed[0])


def allows(patterns: Sequence[str], name: str) -> bool:
    """Tell whether a name fits one of the patterns, where `*` stands for any characters of one label."""
    return any(re.fullmatch(re.escape(each).replace(r"\*", "[a-z0-9-]*"), name) for each in patterns)


def address_problem(policy: Policy, address: str) -> str | None:
    """Return why a host may not join from an address, None if it may."""
    blocks = policy.allow_addresses
    if not blocks or is_within(address, blocks):
        return None
    return f"allow_addresses does not allow {address or 'an unknown address'}"


def _made(template: str, fields: Mapping[str, str]) -> str | None:
    """Return the template with its fields filled in; None if one is missing."""
    if not all(fields.get(each) for each in FIELD.findall(template)):
        return None
    return FIELD.sub(lambda match: str(fields[match[1]]), template)


def _usable(name: str) -> str:
    try:
        require_subdomain("host", name)
    except ValueError as error:
        raise EvidenceError(printable(str(error))[: MAX_NAME_CHARS + 100]) from None
    return name
