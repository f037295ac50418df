"""Search each packet of the bridge for a secret that no wire may carry, and for plaintext that proves that we see.

wire.py INTERFACE SECRET CONTROL     says "listening"; until its input ends; then one JSON object
"""

import json
import select
import socket
import struct
import sys

ETH_P_ALL = 3
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC, PACKET_STATISTICS = 263, 1, 1, 6
SO_RCVBUFFORCE = 33


def main() -> None:
    interface, secret, control = sys.argv[1], sys.argv[2].encode(), sys.argv[3].encode()
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    wire.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 * 1024 * 1024)
    wire.bind((interface, 0))
    # As a promiscuous port of its own bridge it is given what goes from host to host, too.
    membership = struct.pack("iHH8s", socket.if_nametoindex(interface), PACKET_MR_PROMISC, 0, b"")
    wire.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, membership)
    print("listening", flush=True)
    found = {"packets": 0, "dropped": 0, "plaintext": 0, "control": 0}
    while True:
        ready, _, _ = select.select([wire, sys.stdin], [], [])
        if wire in ready:
            frame = wire.recv(65536)
            found["packets"] += 1
            found["plaintext"] += secret in frame
            found["control"] += control in frame
        elif sys.stdin in ready:
            break
    _, found["dropped"] = struct.unpack("II", wire.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    print(json.dumps(found))


main()
