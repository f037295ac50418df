"""The way to the controller: unix socket or HTTPS, and errors that name the address and the cure."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote, urlsplit

from hostmesh_controller.cli.failure import CliError, refused

if TYPE_CHECKING:
    import httpx

DEFAULT_ADDRESS: Final = "unix:///var/lib/hostmesh-controller/admin.sock"
TIMEOUT_S: Final = 60.0


def part(name: str) -> str:
    """Return a name as one part of a path: whatever is in it, it leads to no other route."""
    return quote(name, safe="") if name not in {".", ".."} else quote(name).replace(".", "%2E")


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the controller is and how to show who calls. Nothing is opened before the first request."""

    address: str = DEFAULT_ADDRESS
    token: str = field(default="", repr=False)
    ca: str = ""
    """Path of the root to trust, PEM. Empty: the system's roots."""
    token_file: str = ""
    """Path of a file with the token, in place of `token`."""
    cert: str = ""
    """Path of a client certificate, PEM. Empty: none is shown."""
    key: str = ""
    """Path of its private key, PEM. Empty: it is in the same file."""

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return self.request("GET", path, params=params)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self.request("POST", path, body=body)

    def delete(self, path: str) -> dict[str, Any]:
        return self.request("DELETE", path)

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> dict[str, Any]:
        """Ask the controller.

        Raises:
            CliError: it cannot be reached, or it refuses.
        """
        with self._client(timeout_s) as client:
            answer = client.request(method, path, params=params, json=body)
        return self._result(answer)

    @contextmanager
    def _client(self, timeout_s: float) -> Iterator[httpx.Client]:
        import httpx

        token = self._token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with httpx.Client(
                base_url=self._base_url(),
                transport=self._transport(),
                headers=headers,
                timeout=timeout_s,
                trust_env=False,
            ) as client:
                yield client
        except httpx.TransportError as error:
            raise CliError(self._unreachable(error)) from error

    def _token(self) -> str:
        if not self.token_file:
            text, where = self.token, "HOSTMESH_TOKEN"
        else:
            where = self.token_file
            try:
                text = Path(where).read_text(encoding="ascii")
            except OSError as error:
                raise CliError(f"error: the token file {where} cannot be read: {error.strerror}") from None
            except UnicodeDecodeError:
                text = "none at all"
        text = text.strip()
        # What a header cannot carry must not reach the library: its error would show the token.
        if not text.isascii() or not text.isprintable() or " " in text:
            raise CliError(f"error: {where} holds no API token: make one with `hostmesh api-token create`")
        return text

    def _base_url(self) -> str:
        return "http://hostmesh" if self.address.startswith("unix:") else self.address.rstrip("/")

    def _transport(self) -> httpx.HTTPTransport:
        import httpx

        url = urlsplit(self.address)
        if url.scheme == "unix" and url.path:
            return httpx.HTTPTransport(uds=url.path)
        if url.scheme != "https" or not url.hostname:
            raise CliError(f"error: HOSTMESH_ADDRESS '{self.address}' is neither unix:///PATH nor https://HOST:PORT")
        try:
            context = ssl.create_default_context(cafile=self.ca or None)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
        except (OSError, ssl.SSLError) as error:
            raise CliError(f"error: the root certificate {self.ca} (HOSTMESH_CA) cannot be used: {error}") from error
        if self.cert:
            try:
                context.load_cert_chain(self.cert, self.key or None)
            except (OSError, ssl.SSLError) as error:
                files = " and ".join(filter(None, (self.cert, self.key)))
                reason = "no certificate with its key" if isinstance(error, ssl.SSLError) else error.strerror
                raise CliError(f"error: the client certificate {files} cannot be used: {reason}") from error
        return httpx.HTTPTransport(verify=context)

    def _unreachable(self, error: Exception) -> str:
        head = f"error: the controller at {self.address} cannot be reached: {error}"
        url = urlsplit(self.address)
        if url.scheme == "unix":
            try:
                exists = Path(url.path).exists()
            except PermissionError:
                exists = True
            if exists and "denied" in str(error).lower():
                return f"{head}\n  The socket is root's: run as root, or call by https:// with HOSTMESH_TOKEN."
            if exists:
                return f"{head}\n  Is it running? See `systemctl status hostmesh-controller` and its log."
            return (
                f"{head}\n  Start hostmesh-controller on this machine, or set HOSTMESH_ADDRESS "
                "(unix:///…/admin.sock or https://HOST:15014)."
            )
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return f"{head}\n  Set HOSTMESH_CA to the mesh's roots (ca/bundle.pem in the controller's state_dir)."
        return f"{head}\n  Check HOSTMESH_ADDRESS, the network, and that the controller runs."

    def _result(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            body = answer.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise CliError(
                f"error: {self.address} answered {answer.status_code} without JSON: is it a hostmesh controller?"
            )
        if answer.is_success:
            return cast("dict[str, Any]", body)
        error = body.get("error", {})
        message, code = error.get("message", f"status {answer.status_code}"), error.get("code", "")
        raise refused(str(message), error.get("problems", ()), str(code))
