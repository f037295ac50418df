"""Attestation: what proves that a host is who it says, without a token. Pure.

    evidence + trust (controller.toml) + now ─▶ Attested (a name, who vouches) | EvidenceError (why, for the log)

`challenges` makes the nonces that evidence is made for. `evidence` is what all attestors have in common; each other
module is one attestor or what it is built of. `policy` says what an attested host may be, `pending` keeps those that
wait for an operator. `returning` decides whether a host may come back by its last key.
"""
