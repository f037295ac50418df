"""The privileged part of an upgrade: a program of root's, hostmesh-upgrade@.service, that installs one package.

    request   what it is asked for, by whoever may start the unit          pure
    trusted   files of root's, and files that are nobody's to trust
    record    what it remembers of its own, in /var/lib/hostmesh-upgrade
    packages  dpkg and apt, rpm and dnf
    witness   whether the new agent comes up                               deciding is pure
    program   request ▶ may it? ▶ fetch ▶ keep the old one ▶ install ▶ watch ▶ done, or put back as it was

The agent asks for it and may be in the wrong hands: nothing that it says or wrote down is believed. What counts is
agent.toml, the signature of the owner's key, the floor, and what the host's own package manager trusts.
"""
