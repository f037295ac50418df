"""The table [attest] of controller.toml: how hosts prove who they are, and what may follow from it. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

from hostmesh_controller.config_reader import Reader

FIELD: Final = re.compile(r"\{([a-z_]+)\}")
FIELDS: Final = {
    "x509pop": ("dns", "dns_label", "cn", "cn_label"),
    "ssh": ("principal", "principal_label"),
    "aws": ("instance_id", "account", "region"),
    "gcp": ("instance_name", "instance_id", "project", "zone"),
    "azure": ("vm_id", "subscription"),
    "key_alone": ("name",),
}
"""What the template of a name may use, by attestor; the first is the default."""
_OWNERS: Final = {"aws": "accounts", "gcp": "projects", "azure": "subscriptions"}
"""What the owner of an instance is called in each cloud."""
APPROVALS: Final = ("auto", "manual")
_REATTEST_WITHIN: Final = timedelta(days=30)
_AWS_MAX_AGE: Final = timedelta(hours=1)
_MOST: Final = timedelta(days=366)
_PATTERN: Final = re.compile(r"[a-z0-9.*-]{1,253}")
_GROUP: Final = re.compile(r"[a-z0-9-]{1,63}/[a-z0-9.-]{1,253}")


@dataclass(frozen=True, slots=True)
class Policy:
    """What a host may be for which an attestor vouches.

    Attributes:
        name: template of its name.
        allow_names: patterns that the name must fit; `*` stands for characters of one label.
        allow_addresses: CIDR blocks in which its address must be; nothing: anywhere.
        manual: an operator must approve.
        group: "namespace/name" of the WorkloadGroup that it joins; "": it must be registered.
    """

    name: str
    allow_names: tuple[str, ...] = ("*",)
    allow_addresses: tuple[str, ...] = ()
    manual: bool = True
    group: str = ""


@dataclass(frozen=True, slots=True)
class Trust:
    """One attestor's table.

    Attributes:
        policy: see there.
        files: certificates of authorities (PEM), public keys of SSH authorities, or Google's keys (JWKS).
        owners: accounts, projects or subscriptions whose instances may join.
        regions: where they must be; nothing: anywhere.
        max_age: how old an instance may be that joins, where its evidence is as old as itself (AWS).
    """

    policy: Policy
    files: tuple[Path, ...] = ()
    owners: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    max_age: timedelta = _AWS_MAX_AGE


@dataclass(frozen=True, slots=True)
class Attestation:
    """`reattest_within` is how long after its certificate's end a host may come back by its key alone; zero: never.

    `trust` has the attestors that the file configures, by kind.
    """

    reattest_within: timedelta = _REATTEST_WITHIN
    trust: Mapping[str, Trust] = field(default_factory=dict)


def attestation(reader: Reader) -> Attestation:
    """Read [attest] and the tables below it."""
    within = reader.duration("attest.reattest_within", _REATTEST_WITHIN, _MOST)
    found = {kind: _trust(reader, kind) for kind in FIELDS if reader.has(f"attest.{kind}")}
    return Attestation(within, found)


def _trust(reader: Reader, kind: str) -> Trust:
    table = f"attest.{kind}"
    policy = _policy(reader, kind, table)
    files_key = "keys_file" if kind == "gcp" else "ca_files"
    files: tuple[Path, ...] = ()
    if kind == "gcp":
        found = reader.optional_path(f"{table}.{files_key}")
        files = () if found is None else (found,)
    elif kind != "key_alone":
        files = reader.paths(f"{table}.{files_key}")
    if not files and kind != "key_alone":
        reader.refuse(f"{table}.{files_key}", "name what says whom to trust")
    owners: tuple[str, ...] = ()
    if kind in _OWNERS:
        owners = reader.texts(f"{table}.{_OWNERS[kind]}")
        if not owners:
            reader.refuse(
                f"{table}.{_OWNERS[kind]}", "name whose instances may join: anybody can have one in this cloud"
            )
    regions = reader.texts(f"{table}.regions") if kind in {"aws", "gcp"} else ()
    max_age = reader.duration(f"{table}.max_age", _AWS_MAX_AGE, _MOST) if kind == "aws" else _AWS_MAX_AGE
    return Trust(policy, files, owners, regions, max_age)


def _policy(reader: Reader, kind: str, table: str) -> Policy:
    default = f"{{{FIELDS[kind][0]}}}"
    name = reader.text(f"{table}.name", default) if kind != "key_alone" else default
    unknown = [each for each in FIELD.findall(name) if each not in FIELDS[kind]]
    if unknown or not FIELD.search(name) or set("{}") & set(FIELD.sub("", name)):
        choices = ", ".join(f"{{{each}}}" for each in FIELDS[kind])
        reader.refuse(f"{table}.name", f"'{name}' is no template of a name with one or more of {choices}")
    patterns = reader.texts(f"{table}.allow_names")
    for each in patterns:
        if not _PATTERN.fullmatch(each):
            reader.refuse(f"{table}.allow_names", f"'{each}' is not a name in lower case, with * for parts of a label")
    if not patterns and kind in {"x509pop", "ssh"}:
        reader.refuse(
            f"{table}.allow_names", "name the hosts for which these authorities may vouch, as '*.example.org'"
        )
    addresses = reader.blocks(f"{table}.allow_addresses")
    group = reader.text(f"{table}.group", "") if kind != "key_alone" else ""
    if group and not _GROUP.fullmatch(group):
        reader.refuse(f"{table}.group", f"'{group}' names no WorkloadGroup; write NAMESPACE/NAME")
    approvals = ("manual",) if kind == "key_alone" else APPROVALS
    manual = reader.choice(f"{table}.approval", "manual", approvals) == "manual"
    return Policy(name, patterns or ("*",), addresses, manual, group)
