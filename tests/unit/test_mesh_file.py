"""The mesh file: settings of the whole mesh beside the controller's own configuration."""

from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from golden.objects import obj
from hostmesh_controller.checks.world import World
from hostmesh_controller.config import Config, parse_config
from hostmesh_controller.config_reader import ConfigError
from hostmesh_controller.mesh_file import load_mesh_file
from hostmesh_controller.serve import app
from hostmesh_controller.validate import validate


def configured(directory: Path, mesh: str | None) -> Config:
    path = directory / "mesh.yaml"
    if mesh is not None:
        path.write_text(mesh)
    return parse_config(f'trust_domain = "example.org"\nmesh_config = "{path}"', "c.toml", ("here",))


def test_a_controller_without_a_mesh_file_has_istios_defaults() -> None:
    config = parse_config("", "c.toml", ("here",))
    assert config.mesh_config is None
    assert load_mesh_file(config).connect_timeout == timedelta(seconds=10)


def test_the_mesh_file_is_istios_plain_yaml(tmp_path: Path) -> None:
    found = load_mesh_file(
        configured(tmp_path, "connectTimeout: 3s\ntrustDomain: example.org\naccessLogFile: /dev/stdout")
    )
    assert found.connect_timeout == timedelta(seconds=3)
    assert found.access_log_file == "/dev/stdout"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("connectTimeout: 3s\nconectTimeout: 3s", "mesh.yaml:2: conectTimeout: unknown field"),
        ("connectTimeout: 2h", "mesh.yaml:1: connectTimeout: 2h is too long: at most 1h"),
        (
            "trustDomain: other.org",
            "mesh.yaml: trustDomain: 'other.org' is not what controller.toml says (trust_domain = 'example.org')",
        ),
        ("rootNamespace: mesh", "mesh.yaml: rootNamespace: 'mesh' is not what controller.toml says"),
        (None, "mesh.yaml: cannot be read: No such file or directory; mesh_config in controller.toml names it"),
    ],
)
def test_a_wrong_mesh_file_stops_the_start_with_the_place_and_the_cure(
    tmp_path: Path, text: str | None, problem: str
) -> None:
    config = configured(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_mesh_file(config)
    assert problem in str(caught.value)


def test_config_check_looks_at_the_mesh_file_too(tmp_path: Path) -> None:
    toml, mesh = tmp_path / "c.toml", tmp_path / "mesh.yaml"
    toml.write_text(f'mesh_config = "{mesh}"\nroot_namespace = "mesh-root"')
    mesh.write_text("rootNamespace: mesh-root")
    asked = ["config", "check", "--config", str(toml)]
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 0
    assert f"mesh_config = {mesh}" in found.output
    assert "root_namespace = mesh-root" in found.output
    mesh.write_text("proxyListenPort: 1")
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 1
    assert "mesh.yaml:1: proxyListenPort" in found.output


def test_the_object_cannot_change_what_the_controller_was_started_with(tmp_path: Path) -> None:
    spec = {"trustDomain": "other.org", "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}}
    world = World(trust_domain="example.org")
    error, warning = validate([obj("MeshConfig", "default", spec)], world)
    assert (error.path, error.is_error) == ("spec.trustDomain", True)
    assert "controller.toml" in error.message
    assert (warning.path, warning.is_error) == ("spec.outboundTrafficPolicy.mode", False)
    assert "capture every outbound TCP connection" in warning.message
    assert validate([obj("MeshConfig", "default", {"trustDomain": "example.org"})], world) == []
