"""The templates for machines that join at their first boot are well formed, and keep the join string to root."""

import shutil
import subprocess
from pathlib import Path

import pytest

from hostmesh_controller.yaml_nodes import Document, read_yaml

PACKAGING = Path(__file__).parents[2] / "packaging"


def test_cloud_init_keeps_the_string_in_a_file_of_roots_and_removes_it() -> None:
    (document,) = read_yaml((PACKAGING / "cloud-init/user-data.yaml").read_text())
    assert isinstance(document, Document)
    assert not document.flawed
    (file,) = document.value["write_files"]
    assert (file["permissions"], file["owner"]) == ("0600", "root:root")
    (join,) = document.value["runcmd"]
    assert f"join - <{file['path']}" in join[-1]
    assert "rm -rf /var/lib/hostmesh-join" in join[-1]
    assert "JOIN-STRING" not in str(document.value["runcmd"])
    assert subprocess.run(["sh", "-n", "-c", join[-1]]).returncode == 0


def test_cloud_init_takes_the_template() -> None:
    if not shutil.which("cloud-init"):
        pytest.skip("needs cloud-init")
    file = PACKAGING / "cloud-init/user-data.yaml"
    done = subprocess.run(["cloud-init", "schema", "-c", file], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr


def test_debconf_takes_the_preseed() -> None:
    if not shutil.which("debconf-set-selections"):
        pytest.skip("needs debconf")
    file = PACKAGING / "preseed/hostmesh.cfg"
    done = subprocess.run(["debconf-set-selections", "--checkonly", file], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_kickstarts_sections_are_closed_and_its_script_is_shell() -> None:
    text = (PACKAGING / "kickstart/hostmesh.ks").read_text()
    sections = [line.split()[0] for line in text.splitlines() if line.startswith("%")]
    assert sections == ["%packages", "%end", "%post", "%end"]
    script = text.partition("%post")[2].partition("\n")[2].partition("%end")[0]
    assert subprocess.run(["sh", "-n"], input=script, text=True).returncode == 0
    if shutil.which("ksvalidator"):
        file = PACKAGING / "kickstart/hostmesh.ks"
        done = subprocess.run(["ksvalidator", file], capture_output=True, text=True, timeout=50)
        assert done.returncode == 0, done.stdout + done.stderr
