#!/usr/bin/env python3
"""A whole goim client by hand: raw sockets, the Python standard library, nothing else.

Two clients, one over TCP and one over WebSocket, authenticate, join rooms, and get pushes by key, by member, by room
and to all, made over HTTP as any backend would. Prints each step; exits with 1 at the first that is not as it should
be. Its rooms, keys and operation are drawn for each run: other clients of the server see nothing of it.

usage: socket-check.py [--host HOST] [--tcp 3101] [--websocket 3102] [--http 3111] [--api-key KEY]
"""
import argparse
import base64
import hashlib
import itertools
import json
import os
import socket
import struct
import sys
import time
import urllib.request

HEADER = struct.Struct(">ihhii")  # length of the whole packet, length of the header, version, operation, sequence
HEARTBEAT, AUTH, BATCH, CHANGE_ROOM, SUBSCRIBE, UNSUBSCRIBE = 2, 7, 9, 12, 14, 16
RUN = os.urandom(4).hex()
CHAT = 1_000_000 + int(RUN, 16) % 1_000_000  # an operation of the application: 1000 or more
PATIENCE = 5  # seconds


def packet(operation, sequence, body=b""):
    return HEADER.pack(HEADER.size + len(body), HEADER.size, 1, operation, sequence) + body


def packets(data):
    """What is in a batch, or in one WebSocket message: (operation, sequence, body) of each."""
    while data:
        length, header_length, _version, operation, sequence = HEADER.unpack_from(data)
        yield operation, sequence, data[header_length:length]
        data = data[length:]


class Tcp:
    """Packets one after another on a stream; the length in front tells where each ends."""

    name = "tcp"

    def __init__(self, address):
        self.socket = socket.create_connection(address, timeout=PATIENCE)
        self.stream = self.socket.makefile("rb")

    def send(self, data):
        self.socket.sendall(data)

    def exactly(self, count):
        data = self.stream.read(count)
        if len(data) < count:
            raise EOFError("the server closed the connection")
        return data

    def receive(self):
        head = self.exactly(HEADER.size)
        return head + self.exactly(HEADER.unpack(head)[0] - HEADER.size)


class WebSocket(Tcp):
    """One packet in one binary message; from the client masked, from the server not (RFC 6455)."""

    name = "websocket"

    def __init__(self, address):
        super().__init__(address)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET /sub HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        answer = b"".join(iter(self.stream.readline, b"\r\n"))
        digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
        if not answer.startswith(b"HTTP/1.1 101 ") or base64.b64encode(digest) not in answer:
            raise ValueError(f"no upgrade to WebSocket: {answer!r}")

    def send(self, data):
        mask = os.urandom(4)
        length = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
        masked = bytes(byte ^ key for byte, key in zip(data, itertools.cycle(mask)))
        self.socket.sendall(b"\x82" + length + mask + masked)

    def receive(self):
        first, length = self.exactly(2)
        if first != 0x82:
            raise ValueError(f"not a whole binary message: {first:#x}")
        if length == 126:
            length = int.from_bytes(self.exactly(2), "big")
        elif length == 127:
            length = int.from_bytes(self.exactly(8), "big")
        return self.exactly(length)


class Client:
    def __init__(self, transport, member, room):
        self.transport = transport
        self.name, self.member, self.room = transport.name, member, room
        self.key = f"{transport.name}-{RUN}"
        self.sequence = 0
        self.inbox = []

    def receive(self):
        """The next packet. Over WebSocket pushes come in batches, over TCP they simply follow each other."""
        while not self.inbox:
            for operation, sequence, body in packets(self.transport.receive()):
                self.inbox += packets(body) if operation == BATCH else [(operation, sequence, body)]
        return self.inbox.pop(0)

    def request(self, operation, body=b""):
        """Sends a packet and returns the reply: the sequence is that of the request."""
        self.sequence += 1
        self.transport.send(packet(operation, self.sequence, body))
        reply, sequence, body = self.receive()
        expect(sequence, self.sequence, f"{self.name}: sequence of the reply to operation {operation}")
        return reply, body

    def authenticate(self):
        token = {"mid": self.member, "key": self.key, "room_id": self.room, "platform": "check", "accepts": [CHAT]}
        return self.request(AUTH, json.dumps(token).encode())


class Server:
    """The HTTP side: what a backend uses."""

    def __init__(self, url, api_key):
        self.url, self.headers = url, {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def push(self, path, body):
        request = urllib.request.Request(f"{self.url}/goim/push/{path}", body.encode(), self.headers, method="POST")
        # Not through a proxy that the environment may name.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=PATIENCE) as answer:
            expect(json.load(answer)["code"], 0, f"answer to a push to {path}")


class Failed(Exception):
    pass


def expect(got, wanted, what):
    if got != wanted:
        raise Failed(f"{what}: {got!r}, expected {wanted!r}")


def step(text):
    print(f"ok    {text}", flush=True)


def delivered(server, path, receivers, others):
    """Pushes, and looks at who got it. `others` find a packet that was not for them in place of a heartbeat reply."""
    since = time.perf_counter()
    body = f"to {path.split('?')[0]} 你好"
    server.push(path, body)
    for client in receivers:
        expect(client.receive(), (CHAT, 0, body.encode()), f"{client.name}: push to {path}")
    elapsed = (time.perf_counter() - since) * 1000
    for client in others:
        expect(client.request(HEARTBEAT)[0], HEARTBEAT + 1, f"{client.name}: after a push for others")
    names = " and ".join(client.name for client in receivers)
    step(f"POST /goim/push/{path} -> {names}, {elapsed:.1f} ms")


def check(tcp_address, websocket_address, server):
    member = int(RUN, 16) + 1
    room, other_room = f"check://{RUN}", f"check://{RUN}-other"
    tcp = Client(Tcp(tcp_address), member, room)
    websocket = Client(WebSocket(websocket_address), member + 1, room)
    step("connected over TCP and WebSocket, upgrade answered")
    for client in (tcp, websocket):
        expect(client.authenticate(), (AUTH + 1, b""), f"{client.name}: auth")
        step(f"{client.name}: authenticated as member {client.member}, key {client.key}, in {client.room}")
    # The auth reply may arrive before the session is in its room. A later reply shows that it is.
    for client in (tcp, websocket):
        operation, body = client.request(HEARTBEAT)
        expect((operation, len(body)), (HEARTBEAT + 1, 4), f"{client.name}: heartbeat")
        step(f"{client.name}: heartbeat answered, {int.from_bytes(body, 'big')} in the room")

    key_room = f"room?operation={CHAT}&type=check&room={RUN}"
    delivered(server, f"keys?operation={CHAT}&keys={tcp.key}", [tcp], [websocket])
    delivered(server, f"keys?operation={CHAT}&keys={tcp.key}&keys={websocket.key}", [tcp, websocket], [])
    delivered(server, f"mids?operation={CHAT}&mids={websocket.member}", [websocket], [tcp])
    delivered(server, key_room, [tcp, websocket], [])
    delivered(server, f"all?operation={CHAT}", [tcp, websocket], [])

    answer = websocket.request(CHANGE_ROOM, other_room.encode())
    expect(answer, (CHANGE_ROOM + 1, other_room.encode()), "change of room")
    step(f"websocket: moved to {other_room}")
    delivered(server, key_room, [tcp], [websocket])
    delivered(server, f"{key_room}-other", [websocket], [tcp])

    expect(tcp.request(UNSUBSCRIBE, b"%d" % CHAT), (UNSUBSCRIBE + 1, b"%d" % CHAT), "unsubscribe")
    step(f"tcp: unsubscribed from operation {CHAT}")
    delivered(server, f"all?operation={CHAT}", [websocket], [tcp])
    expect(tcp.request(SUBSCRIBE, b"7,%d" % CHAT), (SUBSCRIBE + 1, b"7,%d" % CHAT), "subscribe")
    step(f"tcp: subscribed to operations 7 and {CHAT}")
    delivered(server, f"all?operation={CHAT}", [tcp, websocket], [])

    expect(tcp.request(CHAT, b"to the backend")[0], CHAT, "packet to the backend")
    step("tcp: sent a packet up to the backend, and had its reply")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--tcp", type=int, default=3101)
    parser.add_argument("--websocket", type=int, default=3102)
    parser.add_argument("--http", type=int, default=3111)
    parser.add_argument("--api-key", help="when the server asks for one (logic.http.api_keys)")
    options = parser.parse_args()
    try:
        check((options.host, options.tcp), (options.host, options.websocket),
              Server(f"http://{options.host}:{options.http}", options.api_key))
    except (Failed, OSError, EOFError, ValueError, struct.error) as error:
        sys.exit(f"FAIL  {error}")
    print("all checks passed")


if __name__ == "__main__":
    main()
