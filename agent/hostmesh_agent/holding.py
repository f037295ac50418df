"""What may be captured while capture is held: nothing that was not captured before. Pure."""

from hostmesh_api.v1.hostmesh_pb2 import Capture, HostConfig


def within(config: HostConfig, held: bytes) -> HostConfig:
    """Return the configuration with no more capture than in `held` (a serialized `Capture`).

    What was captured and is no longer wanted goes all the same: its listeners go too.

    Raises:
        ValueError: `held` is no such thing.
    """
    limit = _parsed(held)
    wanted = config.capture
    found = HostConfig()
    found.CopyFrom(config)
    kept = found.capture
    kept.CopyFrom(limit)
    for name in ("inbound_ports", "outbound_prefixes", "virtual_prefixes"):
        allowed = set(getattr(limit, name)) & set(getattr(wanted, name))
        kept.ClearField(name)
        getattr(kept, name).extend(sorted(allowed))
    if wanted.scope != limit.scope:
        kept.scope = Capture.MESH
    kept.dns = wanted.dns and limit.dns
    return found


def _parsed(held: bytes) -> Capture:
    try:
        return Capture.FromString(held)
    except Exception as error:  # protobuf's own classes of it differ with its implementation
        raise ValueError(f"not a configuration of capture: {error}") from error
