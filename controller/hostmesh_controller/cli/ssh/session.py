"""Commands on one host, by fabric. Each is bounded in time there and here, and no secret is in its arguments."""

import io
import shlex
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hostmesh_controller.cli.ssh.host_keys import FAMILIES, HostKeys, fingerprint_of
from hostmesh_controller.cli.ssh.place import Place
from hostmesh_controller.cli.ssh.secrets import Secrets
from hostmesh_controller.cli.ssh.steps import StepError

CONNECT_S: Final = 15
_SLACK_S: Final = 10
"""How much longer than the host we wait ourselves: for a host that is gone without a word."""
_TIMED_OUT: Final = 124
_KEY_NAMES: Final = {
    "ed25519": ("ssh-ed25519",),
    "ecdsa": ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
    "rsa": ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"),
}


class LostError(StepError):
    """The connection ended, or the host no longer answers: what it was told may be done, or still be under way."""


@dataclass(frozen=True, slots=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """The last of what it said, for people."""
        return " | ".join((self.err.strip() or self.out.strip()).splitlines()[-4:])[-600:]


@dataclass(frozen=True, slots=True)
class Access:
    """How to come into a host."""

    place: Place
    keys: HostKeys
    secrets: Secrets
    identity: Path | None = None
    sudo: bool = False


@dataclass(slots=True)
class Session:
    """An open connection. `sudo_password` is None where sudo asks for none."""

    access: Access
    connection: Any
    sudo_password: str | None = field(default=None, repr=False)

    def run(self, script: str, *, root: bool = False, text_in: str | None = None, within_s: int = 30) -> Answer:
        """Run a shell script to its end; what it reads is `text_in`, or nothing.

        Raises:
            LostError: the host is gone.
            StepError: the script did not end in time.
        """
        body = script if text_in is not None else f"exec </dev/null\n{script}"
        command = shlex.join(["timeout", "-k", "5", str(within_s), "env", "LC_ALL=C", "sh", "-c", body])
        text = text_in
        if root and self.access.sudo:
            if self.sudo_password is None:
                command = f"sudo -n -k -- {command}"
            else:
                command = f"sudo -S -k -p '' -- {command}"
                text = f"{self.sudo_password}\n{text or ''}"
        answer = self._run(command, text, within_s)
        if answer.code == _TIMED_OUT:
            raise StepError(f"{self.access.place}: not done within {within_s} s: {answer.said}", "look at the host")
        return answer

    def _run(self, command: str, text: str | None, within_s: int) -> Answer:
        from invoke.exceptions import Failure, ThreadException
        from paramiko import SSHException

        stream = io.StringIO(text) if text is not None else False
        try:
            done = self.connection.run(
                command, hide=True, warn=True, in_stream=stream, echo_stdin=False, timeout=within_s + _SLACK_S
            )
        except (Failure, ThreadException, SSHException, OSError, EOFError) as error:
            # Their own texts hold the command, which is long and ours.
            raise self._lost(type(error).__name__) from None
        if done.exited < 0:
            raise self._lost("the connection ended")
        return Answer(done.exited, done.stdout, done.stderr)

    def _lost(self, why: str) -> LostError:
        return LostError(f"the connection to {self.access.place} was lost ({why})", "look at the host, then repeat")

    def put(self, source: Path, target: str) -> None:
        """Copy a file to the user's own place.

        Raises:
            StepError: it could not be.
        """
        from paramiko import SSHException

        try:
            self.connection.put(str(source), remote=target)
        except (SSHException, OSError, EOFError) as error:
            raise StepError(f"{source.name} could not be copied to the host: {error}", "is its disk full?") from None

    def close(self) -> None:
        with suppress(Exception):
            self.connection.close()


@dataclass(slots=True)
class Doorway:
    """Opens sessions of one host, and ends them all when everything is to end."""

    access: Access
    halted: threading.Event
    _open: list[Session] = field(default_factory=list)

    def open(self) -> Session:
        """Connect: the host's key first, then who we are, then what sudo asks for.

        Raises:
            StepError: it is not the right host, or does not let us in.
        """
        connection = _connect(self.access)
        session = Session(self.access, connection)
        self._open.append(session)
        if self.access.sudo:
            session.sudo_password = _sudo_password(session)
        return session

    def halt(self) -> None:
        """End what runs: whoever waits for a command of this host gets LostError."""
        for each in tuple(self._open):
            each.close()

    def close(self) -> None:
        self.halt()
        self._open.clear()


def _connect(access: Access) -> Any:
    offered: list[str] = []
    for families in access.keys.families(access.place):
        found = _attempt(access, families, offered.append)
        if found is not None:
            return found
    if access.keys.pins:
        raise access.keys.wrong_pin(access.place, offered)
    raise StepError(f"{access.place} has no host key that is understood", "give it one of ed25519")


def _attempt(access: Access, families: tuple[str, ...], offer: Callable[[str], None]) -> Any:
    """Return a connection; None when the host showed no key of these families, or none that is pinned."""
    import paramiko

    place, keys = access.place, access.keys
    shown: list[tuple[str, bytes]] = []

    class Policy(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]  # paramiko has no types
        """Called before anything of ours is sent: paramiko has no key of any host, so every one is missing."""

        def missing_host_key(self, _client: object, _hostname: str, key: Any) -> None:
            offer(fingerprint_of(key.asbytes()))
            if not keys.judge(place, key.get_name(), key.asbytes()):
                raise _NotPinnedError
            shown.append((key.get_name(), key.asbytes()))

    connection = _connection(access, families)
    connection.client.set_missing_host_key_policy(Policy())
    try:
        connection.open()
    except _NotPinnedError:
        connection.close()
        return None
    except paramiko.ssh_exception.IncompatiblePeer:
        connection.close()
        return None
    except paramiko.AuthenticationException as error:
        connection.close()
        raise StepError(
            f"{place} does not let us in: {error}", "give the right --identity, or --ssh-password-file"
        ) from None
    except (paramiko.SSHException, OSError, EOFError) as error:
        connection.close()
        raise StepError(
            f"{place} cannot be reached by SSH: {error}", "check address, port, firewall and sshd"
        ) from None
    except BaseException:
        connection.close()
        raise
    connection.client.get_transport().set_keepalive(10)
    # Not before it has let us in: a typing error in the address teaches nobody another host's key.
    if keys.remember and (keys.pins or not keys.known(place)):
        for kind, blob in shown:
            keys.keep(place, kind, blob)
    return connection


class _NotPinnedError(Exception):
    """The host showed another key than the pinned; it may have more."""


def _connection(access: Access, families: tuple[str, ...]) -> Any:
    from fabric import Config, Connection, Remote

    class Quick(Remote):  # type: ignore[misc]  # fabric has no types
        # What it sleeps after each letter that it sends: a join string has hundreds.
        input_sleep = 0.001

        # A command that ends before it has read all says why by its exit code; one whose connection ends has none.
        def _write_proc_stdin(self, data: bytes) -> None:
            with suppress(OSError):
                super()._write_proc_stdin(data)

        def close_proc_stdin(self) -> None:
            with suppress(OSError):
                super().close_proc_stdin()

    unwanted = [name for family in FAMILIES if family not in families for name in _KEY_NAMES[family]]
    options: dict[str, Any] = {
        "disabled_algorithms": {"keys": unwanted},
        "banner_timeout": CONNECT_S,
        "auth_timeout": CONNECT_S,
        "look_for_keys": access.identity is None and not access.secrets.given("login"),
        "allow_agent": access.identity is None and not access.secrets.given("login"),
    }
    if access.identity is not None:
        options["pkey"] = _private_key(access)
    if access.secrets.given("login"):
        options["password"] = access.secrets.get("login", "password")
    # Neither the operator's ssh_config nor fabric's files decide where this goes and whom it trusts.
    config = Config(overrides={"load_ssh_configs": False, "runners": {"remote": Quick}}, lazy=True)
    return Connection(
        access.place.address,
        user=access.place.user,
        port=access.place.port,
        config=config,
        connect_kwargs=options,
        connect_timeout=CONNECT_S,
        forward_agent=False,
    )


def _private_key(access: Access) -> Any:
    import paramiko

    file = access.identity
    assert file is not None
    try:
        try:
            return paramiko.PKey.from_path(file)
        except (paramiko.PasswordRequiredException, TypeError):
            passphrase = access.secrets.get("passphrase", f"Passphrase of {file}")
            if passphrase is None:
                cure = "run it on a terminal, or give --passphrase-file"
                raise StepError(f"the key {file} has a passphrase", cure) from None
            return paramiko.PKey.from_path(file, passphrase.encode())
    except (OSError, ValueError, paramiko.SSHException, paramiko.PKey.UnknownKeyType) as error:
        raise StepError(
            f"the key {file} cannot be used: {error}", "give another --identity, or its passphrase"
        ) from None


def _sudo_password(session: Session) -> str | None:
    """Return what sudo asks for: None for nothing. Nothing else is sent before it is known to be right."""
    place = session.access.place
    if session.run(":", root=True).code == 0:
        return None
    password = session.access.secrets.get("sudo", f"sudo password on {place}")
    if password is None:
        raise StepError(
            f"sudo of {place} asks for a password", "run it on a terminal, or give --sudo-password-file FILE|fd:N"
        )
    session.sudo_password = password
    answer = session.run(":", root=True)
    session.sudo_password = None
    if answer.code != 0:
        raise StepError(f"sudo does not work on {place}: {answer.said}", "check the password and sudoers")
    return password
