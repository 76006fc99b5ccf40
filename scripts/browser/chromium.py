"""A headless Chromium and its tabs, driven over a pipe with the DevTools protocol. Python's standard library only.

Knows nothing of goim. One command at a time: whatever the browser reports between a command and its answer is kept
with the tab that it concerns.
"""
import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

FLAGS = [
    "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-quic", "--disable-extensions", "--no-proxy-server", "--window-size=1240,920",
    # Containers have a small /dev/shm, and no user namespaces for the sandbox. Only our pages
    # are opened.
    "--disable-dev-shm-usage", "--no-sandbox",
    # Timers of background tabs are not throttled.
    "--disable-background-timer-throttling", "--disable-renderer-backgrounding",
    "--remote-debugging-pipe",
]


class BrowserError(Exception):
    """The browser did not start, is gone, did not answer, or refused a command."""


class Chromium:
    """Started on entering, gone with its profile on leaving. `log_path` takes what it writes to standard error."""

    def __init__(self, program, log_path):
        self.program, self.log_path = program, log_path
        self.tabs = {}
        self.last_id = 0
        self.unread = b""

    def __enter__(self):
        self.profile = tempfile.mkdtemp(prefix="goim-chromium-")
        # The browser reads commands from descriptor 3 and answers on 4. Our descriptors are moved
        # to other numbers first.
        theirs_in, self.commands = map(out_of_the_way, os.pipe())
        self.answers, theirs_out = map(out_of_the_way, os.pipe())

        def place_pipes():
            os.dup2(theirs_in, 3)
            os.dup2(theirs_out, 4)

        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [self.program, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(3, 4), preexec_fn=place_pipes)
        os.close(theirs_in)
        os.close(theirs_out)
        return self

    def __exit__(self, *_):
        try:
            self.call("Browser.close")
            self.process.wait(5)
        except (BrowserError, OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        os.close(self.commands)
        os.close(self.answers)
        shutil.rmtree(self.profile, ignore_errors=True)

    def open(self, url):
        """A new tab, when its page has loaded."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        tab = self.tabs[session] = Tab(self, session, target)
        tab.call("Page.enable")
        tab.call("Runtime.enable")
        tab.call("Log.enable")
        tab.call("Page.navigate", {"url": url})
        tab.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")
        return tab

    def call(self, method, params=None, session=None, timeout=10):
        """The result of a command.

        Raises BrowserError when there is none within `timeout` seconds.
        """
        self.last_id += 1
        command = {"id": self.last_id, "method": method, "params": params or {}}
        if session:
            command["sessionId"] = session
        try:
            os.write(self.commands, json.dumps(command).encode() + b"\0")
        except BrokenPipeError as error:
            raise BrowserError("the browser is gone") from error
        deadline = time.monotonic() + timeout
        while True:
            message = self.read_message(deadline, method)
            if message.get("id") == self.last_id:
                if "error" in message:
                    raise BrowserError(f"{method}: {message['error']['message']}")
                return message["result"]
            tab = self.tabs.get(message.get("sessionId"))
            if tab and "method" in message:
                tab.note(message["method"], message["params"])

    def read_message(self, deadline, method):
        while b"\0" not in self.unread:
            if not select.select([self.answers], [], [], max(0, deadline - time.monotonic()))[0]:
                raise BrowserError(f"{method}: no answer in time")
            data = os.read(self.answers, 1 << 16)
            if not data:
                raise BrowserError("the browser is gone")
            self.unread += data
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)


class Tab:
    """A page. `problems` has its exceptions and what it, or the browser about it, wrote as an error."""

    def __init__(self, browser, session, target):
        self.browser, self.session, self.target = browser, session, target
        self.problems = []

    def call(self, method, params=None, timeout=10):
        return self.browser.call(method, params, self.session, timeout)

    def note(self, event, params):
        if event == "Runtime.exceptionThrown":
            self.problems.append(exception_text(params["exceptionDetails"]))
        elif event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.problems.append(" ".join(str(arg.get("value", arg.get("description"))) for arg in params["args"]))

    def evaluate(self, expression):
        """The value of a JavaScript expression, awaited when it is a promise.

        Raises BrowserError when it throws.
        """
        options = {"expression": expression, "awaitPromise": True, "returnByValue": True, "userGesture": True}
        answer = self.call("Runtime.evaluate", options)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression}: {exception_text(answer['exceptionDetails'])}")
        return answer["result"].get("value")

    def wait_for(self, expression, timeout=10):
        """Its value, as soon as it is true.

        Raises BrowserError when it is not within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            value = self.evaluate(expression)
            if value:
                return value
            if time.monotonic() > deadline:
                raise BrowserError(f"not within {timeout} s: {expression}")
            time.sleep(0.02)

    def screenshot(self, path):
        picture = self.call("Page.captureScreenshot", {"format": "png"})
        with open(path, "wb") as file:
            file.write(base64.b64decode(picture["data"]))

    def close(self):
        self.browser.call("Target.closeTarget", {"targetId": self.target})
        del self.browser.tabs[self.session]


def exception_text(details):
    return details.get("exception", {}).get("description") or details["text"]


def out_of_the_way(descriptor):
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved
