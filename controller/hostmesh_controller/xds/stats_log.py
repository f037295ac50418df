"""Counters that Envoy makes of its access logs: a statistic with labels that tell of each request or connection.

Envoy's logger is newer than its messages in xds-protos: it is written as a TypedStruct, which Envoy reads as its own
message.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from envoy.config.accesslog.v3.accesslog_pb2 import AccessLog
from xds.type.v3.typed_struct_pb2 import TypedStruct

from hostmesh_controller.xds.encoding import any_of

NAME: Final = "envoy.access_loggers.stats"
_TYPES: Final = "type.googleapis.com/"
_CONFIG: Final = f"{_TYPES}envoy.extensions.access_loggers.stats.v3.Config"
_ACTION: Final = f"{_TYPES}envoy.extensions.matching.actions.transform_stat.v3.TransformStat"
_INPUT: Final = f"{_TYPES}envoy.extensions.matching.common_inputs.stats.v3.StatTagValueInput"


@dataclass(frozen=True, slots=True)
class Label:
    """A label and its value, in Envoy's command operators.

    `known` bounds it: a regular expression of the values that stay as they are, all others become `other`. `becomes`
    is what the known ones become instead. A label that callers can fill needs a bound, or they fill Envoy's memory.
    """

    name: str
    value: str
    known: str = ""
    other: str = ""
    becomes: str = ""

    def tag(self) -> Mapping[str, Any]:
        """Return the label as Envoy's JSON."""
        tag: dict[str, Any] = {"name": self.name, "value_format": self.value}
        if self.known:
            tag["rules"] = self._rules()
        return tag

    def _rules(self) -> Mapping[str, Any]:
        value = {"name": "value", "typed_config": {"@type": _INPUT}}
        expression = {"safe_regex": {"google_re2": {}, "regex": self.known}}
        is_known = {"single_predicate": {"input": value, "value_match": expression}}
        if self.becomes:
            listed = {"predicate": is_known, "on_match": _becomes(self.becomes)}
            return {"matcher_list": {"matchers": [listed]}, "on_no_match": _becomes(self.other)}
        listed = {"predicate": {"not_matcher": is_known}, "on_match": _becomes(self.other)}
        return {"matcher_list": {"matchers": [listed]}}


def counting(scope: str, counter: str, labels: Iterable[Label], max_counters: int) -> AccessLog:
    """Return the log that counts each entry under its labels.

    Args:
        scope: what the statistic's name begins with.
        counter: what it is called there.
        labels: in the order in which the name has them.
        max_counters: with so many different labels, entries with others are not counted. What is not used any more is
            forgotten in time.
    """
    counted: Any = {"stat": {"name": counter, "tags": [each.tag() for each in labels]}, "value_fixed": 1}
    bounds: Any = {"prefix": scope, "max_counters": max_counters, "enable_eviction": True}
    config = TypedStruct(type_url=_CONFIG)
    config.value.update({"stats_scope": bounds, "counters": [counted]})
    return AccessLog(name=NAME, typed_config=any_of(config))


def _becomes(value: str) -> Mapping[str, Any]:
    changed = {"@type": _ACTION, "update_tag": {"new_tag_value": value}}
    return {"action": {"name": "becomes", "typed_config": changed}}
