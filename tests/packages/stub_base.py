"""A repository with one package that claims to be what a distribution of rpm's has: none of them is to be had here."""

import subprocess
from pathlib import Path
from typing import Final

_SPEC: Final = """
Name: base
Version: 1
Release: 1
Summary: What a distribution of rpm's has, where there is none to be had
License: Apache-2.0
BuildArch: noarch
Provides: glibc = 2.34, systemd, shadow-utils, ca-certificates, nftables, /bin/sh
%description
The root is Debian's.
%files
"""


def make(into: Path, work: Path) -> None:
    """Write the repository; `work` is for what is needed on the way."""
    (work / "base.spec").write_text(_SPEC)
    words = ["--define", f"_topdir {work}/top", "--define", f"_rpmdir {into}"]
    subprocess.run(["rpmbuild", "-bb", "--quiet", *words, str(work / "base.spec")], check=True, timeout=60)
    subprocess.run(["createrepo_c", "--quiet", str(into)], check=True, timeout=60)
