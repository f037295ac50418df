"""A lab of an ordinary user: the same verbs, below a user namespace, and nothing needs root."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from e2e.driver import HOSTMESH
from hostmesh_agent import cgroup
from hostmesh_api.wire import ENVOY_SLICES

# A user of its own, known to a private /etc alone; where the checkout's Python lies under /root, a way to it.
_SCRIPT = r"""
set -e
mkdir -p "$1/upper" "$1/work" "$1/home" "$1/kept"
mount -t overlay overlay /etc -o "lowerdir=/etc,upperdir=$1/upper,workdir=$1/work"
echo "labuser:x:7001:7001::$1/home:/bin/sh" >> /etc/passwd
echo "labuser:x:7001:" >> /etc/group
sed -i '/^labuser:/d' /etc/subuid /etc/subgid 2>/dev/null || true
if [ "$2" = ranges ]; then
    echo labuser:300000:65536 >> /etc/subuid
    echo labuser:300000:65536 >> /etc/subgid
fi
chmod 755 "$1"; chown 7001:7001 "$1/home"
case "$3" in /root/*)
    mount --bind "$3" "$1/kept"
    mount -t tmpfs -o mode=755 tmpfs /root
    mkdir -p "$3"; mount --bind "$1/kept" "$3"; umount "$1/kept";;
esac
home="$1/home"; shift 3
cd "$home"
exec setpriv --reuid 7001 --regid 7001 --init-groups env -i HOME="$home" PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
"""


def as_user(place: Path, script: str, *, ranges: bool = True) -> subprocess.CompletedProcess[str]:
    command = ["unshare", "-m", "sh", "-c", _SCRIPT, "sh", str(place), "ranges" if ranges else "none", sys.base_prefix]
    return subprocess.run(
        [*command, "sh", "-ec", script, "sh", HOSTMESH], capture_output=True, text=True, timeout=200, check=False
    )


@pytest.fixture
def place() -> Iterator[Path]:
    if shutil.which("newuidmap") is None:
        pytest.skip("newuidmap (Debian: uidmap) is not installed")
    if not os.access(sys.prefix, os.X_OK):
        pytest.skip("the checkout is not reachable for other users")
    path = Path(tempfile.mkdtemp(prefix="hm-user-"))
    # As where root has a lab on the same machine: this one's cgroup, which the user sees and cannot use.
    unified = cgroup.root(whole=False)
    envoys = unified.joinpath(*ENVOY_SLICES) if unified is not None else None
    if envoys is not None:
        (envoys / "blue").mkdir(parents=True, exist_ok=True)
    yield path
    if envoys is not None:
        for each in (envoys / "blue", envoys, envoys.parent):
            # Another lab's Envoys may be in it.
            with suppress(OSError):
                each.rmdir()
    subprocess.run(["rm", "-rf", str(path)], check=True)


def test_an_ordinary_user_has_a_lab_with_a_mesh(place: Path) -> None:
    done = as_user(
        place,
        """
        "$1" lab up one two --no-join three
        "$1" lab status -o json | grep '"link": null'
        eval "$("$1" lab env)"
        "$1" apply -f - <<EOF
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{name: http, port: 8080}]}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web}
spec: {address: $("$1" lab ip two), labels: {app: web}}
EOF
        "$1" lab exec two --user app --detach -- python3 -m http.server 8080
        for i in $(seq 50); do
            if "$1" lab exec one --user app -- curl -sSf -m 5 -o /dev/null http://web:8080/; then echo served; break; fi
        done
        "$1" lab restart host/two
        "$1" lab kill agent/one
        "$1" lab start agent/one
        "$1" lab down
        find "$HOME" -mindepth 1
        """,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "served\n" in done.stdout
    assert done.stdout.endswith("served\n")


def test_a_user_without_id_ranges_is_told_the_cure_and_nothing_is_made(place: Path) -> None:
    done = as_user(place, '"$1" lab up one', ranges=False)
    assert done.returncode == 1
    assert "usermod --add-subuids" in done.stderr
    assert list((place / "home").iterdir()) == []
