"""The one error of the lab: what is wrong, and what to do about it."""


class LabError(Exception):
    """Something the reader can act on; the text is shown as it is, without a traceback."""
