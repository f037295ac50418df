"""What goes wrong on purpose, and shares of requests."""

from typing import Final

from envoy.extensions.filters.common.fault.v3.fault_pb2 import FaultDelay
from envoy.extensions.filters.http.fault.v3.fault_pb2 import FaultAbort, HTTPFault
from envoy.type.v3.percent_pb2 import FractionalPercent

from hostmesh_controller.model.virtual_service import Fault, Percentage
from hostmesh_controller.xds.encoding import duration

_GRPC_CODES: Final = {
    "OK": 0,
    "CANCELLED": 1,
    "UNKNOWN": 2,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 10,
    "OUT_OF_RANGE": 11,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "DATA_LOSS": 15,
    "UNAUTHENTICATED": 16,
}


def faults(fault: Fault) -> HTTPFault:
    """Return the faults of a route. Without a percentage they are of no request, as in Istio."""
    result = HTTPFault()
    if fault.delay is not None:
        delay = fault.delay
        share = hundredths(delay.percent or 0) if delay.percentage is None else millionths(delay.percentage)
        fixed = duration(delay.fixed_delay.total_seconds())
        result.delay.CopyFrom(FaultDelay(fixed_delay=fixed, percentage=share))
    if fault.abort is not None:
        abort = FaultAbort()
        if fault.abort.percentage is not None:
            abort.percentage.CopyFrom(millionths(fault.abort.percentage))
        if fault.abort.http_status is not None:
            abort.http_status = fault.abort.http_status
        elif fault.abort.grpc_status is not None:
            abort.grpc_status = _GRPC_CODES[fault.abort.grpc_status]
        result.abort.CopyFrom(abort)
    return result


def hundredths(percent: int) -> FractionalPercent:
    return FractionalPercent(numerator=percent)


def millionths(percentage: Percentage) -> FractionalPercent:
    """Return a share in Envoy's smallest step; what is finer is cut off, as in Istio."""
    return FractionalPercent(numerator=int(percentage.value * 10_000), denominator=FractionalPercent.MILLION)
