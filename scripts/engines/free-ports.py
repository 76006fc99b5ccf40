#!/usr/bin/env python3
"""Prints as many ports that nobody has, at no address of this machine, and that the system gives to nobody.

They are from below those that it draws for outgoing connections: a port must be free when an engine is started again too. Between
the look and the engine somebody else may take one all the same: whoever starts an engine tries other ports when it cannot listen.

usage: free-ports.py COUNT FIRST END [--also OFFSET]...

--also 10000 gives ports whose neighbours 10,000 above are free too, as a node of a Redis cluster needs it for its bus.
FREE_PORTS_FIRST in the environment, for tests, names a file of ports to be tried before all others, one a line. Each is
removed when it was tried. "12000" is looked at like any other; "12000 taken" is given without a look, as if somebody took it right after it.
"""

import argparse
import os
import pathlib
import random
import socket
import sys

# Among so many one is free, or the machine has another problem.
TRIES = 20_000


def first_ones():
    """The candidates of the file, each taken out of it."""
    path = pathlib.Path(os.environ.get("FREE_PORTS_FIRST") or os.devnull)
    while lines := path.read_text().split("\n") if path.is_file() else []:
        line, rest = lines[0], lines[1:]
        path.write_text("\n".join(rest))
        if line.strip():
            yield line.split()
        elif not rest:
            return


def candidates(first, end):
    yield from first_ones()
    for _ in range(TRIES):
        yield [random.randrange(first, end)]


def hold(ports):
    """Sockets that have these ports, or none when one of them is taken."""
    sockets = []
    try:
        for port in ports:
            sockets.append(socket.socket())
            sockets[-1].bind(("", port))
    except (OSError, OverflowError):
        for each in sockets:
            each.close()
        return []
    return sockets


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("first", type=int)
    parser.add_argument("end", type=int)
    parser.add_argument("--also", type=int, action="append", default=[])
    arguments = parser.parse_args()
    # Held until all are found, so that none is returned twice.
    found, held = [], []
    next_ones = candidates(arguments.first, arguments.end)
    while len(found) < arguments.count and (candidate := next(next_ones, None)):
        port, *word = candidate
        port = int(port)
        if word == ["taken"]:
            found.append(port)
            continue
        sockets = hold([port, *(port + offset for offset in arguments.also)])
        held += sockets
        found += [port] if sockets else []
    if len(found) < arguments.count:
        sys.exit(f"free-ports.py: only {len(found)} of {arguments.count} ports are free")
    print(*found)


main()
