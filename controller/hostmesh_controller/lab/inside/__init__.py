"""Programs that run in the lab's namespaces, started as `python -I -S`: standard library only.

world and host are the process number 1 of their namespaces; enter runs a command in one of them.
"""
