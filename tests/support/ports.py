"""A place to listen at that nobody has."""

import socket
from contextlib import closing


def free() -> str:
    """An address and port of loopback."""
    with closing(socket.create_server(("127.0.0.1", 0))) as found:
        return f"127.0.0.1:{found.getsockname()[1]}"
