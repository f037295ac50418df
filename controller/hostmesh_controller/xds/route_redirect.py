"""Answers that a route gives by itself."""

from base64 import b64decode
from typing import Final

from envoy.config.core.v3.base_pb2 import DataSource
from envoy.config.route.v3.route_components_pb2 import DirectResponseAction, RedirectAction

from hostmesh_controller.model.virtual_service import DirectResponse, HttpRedirect

_CODES: Final = {
    301: RedirectAction.MOVED_PERMANENTLY,
    302: RedirectAction.FOUND,
    303: RedirectAction.SEE_OTHER,
    307: RedirectAction.TEMPORARY_REDIRECT,
    308: RedirectAction.PERMANENT_REDIRECT,
}
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def redirect_action(redirect: HttpRedirect, port: int, *, tls: bool) -> RedirectAction:
    """Return where the caller is sent.

    Args:
        redirect: what the route says.
        port: which was called.
        tls: over TLS.
    """
    action = RedirectAction(
        host_redirect=redirect.authority or "",
        scheme_redirect=redirect.scheme or "",
        response_code=_CODES[redirect.redirect_code or 301],
    )
    if redirect.prefix_rewrite:
        action.prefix_rewrite = redirect.prefix_rewrite
    elif redirect.uri:
        action.path_redirect = redirect.uri
    # FROM_PROTOCOL_DEFAULT is what Envoy does by itself.
    number = port if redirect.derive_port == "FROM_REQUEST_PORT" else redirect.port or 0
    if number != _DEFAULT_PORTS[redirect.scheme or ("https" if tls else "http")]:
        action.port_redirect = number
    return action


def direct_response(answer: DirectResponse) -> DirectResponseAction:
    action = DirectResponseAction(status=answer.status)
    body = answer.body
    if body is not None and body.string is not None:
        action.body.CopyFrom(DataSource(inline_string=body.string))
    elif body is not None and body.bytes is not None:
        action.body.CopyFrom(DataSource(inline_bytes=b64decode(body.bytes)))
    return action
