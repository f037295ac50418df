"""What cannot be seen in one object alone: do objects fit each other?

world is the set as it would be; routing, placement and services look at it for one object and give findings.
"""
