"""Look for known vulnerabilities in packaging/constraints.txt with pip-audit, which lives in an environment of its own.

    python packaging/audit.py

It ends with 0 only if every package was looked up and none has any: pip-audit itself ends with 0 where the service that
knows of vulnerabilities does not answer, or does not know a package.
"""

import json
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
CONSTRAINTS: Final = ROOT / "packaging" / "constraints.txt"
ENVIRONMENT: Final = ROOT / ".cache" / "audit"
PIP_AUDIT: Final = "pip-audit>=2.7,<3"
FINE: Final = 0
VULNERABLE: Final = 1
UNKNOWN: Final = 2


def pinned(text: str) -> list[str]:
    """Return the names of the packages of a constraints file."""
    return re.findall(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE)


def verdict(wanted: Iterable[str], report: dict[str, Any] | None) -> tuple[int, list[str]]:
    """Return the exit code and what to say of pip-audit's report; None: it made none."""
    found = {_plain(each["name"]): each for each in (report or {}).get("dependencies", ())}
    said: list[str] = []
    for name, each in sorted(found.items()):
        for vulnerability in each.get("vulns", ()):
            fixed = ", ".join(vulnerability.get("fix_versions", ())) or "no version yet"
            said.append(f"{name} {each.get('version')}: {vulnerability['id']}, fixed in {fixed}")
    missing = sorted(each for each in map(_plain, wanted) if "vulns" not in found.get(each, {}))
    if missing:
        said.append(f"NOT AUDITED: of {len(missing)} packages nothing is known: {', '.join(missing)}")
        said.append("Is the vulnerability service reached from here? This is no clean bill.")
    if any("vulns" in each and each["vulns"] for each in found.values()):
        return VULNERABLE, said
    return (UNKNOWN, said) if missing else (FINE, ["no known vulnerabilities"])


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> Path:
    """Return the program, made if it is not there yet."""
    program = ENVIRONMENT / "bin" / "pip-audit"
    if not program.exists():
        venv.create(ENVIRONMENT, with_pip=True)
        _run([str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet", PIP_AUDIT])
    return program


def _run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, stdin=subprocess.DEVNULL)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "report.json"
        options = ("--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json")
        try:
            done = _run([str(installed()), "--requirement", str(CONSTRAINTS), *options, "--output", str(written)])
        except (OSError, subprocess.TimeoutExpired) as error:
            done = subprocess.CompletedProcess((), 1, "", f"pip-audit cannot be run: {error}")
        report = json.loads(written.read_text()) if written.exists() and written.stat().st_size else None
    code, said = verdict(pinned(CONSTRAINTS.read_text()), report)
    if report is None:
        sys.stderr.write(done.stderr[-2000:])
    (sys.stdout if code == FINE else sys.stderr).write("\n".join(said) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
