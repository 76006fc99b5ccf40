"""Writes the bytes of the golden files as the fuzz targets' first corpus.

usage: seed.py
"""
import hashlib
import json
import pathlib
import re

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE.parent / "testdata" / "wire"

# Control bytes in front: limits and rules, see invariants/. Server and client, strict and lenient.
CONTROLS = [b"\x02\x00\x20\x00", b"\x06\x00\x20\x00", b"\x0a\x00\x20\x00", b"\x0e\x00\x20\x00", b"\x00\x00\x00\x40"]


def unhex(text):
    repeat = re.compile(r"\((\w+)\)\*(\d+) ?")
    return bytes.fromhex(repeat.sub(lambda found: found[1] * int(found[2]), text))


def write(target, data, controls=CONTROLS):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    for control in controls:
        seed = control + data
        if len(seed) <= 16384:
            (folder / hashlib.sha1(seed).hexdigest()).write_bytes(seed)


def main():
    def load(name):
        return json.loads((GOLDEN / name).read_text())

    packets, bodies, frames, handshakes = map(
        load, ("packets.json", "bodies.json", "frames.json", "handshakes.json"))
    for entry in packets["streams"] + packets["messages"] + bodies["operations"] + bodies["online_counts"]:
        write("packet", unhex(entry.get("bytes", entry.get("body"))))
    for entry in packets["batches"]:
        write("packet", unhex(entry["body"]))
    for entry in frames["reads"]:
        write("websocket", unhex(entry["bytes"]))
    for entry in handshakes["requests"]:
        write("websocket", entry["request"].encode())
    for entry in handshakes["answers"]:
        write("websocket", entry["response"].encode())
    for entry in sum(load("sync.json").values(), []):
        write("sync", unhex(entry["bytes"]), [b""])


if __name__ == "__main__":
    main()
