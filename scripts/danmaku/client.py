"""The PyPI package blivedm against this server. WSS and HTTP in the environment are HOST:PORT."""
import asyncio
import json
import os
import urllib.request

import blivedm


class Client(blivedm.BLiveClient):
    """Knows where the server is, where the package would ask for it."""

    async def init_room(self):
        host, port = os.environ["WSS"].split(":")
        self._room_id = self._room_short_id = 1000
        self._room_owner_uid = 0
        self._host_server_list = [{"host": host, "port": 0, "wss_port": int(port), "ws_port": 0}]
        self._host_server_token = "token"
        return True


class Handler(blivedm.HandlerInterface):
    def __init__(self):
        self.got = []

    async def handle(self, client, command):
        self.got.append(command)

    def messages(self):
        return [command for command in self.got if command["cmd"] == "TEST"]

    def heartbeats(self):
        return [command for command in self.got if command["cmd"] != "TEST"]


def push(message):
    url = f"http://{os.environ['HTTP']}/goim/push/room?operation=1000&type=live&room=1000"
    with urllib.request.urlopen(url, data=json.dumps(message).encode()) as answer:
        assert json.load(answer) == {"code": 0, "message": ""}


async def until(what, holds):
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"not in time: {what}")


async def main():
    client, handler = Client(1000, uid=12, heartbeat_interval=1, ssl=False), Handler()
    client.add_handler(handler)
    client.start()
    await until("a heartbeat is answered", handler.heartbeats)
    messages = [{"cmd": "TEST", "nth": nth, "text": "弹幕 " * (400 if nth % 2 else 1)} for nth in range(20)]
    for message in messages:
        await asyncio.get_running_loop().run_in_executor(None, push, message)
    await until("all messages", lambda: len(handler.messages()) >= len(messages))
    assert handler.messages() == messages, handler.messages()
    print(f"blivedm over websocket in tls, brotli: {len(messages)} messages in order, heartbeat {handler.heartbeats()[-1]}")
    await client.stop_and_close()


asyncio.run(main())
