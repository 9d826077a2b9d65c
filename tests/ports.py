"""Ports for servers that cannot pick one themselves."""

import contextlib
import random
import socket

# Below those that Linux gives to outgoing connections, which come and go all the time.
RANGE = range(10_240, 32_768)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that were free a moment ago, all different.

    Drawn by the system's chance: tests that run beside each other may share a seed.
    """
    ports: list[int] = []
    with contextlib.ExitStack() as held:
        while len(ports) < count:
            port = random.SystemRandom().choice(RANGE)
            try:
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
    return ports
