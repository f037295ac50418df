"""What goes wrong between capture and the host."""


class CaptureError(RuntimeError):
    """The kernel refused, or cannot do, what capture needs. The message says who must act."""
