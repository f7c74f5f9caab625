"""The port of the page, taken before anything slow begins."""

from __future__ import annotations

import errno
import socket

from emerald_jax.config import ConfigError

#: The loopback: nobody else's machine reaches the page.
HOST = "127.0.0.1"


def take_port(port: int) -> socket.socket:
    """A socket that listens on the loopback; a browser that comes early waits for the server.

    Args:
        port: 0 takes a free one.

    Raises:
        ConfigError: in one line, when the port cannot be had.
    """
    taken = socket.socket()
    # A server that has just stopped leaves the port in a state that would refuse it for a minute.
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((HOST, port))
        taken.listen()
    except OSError as error:
        taken.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            why = "in use" if error.errno == errno.EADDRINUSE else "not ours to take"
            raise ConfigError(f"port {port} is {why}: choose another --port") from error
        raise
    return taken
