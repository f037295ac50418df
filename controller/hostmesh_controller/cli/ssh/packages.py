"""The host's package manager, and where the packages come from.

The seam: `manager_of` names the manager by the host's facts; a manager turns a source into scripts for the host.
"""

import re
import shlex
import tarfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Final, Protocol

from hostmesh_controller.cli.failure import CliError

AGENT: Final = "hostmesh-agent"
ENVOY: Final = "hostmesh-envoy"
PACKAGES: Final = (AGENT, ENVOY)
_MAX_PACKAGE_BYTES: Final = 2 * 2**30
_MAX_KEY_BYTES: Final = 2**20
_ARMOR: Final = ("-----BEGIN PGP PUBLIC KEY BLOCK-----", "-----END PGP PUBLIC KEY BLOCK-----")
_OF_HOSTS: Final = re.compile(rf"({'|'.join(PACKAGES)})[_-][0-9].*\.(deb|rpm)")


@dataclass(frozen=True, slots=True)
class Source:
    """One of: a repository that the host knows already (nothing given), one to be configured, local package files.

    `repository_key` is the text of its public key.
    """

    repository: str = ""
    repository_key: str = ""
    files: tuple[Path, ...] = ()


class Manager(Protocol):
    """What is asked of a package manager, as scripts for root's shell."""

    @property
    def suffix(self) -> str:
        """Of its packages' files."""

    def installed(self) -> str:
        """Print a line `NAME VERSION` for each of our packages that is installed."""

    def offered(self) -> str:
        """Print something if what was read of the host's repositories has the agent; nothing is read anew or kept."""

    def repository_file(self) -> str:
        """Return the file that makes a repository known."""

    def repository_text(self, url: str) -> str:
        """Return that file's text; `url` is the address above apt/ and rpm/, as `make repo` writes them."""

    def note_keys(self) -> str:
        """Note what forget_repository is to know; run once key and file are there, and before anything is installed."""

    def forget_repository(self) -> str:
        """Remove what made a repository known, and what was read of it; nothing happens where we made none known."""

    def install(self, files: Sequence[str]) -> str:
        """Install these files, or the agent from a repository."""

    def removed(self) -> str:
        """Print the name of each of our packages that was removed, and whose configuration was left."""

    def remove(self, names: Sequence[str]) -> str:
        """Remove packages and leave their configuration, as far as the manager knows the difference."""

    def purge(self, names: Sequence[str]) -> str:
        """Remove packages with all that they brought; what is not there is no error."""


KEY_FILE: Final = "/etc/hostmesh-repository.asc"


def _unless_ours(file: str) -> str:
    """End where the repository's file is an operator's own: theirs names no key of ours.

    The key is written first, so it may be there without the file, or with one that is empty.
    """
    return f"if [ -s {file} ]; then grep -qsF {KEY_FILE} {file} || exit 0\nelif [ ! -e {KEY_FILE} ]; then exit 0; fi\n"


@dataclass(frozen=True, slots=True)
class Apt:
    suffix: str = ".deb"

    def installed(self) -> str:
        shown = "-f '${db:Status-Status} ${Package} ${Version}\\n'"
        return f"dpkg-query -W {shown} {' '.join(PACKAGES)} 2>/dev/null | sed -n 's/^installed //p'"

    def offered(self) -> str:
        # It would keep what it made of the lists, if it is root.
        return f"apt-cache -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= madison {AGENT} 2>/dev/null"

    def repository_file(self) -> str:
        return "/etc/apt/sources.list.d/hostmesh.list"

    def repository_text(self, url: str) -> str:
        return f"deb [signed-by={KEY_FILE}] {url.rstrip('/')}/apt stable main\n"

    def note_keys(self) -> str:
        return ":"  # apt takes the key from its file, for this repository alone

    def forget_repository(self) -> str:
        file = self.repository_file()
        return (
            f"{_unless_ours(file)}"
            # Lists are named after the address: without the scheme, `_` for each `/`.
            f"url=$(sed -n 's|^deb \\[signed-by={KEY_FILE}\\] [a-z]*:/*\\([^ ]*\\) .*|\\1|p' {file} 2>/dev/null)\n"
            "name=$(printf %s \"$url\" | sed 's|_|%5f|g; s|/|_|g')\n"
            '[ -z "$name" ] || rm -f "/var/lib/apt/lists/$name"_* "/var/lib/apt/lists/_$name"_*\n'
            f"rm -f {KEY_FILE} {file}"
        )

    def install(self, files: Sequence[str]) -> str:
        # Of the repositories only ours is asked anew: another that is broken is not our matter.
        update = ""
        if not files:
            only = f"-o Dir::Etc::sourcelist={self.repository_file()} -o Dir::Etc::sourceparts=-"
            update = (
                f"if [ -e {self.repository_file()} ]; then only='{only} -o APT::Get::List-Cleanup=0'; fi\n"
                f"patiently {_APT} -qq update $only || exit 1\n"
            )
        what = shlex.join(files) if files else AGENT
        return f"{_PATIENTLY}{update}patiently {_APT} -qq install -y --no-install-recommends {what}"

    def removed(self) -> str:
        shown = "-f '${db:Status-Status} ${Package}\\n'"
        return f"dpkg-query -W {shown} {' '.join(PACKAGES)} 2>/dev/null | sed -n 's/^config-files //p'"

    def remove(self, names: Sequence[str]) -> str:
        return _ended_by("remove", names, "not-installed|config-files")

    def purge(self, names: Sequence[str]) -> str:
        return _ended_by("purge", names, "not-installed")


def _ended_by(verb: str, names: Sequence[str], gone: str) -> str:
    # An installation whose connection was lost may still run, and holds the lock until its own time is over.
    there = f"dpkg-query -W -f '${{db:Status-Status}} ${{Package}}\\n' {shlex.join(names)} 2>/dev/null"
    return (
        f"there=$({there} | sed -nE '/^({gone}) /d; s/^[^ ]* //p')\n"
        '[ -n "$there" ] || exit 0\n'
        f"end() {{ {_APT} -o DPkg::Lock::Timeout=240 -qq {verb} -y $there; }}\n"
        # An installation that was ended half-way leaves a journal that dpkg wants finished before anything else.
        "end || { dpkg --configure -a --force-confold; end; }"
    )


_APT: Final = (
    "env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=60 -o Acquire::Retries=2 "
    "-o APT::Keep-Downloaded-Packages=false "
    "-o Dpkg::Options::=--force-confold"
)


PATIENCE_S: Final = 90
"""How long another apt is waited for that downloads, as apt-daily does after a boot. apt itself waits for dpkg's lock
alone (DPkg::Lock::Timeout)."""
_PATIENTLY: Final = f"""tries={PATIENCE_S // 3}
patiently() {{
    until said=$("$@" 2>&1); do
        case $said in
            *'Could not get lock '*/lists/lock* | *'Could not get lock '*/archives/lock*) tries=$((tries - 1)) ;;
            *) tries=0 ;;
        esac
        [ $tries -gt 0 ] || {{ printf '%s\\n' "$said" >&2; return 1; }}
        sleep 3
    done
}}
"""


_CAME_WITH_IT: Final = "# trusted only since: "
"""Before the name of a key in our repository's file, which rpm did not have before."""


@dataclass(frozen=True, slots=True)
class Dnf:
    suffix: str = ".rpm"

    def installed(self) -> str:
        return f"rpm -q --qf '%{{NAME}} %{{VERSION}}-%{{RELEASE}}\\n' {' '.join(PACKAGES)} | grep -v 'is not installed'"

    def offered(self) -> str:
        return f"dnf -q -C list --available {AGENT} 2>/dev/null"

    def repository_file(self) -> str:
        return "/etc/yum.repos.d/hostmesh.repo"

    def repository_text(self, url: str) -> str:
        lines = (
            "[hostmesh]",
            "name=hostmesh",
            f"baseurl={url.rstrip('/')}/rpm",
            "enabled=1",
            "gpgcheck=1",
            "repo_gpgcheck=1",
            f"gpgkey=file://{KEY_FILE}",
        )
        return "\n".join(lines) + "\n"

    def note_keys(self) -> str:
        # An installation has rpm trust the key for every package. A database of its own tells what rpm calls it.
        return (
            "own=$(mktemp -d) || exit\n"
            f'rpm --dbpath "$own" --import {KEY_FILE}\n'
            "for key in $(rpm --dbpath \"$own\" -qa 'gpg-pubkey*'); do\n"
            f'    rpm -q "$key" >/dev/null 2>&1 || echo "{_CAME_WITH_IT}$key" >>{self.repository_file()}\n'
            "done\n"
            'rm -rf "$own"'
        )

    def forget_repository(self) -> str:
        file = self.repository_file()
        return (
            f"{_unless_ours(file)}"
            f"keys=$(sed -n 's/^{_CAME_WITH_IT}\\(gpg-pubkey-[0-9a-f]*-[0-9a-f]*\\)$/\\1/p' {file} 2>/dev/null)\n"
            'for key in $keys; do rpm -e "$key" >/dev/null 2>&1; done\n'
            f"dnf -q clean all --disablerepo='*' --enablerepo=hostmesh >/dev/null 2>&1\n"
            "rm -rf /var/cache/dnf/hostmesh-*\n"
            f"rm -f {KEY_FILE} {file}"
        )

    def install(self, files: Sequence[str]) -> str:
        return f"dnf -q install -y {shlex.join(files) if files else AGENT}"

    def removed(self) -> str:
        return ":"  # rpm forgets what it removes

    def remove(self, names: Sequence[str]) -> str:
        return self.purge(names)

    def purge(self, names: Sequence[str]) -> str:
        return f"there=$(rpm -q --qf '%{{NAME}}\\n' {shlex.join(names)} | grep -v ' '); " + (
            '[ -z "$there" ] || dnf -q remove -y $there'
        )


CONFIG: Final = "/etc/hostmesh/agent.toml"
"""The owner's: it may be there before the package is, or still."""
_BESIDE: Final = tuple(f"{CONFIG}.{each}" for each in ("dpkg-dist", "dpkg-new", "dpkg-old", "rpmnew", "rpmsave"))


def configured() -> str:
    """Print the files of the owner's that are there."""
    return f"ls -d {CONFIG} {' '.join(_BESIDE)} 2>/dev/null"


def sparing(there: Collection[str], script: str) -> str:
    """Return a script that removes packages so that their owner's files are those that were `there`."""
    kept = f"{CONFIG}.kept"
    keep = f"[ ! -e {CONFIG} ] || cp -a {CONFIG} {kept}\n" if CONFIG in there else ""
    made = [each for each in _BESIDE if each not in there]
    return (
        f"{keep}(\n{script}\n)\ncode=$?\n"
        f"[ ! -e {kept} ] || mv -f {kept} {CONFIG}\n"
        f"{f'rm -f {shlex.join(made)}' if made else ''}\n"
        "exit $code"
    )


def same_repository(one: str, other: str) -> bool:
    """Tell whether two files of a repository say the same; what was noted in them aside."""
    texts = ([line for line in each.splitlines() if not line.startswith("#")] for each in (one, other))
    return next(texts) == next(texts)


def _kind(name: str) -> tuple[str, ...]:
    found = _OF_HOSTS.fullmatch(name)
    assert found is not None
    return found.groups()


def manager_of(name: str) -> Manager | None:
    """Return the manager of that name (`apt`, `dnf`), None for none that is known."""
    known: dict[str, Manager] = {"apt": Apt(), "dnf": Dnf()}
    return known.get(name)


def read_key(path: Path) -> str:
    """Read the public key of a repository.

    Raises:
        CliError: it cannot be read, or is none that hosts can be given.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_KEY_BYTES + 1).decode("ascii")
    except OSError as error:
        raise CliError(f"error: {path}: {error.strerror} (--repository-key)") from None
    except UnicodeDecodeError:
        text = ""
    if "PRIVATE KEY BLOCK" in text:
        raise CliError(f"error: {path} holds a private key, which no host is to see: give hostmesh.asc of `make repo`")
    if len(text) > _MAX_KEY_BYTES or not all(each in text for each in _ARMOR):
        raise CliError(
            f"error: {path} is no public key as text: give hostmesh.asc of `make repo`; of another key "
            "`gpg --armor --export` makes it (--repository-key)"
        )
    return text


def read_files(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Check package files that were named.

    Raises:
        CliError: one is missing, or no package.
    """
    for each in paths:
        if each.suffix not in {".deb", ".rpm"}:
            raise CliError(f"error: {each} is no package: a .deb or .rpm is one")
        if not each.is_file():
            raise CliError(f"error: {each}: no such file")
    return tuple(paths)


@contextmanager
def unpacked(bundle: Path) -> Iterator[tuple[Path, ...]]:
    """Yield the packages of an offline bundle as files, which go when this ends. Nothing else of it is unpacked:

    what `make bundle` writes, or a tar of dist/, holds packages for the controller's machine too.

    Raises:
        CliError: it cannot be read, or holds no package.
    """
    with TemporaryDirectory(prefix="hostmesh-bundle-") as folder:
        found: list[Path] = []
        try:
            with tarfile.open(bundle) as tar:
                for member in tar:
                    name = PurePosixPath(member.name).name
                    if not member.isfile() or not _OF_HOSTS.fullmatch(name):
                        continue
                    if member.size > _MAX_PACKAGE_BYTES:
                        raise CliError(f"error: {bundle}: {name} is larger than any of our packages")
                    content = tar.extractfile(member)
                    assert content is not None
                    target = Path(folder) / name
                    if twice := [each for each in found if _kind(each.name) == _kind(name)]:
                        raise CliError(f"error: {bundle} holds both {twice[0].name} and {name}: leave one of them out")
                    with target.open("xb") as out:
                        while piece := content.read(1 << 20):
                            out.write(piece)
                    found.append(target)
        except (OSError, tarfile.TarError, EOFError) as error:
            raise CliError(f"error: the bundle {bundle} cannot be read: {error}") from None
        if not found:
            raise CliError(f"error: the bundle {bundle} holds no package of {' or '.join(PACKAGES)}")
        yield tuple(found)
