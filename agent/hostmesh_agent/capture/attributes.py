"""nf_tables' netlink messages and their attributes.

The classes are our own, on pyroute2's base: the nftables classes of pyroute2 0.9 do not survive a round trip (`fib`
encodes an enumeration as a set of flags, a set element's flags and a rule's comment do not decode to what was
encoded, numbers go in and names come out). Here numbers and bytes go in and the same come out. The order of names in
each map is the numbering of linux/netfilter/nf_tables.h.
"""

# mypy: disable-error-code="misc,import-untyped"
# (pyroute2 ships no types: its base classes are Any)

from enum import IntEnum
from typing import Any, Final

from pyroute2.netlink import nla
from pyroute2.netlink.nfnetlink import nfgen_msg

Message = Any
"""A pyroute2 message, which has no type of its own."""
Attributes = dict[str, Any]

INET: Final = 1  # NFPROTO_INET
LIST_ELEMENT: Final = 1  # NFTA_LIST_ELEM
REGISTER: Final = 1  # NFT_REG_1, the only one we use; 0 is the verdict
RETURN_VERDICT: Final = -5  # NFT_RETURN
PORT_GIVEN: Final = 2  # NF_NAT_RANGE_PROTO_SPECIFIED
DESTINATION_NAT: Final = 1  # NFT_NAT_DNAT
INTERNET_CHECKSUM: Final = 1  # NFT_PAYLOAD_CSUM_INET
ADDRESS_TYPE: Final = 3  # NFT_FIB_RESULT_ADDRTYPE
OF_DESTINATION: Final = 2  # NFTA_FIB_F_DADDR
INTERVAL_SET: Final = 4  # NFT_SET_INTERVAL
RANGE_END: Final = 1  # NFT_SET_ELEM_INTERVAL_END: this value is the first behind the range
RULE_COMMENT: Final = 0  # NFTNL_UDATA_RULE_COMMENT


class Kind(IntEnum):
    """Message types (enum nf_tables_msg_types)."""

    NEW_TABLE = 0
    GET_TABLE = 1
    DELETE_TABLE = 2
    NEW_CHAIN = 3
    GET_CHAIN = 4
    DELETE_CHAIN = 5
    NEW_RULE = 6
    GET_RULE = 7
    DELETE_RULE = 8
    NEW_SET = 9
    GET_SET = 10
    DELETE_SET = 11
    NEW_SET_ELEMENTS = 12
    GET_SET_ELEMENTS = 13
    DELETE_SET_ELEMENTS = 14
    NEW_GENERATION = 15
    GET_GENERATION = 16


class Data(nla):
    """A value or a verdict."""

    nla_map = (("UNSPEC", "none"), ("VALUE", "cdata"), ("VERDICT", "Verdict"))

    class Verdict(nla):
        nla_map = (("UNSPEC", "none"), ("CODE", "sbe32"), ("CHAIN", "asciiz"))


class MetaAttributes(nla):
    nla_map = (("UNSPEC", "none"), ("DREG", "be32"), ("KEY", "be32"), ("SREG", "be32"))


class CompareAttributes(nla):
    nla_map = (("UNSPEC", "none"), ("SREG", "be32"), ("OP", "be32"), ("DATA", "Data"))
    Data = Data


class PayloadAttributes(nla):
    nla_map = (
        ("UNSPEC", "none"),
        ("DREG", "be32"),
        ("BASE", "be32"),
        ("OFFSET", "be32"),
        ("LEN", "be32"),
        ("SREG", "be32"),
        ("CSUM_TYPE", "be32"),
        ("CSUM_OFFSET", "be32"),
        ("CSUM_FLAGS", "be32"),
    )


class BitwiseAttributes(nla):
    nla_map = (
        ("UNSPEC", "none"),
        ("SREG", "be32"),
        ("DREG", "be32"),
        ("LEN", "be32"),
        ("MASK", "Data"),
        ("XOR", "Data"),
        ("OP", "be32"),
        ("DATA", "Data"),
    )
    Data = Data


class LookupAttributes(nla):
    nla_map = (
        ("UNSPEC", "none"),
        ("SET", "asciiz"),
        ("SREG", "be32"),
        ("DREG", "be32"),
        ("SET_ID", "be32"),
        ("FLAGS", "be32"),
    )


class ImmediateAttributes(nla):
    nla_map = (("UNSPEC", "none"), ("DREG", "be32"), ("DATA", "Data"))
    Data = Data


class FibAttributes(nla):
    nla_map = (("UNSPEC", "none"), ("DREG", "be32"), ("RESULT", "be32"), ("FLAGS", "be32"))


class RedirectAttributes(nla):
    nla_map = (("UNSPEC", "none"), ("PROTO_MIN", "be32"), ("PROTO_MAX", "be32"), ("FLAGS", "be32"))


class NatAttributes(nla):
    nla_map = (
        ("UNSPEC", "none"),
        ("TYPE", "be32"),
        ("FAMILY", "be32"),
        ("ADDR_MIN", "be32"),
        ("ADDR_MAX", "be32"),
        ("PROTO_MIN", "be32"),
        ("PROTO_MAX", "be32"),
        ("FLAGS", "be32"),
    )


class UnknownAttributes(nla):
    """Of an expression that we never write: raw bytes, whatever they are."""

    fields = (("value", "s"),)


class ExpressionMessage(nla):
    """One expression of a rule: its name says which attributes its data has."""

    header_type = LIST_ELEMENT
    nla_map = (("UNSPEC", "none"), ("NAME", "asciiz"), ("DATA", "data_class"))

    @staticmethod
    def data_class(self: Any, *_: Any, **__: Any) -> type[nla]:  # noqa: PLW0211 - pyroute2 calls it so
        known = DATA_CLASSES.get(self.get_attr("NAME"))
        return known or UnknownAttributes


DATA_CLASSES: dict[str, type[nla]] = {
    "meta": MetaAttributes,
    "cmp": CompareAttributes,
    "payload": PayloadAttributes,
    "bitwise": BitwiseAttributes,
    "lookup": LookupAttributes,
    "immediate": ImmediateAttributes,
    "fib": FibAttributes,
    "redir": RedirectAttributes,
    "nat": NatAttributes,
}


class TableMessage(nfgen_msg):
    nla_map = (("UNSPEC", "none"), ("NAME", "asciiz"), ("FLAGS", "be32"), ("USE", "be32"), ("HANDLE", "be64"))


class ChainMessage(nfgen_msg):
    nla_map = (
        ("UNSPEC", "none"),
        ("TABLE", "asciiz"),
        ("HANDLE", "be64"),
        ("NAME", "asciiz"),
        ("HOOK", "HookAttributes"),
        ("POLICY", "be32"),
        ("USE", "be32"),
        ("TYPE", "asciiz"),
    )

    class HookAttributes(nla):
        nla_map = (("UNSPEC", "none"), ("NUMBER", "be32"), ("PRIORITY", "sbe32"))


class RuleMessage(nfgen_msg):
    nla_map = (
        ("UNSPEC", "none"),
        ("TABLE", "asciiz"),
        ("CHAIN", "asciiz"),
        ("HANDLE", "be64"),
        ("EXPRESSIONS", "*ExpressionMessage"),
        ("COMPAT", "hex"),
        ("POSITION", "be64"),
        ("USERDATA", "cdata"),
    )
    ExpressionMessage = ExpressionMessage


class SetMessage(nfgen_msg):
    nla_map = (
        ("UNSPEC", "none"),
        ("TABLE", "asciiz"),
        ("NAME", "asciiz"),
        ("FLAGS", "be32"),
        ("KEY_TYPE", "be32"),
        ("KEY_LEN", "be32"),
        ("DATA_TYPE", "be32"),
        ("DATA_LEN", "be32"),
        ("POLICY", "be32"),
        ("DESC", "hex"),
        ("ID", "be32"),
    )


class SetElementsMessage(nfgen_msg):
    """Elements are raw bytes, a list of attributes: see `encode` and `decode`."""

    nla_map = (("UNSPEC", "none"), ("TABLE", "asciiz"), ("SET", "asciiz"), ("ELEMENTS", "cdata"), ("SET_ID", "be32"))


class GenerationMessage(nfgen_msg):
    nla_map = (("UNSPEC", "none"), ("ID", "be32"))


REPLIES: dict[int, type[nfgen_msg]] = {
    Kind.NEW_TABLE: TableMessage,
    Kind.NEW_CHAIN: ChainMessage,
    Kind.NEW_RULE: RuleMessage,
    Kind.NEW_SET: SetMessage,
    Kind.NEW_SET_ELEMENTS: SetElementsMessage,
    Kind.NEW_GENERATION: GenerationMessage,
}
"""How to read what the kernel sends."""
