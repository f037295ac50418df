"""Retries of a route, with Istio's defaults."""

from http import HTTPStatus
from typing import Final

from envoy.config.route.v3.route_components_pb2 import RetryPolicy
from envoy.extensions.retry.host.previous_hosts.v3.previous_hosts_pb2 import PreviousHostsPredicate
from envoy.extensions.retry.priority.previous_priorities.v3.previous_priorities_config_pb2 import (
    PreviousPrioritiesConfig,
)
from google.protobuf.wrappers_pb2 import UInt32Value

from hostmesh_controller.model.http_actions import InboundRetries, Retries
from hostmesh_controller.xds.encoding import any_of, duration

RETRY_ON: Final = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
"""What most likely never reached the program."""
INBOUND_RETRY_ON: Final = "reset-before-request"
"""What the program never saw: it closed an idle connection while a request was on its way. Safe for any method."""
ATTEMPTS: Final = 2
_SELECTION_ATTEMPTS: Final = 5
"""Istio's: how often another endpoint is chosen when one comes up that was tried already."""
_UPDATE_FREQUENCY: Final = 2
"""Istio's: after how many tries the localities that were tried are left out."""
_BY_CODE: Final = "retriable-status-codes"
_STATUS_CODES: Final = frozenset(str(status.value) for status in HTTPStatus)


def retry_policy(retries: Retries | None, *, hashed: bool) -> RetryPolicy | None:
    """Return a route's retries, or None if it has none.

    Args:
        retries: what the route says, or else the whole mesh. None: Istio's default.
        hashed: the endpoint follows from the request, so that a retry goes to the same one.
    """
    policy = RetryPolicy(
        retry_on=RETRY_ON,
        num_retries=UInt32Value(value=ATTEMPTS),
        host_selection_retry_max_attempts=_SELECTION_ATTEMPTS,
    )
    elsewhere = not hashed
    if retries is not None:
        if not retries.attempts:
            return None
        _set(policy, retries)
        if retries.retry_ignore_previous_hosts is not None:
            elsewhere = retries.retry_ignore_previous_hosts
    if elsewhere:
        policy.retry_host_predicate.add(
            name="envoy.retry_host_predicates.previous_hosts", typed_config=any_of(PreviousHostsPredicate())
        )
    return policy


def inbound_retry_policy(retries: InboundRetries | None) -> RetryPolicy | None:
    """Return the retries of a proxy at its own program, or None if it has none; `retries` None is Istio's default."""
    policy = RetryPolicy(retry_on=INBOUND_RETRY_ON, num_retries=UInt32Value(value=ATTEMPTS))
    if retries is not None:
        if not retries.attempts:
            return None
        _set_tries(policy, retries)
    return policy


def _set(policy: RetryPolicy, retries: Retries) -> None:
    _set_tries(policy, retries)
    if retries.per_try_timeout is not None:
        policy.per_try_timeout.CopyFrom(duration(retries.per_try_timeout.total_seconds()))
    if retries.retry_remote_localities:
        policy.retry_priority.name = "envoy.retry_priorities.previous_priorities"
        config = PreviousPrioritiesConfig(update_frequency=_UPDATE_FREQUENCY)
        policy.retry_priority.typed_config.CopyFrom(any_of(config))


def _set_tries(policy: RetryPolicy, retries: Retries | InboundRetries) -> None:
    policy.num_retries.value = retries.attempts
    if retries.retry_on:
        _set_conditions(policy, retries.retry_on)
    if retries.backoff is not None:
        policy.retry_back_off.base_interval.CopyFrom(duration(retries.backoff.total_seconds()))


def _set_conditions(policy: RetryPolicy, text: str) -> None:
    # Istio takes numbers among the conditions as status codes.
    parts = [part.strip() for part in text.split(",") if part.strip()]
    codes = [int(part) for part in parts if part in _STATUS_CODES]
    conditions = [part for part in parts if part not in _STATUS_CODES]
    if codes and _BY_CODE not in conditions:
        conditions.append(_BY_CODE)
    policy.retry_on = ",".join(conditions)
    policy.retriable_status_codes.extend(codes)
