"""The file that controller.toml calls `mesh_config`: read, judged, or refused with the places of what is wrong."""

from hostmesh_controller.checks.mesh_settings import disagreements
from hostmesh_controller.config import Config
from hostmesh_controller.config_reader import ConfigError
from hostmesh_controller.load_mesh import read_mesh_file
from hostmesh_controller.model.mesh_config import MeshConfigSpec


def load_mesh_file(config: Config) -> MeshConfigSpec:
    """Return the settings of the mesh file, the defaults if controller.toml names none.

    Raises:
        ConfigError: the file cannot be read, or it says what does not hold; with every problem of it.
    """
    path = config.mesh_config
    if path is None:
        return MeshConfigSpec()
    try:
        text = path.read_bytes()
    except OSError as error:
        reason = f"{path}: cannot be read: {error.strerror}; mesh_config in controller.toml names it"
        raise ConfigError([reason]) from error
    spec, problems = read_mesh_file(text, str(path))
    reasons = [str(each) for each in problems]
    if spec is not None:
        reasons += [
            f"{path}: {name}: {message}"
            for name, message in disagreements(spec, config.trust_domain, config.root_namespace)
        ]
    if spec is None or reasons:
        raise ConfigError(reasons)
    return spec
