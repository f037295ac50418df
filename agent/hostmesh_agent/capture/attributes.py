"""nf_tables' attributes: the layout of each message and of each kind of expression. Pure.

The layouts are our own: the nftables classes of pyroute2 0.9 do not survive a round trip (`fib` encodes an
enumeration as a set of flags, a set element's flags and a rule's comment do not decode to what was encoded, numbers
go in and names come out). Here numbers and bytes go in and the same come out. Numbers are those of
linux/netfilter/nf_tables.h.
"""

import struct
from enum import IntEnum
from typing import Final

from hostmesh_agent.capture.codec import NESTED, Layout, Number, Raw, Text

INET: Final = 1  # NFPROTO_INET
LIST_ELEMENT: Final = 1  # NFTA_LIST_ELEM
REGISTER: Final = 1  # NFT_REG_1; 0 is the verdict
SECOND_REGISTER: Final = 2  # NFT_REG_2: a port, beside an address in the first
RETURN_VERDICT: Final = -5  # NFT_RETURN
DROP_VERDICT: Final = 0  # NF_DROP
ADDRESS_GIVEN: Final = 1  # NF_NAT_RANGE_MAP_IPS
PORT_GIVEN: Final = 2  # NF_NAT_RANGE_PROTO_SPECIFIED
DESTINATION_NAT: Final = 1  # NFT_NAT_DNAT
INTERNET_CHECKSUM: Final = 1  # NFT_PAYLOAD_CSUM_INET
ASKED_ADDRESS: Final = 20  # NFT_CT_DST_IP
ZONE: Final = 17  # NFT_CT_ZONE
CONNECTION_DIRECTION: Final = 1  # NFT_CT_DIRECTION
ADDRESS_TYPE: Final = 3  # NFT_FIB_RESULT_ADDRTYPE
OF_DESTINATION: Final = 2  # NFTA_FIB_F_DADDR
SOCKET_IS_TRANSPARENT: Final = 0  # NFT_SOCKET_TRANSPARENT
CGROUP_OF_SOCKET: Final = 3  # NFT_SOCKET_CGROUPV2
TCP_RESET: Final = 1  # NFT_REJECT_TCP_RST
NATIVE_KEY: Final = b"\x00\x04" + struct.pack("=I", 1)  # NFTNL_UDATA_SET_KEYBYTEORDER: for who lists the set
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


_NUMBER: Final = Number()
_SIGNED: Final = Number(signed=True)
_BYTE: Final = Number(length_bytes=1)
_LONG: Final = Number(length_bytes=8)
_TEXT: Final = Text()
_RAW: Final = Raw()

_VERDICT: Final = Layout(CODE=(1, _SIGNED), CHAIN=(2, _TEXT))
DATA: Final = Layout(VALUE=(1, _RAW), VERDICT=(2, _VERDICT))
"""A value or a verdict."""

EXPRESSION: Final = Layout(NAME=(1, _TEXT), DATA=(2, Raw(NESTED)))
"""One expression of a rule: its name says which layout its data has."""

DATA_LAYOUTS: Final = {
    "meta": Layout(DREG=(1, _NUMBER), KEY=(2, _NUMBER), SREG=(3, _NUMBER)),
    "cmp": Layout(SREG=(1, _NUMBER), OP=(2, _NUMBER), DATA=(3, DATA)),
    "payload": Layout(
        DREG=(1, _NUMBER),
        BASE=(2, _NUMBER),
        OFFSET=(3, _NUMBER),
        LEN=(4, _NUMBER),
        SREG=(5, _NUMBER),
        CSUM_TYPE=(6, _NUMBER),
        CSUM_OFFSET=(7, _NUMBER),
        CSUM_FLAGS=(8, _NUMBER),
    ),
    "bitwise": Layout(
        SREG=(1, _NUMBER),
        DREG=(2, _NUMBER),
        LEN=(3, _NUMBER),
        MASK=(4, DATA),
        XOR=(5, DATA),
        OP=(6, _NUMBER),
        DATA=(7, DATA),
    ),
    "socket": Layout(KEY=(1, _NUMBER), DREG=(2, _NUMBER), LEVEL=(3, _NUMBER)),
    "reject": Layout(TYPE=(1, _NUMBER), ICMP_CODE=(2, _BYTE)),
    "lookup": Layout(SET=(1, _TEXT), SREG=(2, _NUMBER), DREG=(3, _NUMBER), SET_ID=(4, _NUMBER), FLAGS=(5, _NUMBER)),
    "immediate": Layout(DREG=(1, _NUMBER), DATA=(2, DATA)),
    "fib": Layout(DREG=(1, _NUMBER), RESULT=(2, _NUMBER), FLAGS=(3, _NUMBER)),
    "ct": Layout(DREG=(1, _NUMBER), KEY=(2, _NUMBER), DIRECTION=(3, Number(1)), SREG=(4, _NUMBER)),
    "redir": Layout(PROTO_MIN=(1, _NUMBER), PROTO_MAX=(2, _NUMBER), FLAGS=(3, _NUMBER)),
    "nat": Layout(
        TYPE=(1, _NUMBER),
        FAMILY=(2, _NUMBER),
        ADDR_MIN=(3, _NUMBER),
        ADDR_MAX=(4, _NUMBER),
        PROTO_MIN=(5, _NUMBER),
        PROTO_MAX=(6, _NUMBER),
        FLAGS=(7, _NUMBER),
    ),
}
"""Of the expressions that we write."""

FOREIGN_LAYOUTS: Final = {"target": Layout(NAME=(1, _TEXT), REVISION=(2, _NUMBER), INFO=(3, _RAW))}
"""Of expressions that other programs write and that are looked at: iptables' targets."""

TABLE: Final = Layout(NAME=(1, _TEXT), FLAGS=(2, _NUMBER), USE=(3, _NUMBER), HANDLE=(4, _LONG))
CHAIN: Final = Layout(
    TABLE=(1, _TEXT),
    HANDLE=(2, _LONG),
    NAME=(3, _TEXT),
    HOOK=(4, Layout(NUMBER=(1, _NUMBER), PRIORITY=(2, _SIGNED))),
    POLICY=(5, _NUMBER),
    USE=(6, _NUMBER),
    TYPE=(7, _TEXT),
)
RULE: Final = Layout(
    TABLE=(1, _TEXT),
    CHAIN=(2, _TEXT),
    HANDLE=(3, _LONG),
    EXPRESSIONS=(4, Raw(NESTED)),
    COMPAT=(5, _RAW),
    POSITION=(6, _LONG),
    USERDATA=(7, _RAW),
)
"""Expressions are raw bytes, a list of attributes: see `encode` and `decode`."""
SET: Final = Layout(
    TABLE=(1, _TEXT),
    NAME=(2, _TEXT),
    FLAGS=(3, _NUMBER),
    KEY_TYPE=(4, _NUMBER),
    KEY_LEN=(5, _NUMBER),
    DATA_TYPE=(6, _NUMBER),
    DATA_LEN=(7, _NUMBER),
    POLICY=(8, _NUMBER),
    DESC=(9, _RAW),
    ID=(10, _NUMBER),
    USERDATA=(13, _RAW),
)
SET_ELEMENTS: Final = Layout(TABLE=(1, _TEXT), SET=(2, _TEXT), ELEMENTS=(3, Raw(NESTED)), SET_ID=(4, _NUMBER))
"""Elements are raw bytes, a list of attributes: see `encode` and `decode`."""
ELEMENT: Final = Layout(KEY=(1, DATA), FLAGS=(3, _NUMBER))
GENERATION: Final = Layout(ID=(1, _NUMBER))
