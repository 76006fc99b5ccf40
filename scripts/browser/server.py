"""What the check of the page needs to be there: a goim server on ports of its own, and the page over HTTP."""
import functools
import http.server
import json
import pathlib
import re
import subprocess
import threading
import time
import urllib.request

# Not through a proxy that the environment may name.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Goim:
    """A running `goim serve`. Its ports are the system's choice at the first start, and kept at the next ones."""

    # Room messages of one request share a batch, even on a slow machine.
    SETTINGS = ["comet.listen.tcp=", "comet.listen.websocket_tls=", "rpc.comet=none", "rpc.logic=none",
                "job.room.batch_interval=300ms"]

    def __init__(self, program, folder):
        self.program, self.folder = program, pathlib.Path(folder)
        self.websocket = self.http = "127.0.0.1:0"
        self.process = None

    def start(self):
        deadline = time.monotonic() + 20
        # Another connection may use a port of a restarted server.
        while not self._launch(deadline):
            time.sleep(0.2)

    def _launch(self, deadline):
        """False when another has one of its ports."""
        settings = [f"comet.listen.websocket={self.websocket}", f"http.listen={self.http}", *self.SETTINGS]
        words = [word for setting in settings for word in ("--set", setting)]
        announced, log = self.folder / "goim.out", self.folder / "goim.err"
        with announced.open("wb") as out, log.open("ab") as err:
            before = err.tell()
            self.process = subprocess.Popen([self.program, "serve", *words], stdin=subprocess.DEVNULL, stdout=out,
                                            stderr=err)
        # The announcement is printed when all ports listen.
        while not (found := re.search(r"ws://(\S+)/sub.*http://([\d.:]+)\s", announced.read_text(), re.DOTALL)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{log.read_text()[-2000:]}")
            if self.process.poll() is not None:
                if b"Address already in use" in log.read_bytes()[before:]:
                    return False
                raise RuntimeError(f"the server did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.02)
        self.websocket, self.http = found.groups()
        return True

    def kill(self):
        """Ends the process as a crash would: clients are told nothing."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        """Ends the process as its operator would."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def push(self, path, body):
        request = urllib.request.Request(f"http://{self.http}/goim/push/{path}", body.encode(), method="POST")
        with DIRECT.open(request, timeout=5) as answer:
            assert json.load(answer)["code"] == 0, path

    def push_together(self, pushes):
        """Pushes of which each has begun before any is over."""
        threads = [threading.Thread(target=self.push, args=push) for push in pushes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def serve_folder(folder):
    """Serves a folder to this machine for as long as this process lives. Returns the URL."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/"
