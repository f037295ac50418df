"""Which authority this controller has: with a root of its own, or below somebody else's, as controller.toml says."""

from datetime import datetime, timedelta
from pathlib import Path

from hostmesh_controller import authority_files
from hostmesh_controller.authority import Authority, AuthorityError
from hostmesh_controller.authority_cacerts import CaCerts
from hostmesh_controller.authority_upstream import Demand, Upstream
from hostmesh_controller.authority_vault import Vault
from hostmesh_controller.config import Config
from hostmesh_controller.store import Store


def open_authority(config: Config, store: Store, now: datetime) -> Authority:
    """Return the authority of a state directory, with who signs for it; blocking.

    Raises:
        AuthorityError: it cannot be had, or its root is gone while hosts trust it; says the cure.
    """
    _refuse_a_second_root(store, config.state_dir)
    return Authority.load_or_create(config.state_dir, config.trust_domain, now, upstream_of(config))


def upstream_of(config: Config) -> Upstream | None:
    """Return who signs our intermediates; None if a root of our own does."""
    ca, demand = config.ca, Demand(config.trust_domain, own_addresses(config))
    if ca.provider == "files" and ca.dir is not None:
        return CaCerts(ca.dir, demand)
    if ca.provider == "vault" and ca.token_file is not None:
        return Vault(ca.url, ca.mount, ca.token_file, ca.ca_file, timedelta(hours=ca.ttl_hours), demand)
    return None


def own_addresses(config: Config) -> tuple[str, ...]:
    """Return the names and addresses that the controller's certificate is for."""
    # Whoever is on this machine calls by loopback; it is always this controller's.
    return (*config.addresses, "localhost", "127.0.0.1", "::1")


def _refuse_a_second_root(store: Store, state_dir: Path) -> None:
    """Refuse to make a new root while hosts trust another: each of them would be locked out.

    Raises:
        AuthorityError: says what to restore.
    """
    directory = state_dir / "ca"
    joined = sum(state.joined_at is not None for state in store.host_states().values())
    if joined and not authority_files.present(directory):
        raise AuthorityError(
            f"{directory} has no root, but {joined} host(s) have joined and trust the one that was there: "
            "restore the directory from a backup. "
            "(Or start with an empty state directory; then every host must join again.)"
        )
