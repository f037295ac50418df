"""The packages of a release: `python -m shipping packages`, `python -m shipping repository`.

    sources ▶ interpreter ─┐
    wheels ────────────────┼▶ tree ▶ parts (what is in which package) ▶ deb, rpm ▶ repository
    texts (man, completion)┘

One tree for each of the four packages, staged once and packed twice. What was made before and still holds is taken from
.cache/packages; all of it follows from what it is made of, so that two builds of one commit are the same bytes.
"""
