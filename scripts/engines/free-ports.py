#!/usr/bin/env python3
"""Prints as many ports of loopback that nobody has, and that the system gives to nobody.

They are from below those that it draws for outgoing connections: a port must be free when an engine is started again too.

usage: free-ports.py COUNT FIRST END
"""

import random
import socket
import sys

count, first, end = map(int, sys.argv[1:])
held, ports = [], []
while len(ports) < count:
    port = random.randrange(first, end)
    candidate = socket.socket()
    try:
        candidate.bind(("127.0.0.1", port))
    except OSError:
        continue
    # Held until all are found, so that none is found twice.
    held.append(candidate)
    ports.append(port)
print(*ports)
