#!/usr/bin/env python3
"""Does the page in examples/javascript work in a real browser, against a real server? Called by browser-check.sh.

usage: check.py --goim PROGRAM --chromium PROGRAM [--screenshots FOLDER]
"""
import argparse
import json
import os
import pathlib
import sys
import tempfile
import traceback
import urllib.parse

from chromium import Chromium
from server import Goim, serve_folder

PAGE = pathlib.Path(__file__).resolve().parents[2] / "examples" / "javascript"

MESSAGES = """[...document.querySelectorAll("#log li:not(.note)")].map((entry) => [
  entry.querySelector("b").textContent, entry.querySelector(".badge")?.textContent ?? "room",
  entry.querySelector(".text").textContent])"""
IS_OPEN = "document.querySelector('#status').dataset.state === 'open'"
ONLINE = "Number(document.querySelector('#figures b')?.textContent)"


class Checks:
    """The checks, in this order: each method that begins with `check_`. They build on each other: one browser, one
    server, two people in a room, of whom the second comes from a file."""

    def __init__(self, goim, browser, site):
        self.goim, self.browser, self.site = goim, browser, site
        self.lin = self.zhou = None
        self.unwanted = []  # (tab, text) of what was not for it

    def open_page(self, base, **parameters):
        query = {"ws": f"ws://{self.goim.websocket}/sub", "http": f"http://{self.goim.http}", **parameters}
        tab = self.browser.open(f"{base}index.html?{urllib.parse.urlencode(query)}")
        tab.wait_for(IS_OPEN)
        return tab

    def messages(self, tab, contain):
        """What the page shows once `contain` is among it: (from, audience, text) of each message."""
        wanted = json.dumps(contain)
        tab.wait_for(f"{MESSAGES}.some(([, , text]) => text === {wanted})")
        return [tuple(message) for message in tab.evaluate(MESSAGES)]

    def say(self, tab, audience, text):
        tab.evaluate(f"""document.querySelector("#audience").value = {json.dumps(audience)};
            document.querySelector("#text").value = {json.dumps(text)};
            document.querySelector("#send").click()""")

    def check_connects_and_authenticates(self):
        self.lin = self.open_page(self.site, name="Lin", mid=123, key="lin-phone", room="live://1000")

    def check_heartbeat_is_answered(self):
        self.lin.wait_for(f"{ONLINE} === 1")

    def check_works_from_a_file_too(self):
        base = PAGE.as_uri() + "/"
        self.zhou = self.open_page(base, name="周", mid=124, key="zhou-phone", room="live://1000")
        self.zhou.wait_for(f"{ONLINE} === 2")

    def pushed(self, path, text, audience, to_lin, to_zhou):
        """Pushes, and looks at who got it. Then pushes to all: by when that is there, the first should have been."""
        self.goim.push(path, text)
        for tab, wanted in ((self.lin, to_lin), (self.zhou, to_zhou)):
            if wanted:
                shown = self.messages(tab, text)
                assert shown.count(("curl", audience, text)) == 1, shown
        self.goim.push("all?operation=1003", f"after {text}")
        for tab, wanted in ((self.lin, to_lin), (self.zhou, to_zhou)):
            if not wanted:
                self.unwanted.append((tab, text))
                shown = self.messages(tab, f"after {text}")
                assert all(said != text for _, _, said in shown), shown

    def check_push_by_key(self):
        self.pushed("keys?operation=1002&keys=lin-phone", "by key 钥匙", "device", True, False)

    def check_push_by_mid(self):
        self.pushed("mids?operation=1001&mids=124", "by mid", "member", False, True)

    def check_push_by_room(self):
        self.pushed("room?operation=1000&type=live&room=1000", "by room", "room", True, True)

    def check_push_to_another_room(self):
        self.pushed("room?operation=1000&type=live&room=2000", "elsewhere", "room", False, False)

    def check_push_to_all(self):
        self.pushed("all?operation=1003", "to all", "everybody", True, True)

    def check_a_batch_of_several_messages(self):
        texts = [f"batch {number}" for number in range(30)]
        largest = """(() => { globalThis.largestBatch = 0; client.addEventListener("packet", ({ detail }) => {
            if (detail.packet.operation !== 9) return;
            largestBatch = Math.max(largestBatch, Goim.decode(detail.packet.body).length); }); })()"""
        self.lin.evaluate(largest)
        self.goim.push_together([("room?operation=1000&type=live&room=1000", text) for text in texts])
        batch = f"{MESSAGES}.filter(([, , text]) => text.startsWith('batch '))"
        self.lin.wait_for(f"{batch}.length >= {len(texts)}")
        arrived = [text for _, _, text in self.lin.evaluate(batch)]
        assert sorted(arrived) == sorted(texts), arrived
        assert self.lin.evaluate("largestBatch") > 1, "each message came alone"

    def check_a_large_message(self):
        large = "界" * 100_000
        self.goim.push("keys?operation=1002&keys=lin-phone", large)
        self.messages(self.lin, large)

    def check_text_is_never_taken_for_html(self):
        text = "<img src=x onerror='document.title=1'>&amp;"
        self.goim.push("keys?operation=1002&keys=lin-phone", text)
        self.messages(self.lin, text)

    def check_page_on_this_machine_pushes_itself(self):
        self.say(self.lin, "room", "it's me & \"you\"")
        for tab in (self.lin, self.zhou):
            assert ("Lin", "room", "it's me & \"you\"") in self.messages(tab, "it's me & \"you\"")

    def check_page_in_a_file_shows_the_curl(self):
        self.say(self.zhou, "room", "it's 周")
        self.zhou.wait_for("document.querySelector('#log').textContent.includes(\"curl -d '{\")")

    def check_packet_to_the_backend_is_answered(self):
        self.say(self.lin, "upstream", "ping")
        self.lin.wait_for("document.querySelector('#log').textContent.includes('the backend answered nothing')")

    def check_change_of_room(self):
        self.lin.evaluate("""document.querySelector("#room").value = "live://2000";
            document.querySelector("#you").requestSubmit()""")
        self.lin.wait_for("document.querySelector('#log').textContent.includes('you are in live://2000')")
        self.pushed("room?operation=1000&type=live&room=2000", "over here", "room", True, False)
        self.pushed("room?operation=1000&type=live&room=1000", "over there", "room", False, True)

    def check_unsubscribe_and_subscribe(self):
        self.lin.evaluate("client.unsubscribe(1001)")
        self.pushed("mids?operation=1001&mids=123", "not wanted", "member", False, False)
        self.lin.evaluate("client.subscribe(1001)")
        self.pushed("mids?operation=1001&mids=123", "wanted again", "member", True, False)

    def check_comes_back_after_a_crash_of_the_server(self):
        self.goim.kill()
        for tab in (self.lin, self.zhou):
            tab.wait_for(f"!({IS_OPEN})")
        self.goim.start()
        for tab in (self.lin, self.zhou):
            tab.wait_for(IS_OPEN, timeout=20)
            tab.wait_for(f"{ONLINE} === 1")

    def check_after_that_room_key_and_member_are_as_before(self):
        self.pushed("room?operation=1000&type=live&room=2000", "still here", "room", True, False)
        self.pushed("keys?operation=1002&keys=zhou-phone", "still this key", "device", False, True)
        self.pushed("mids?operation=1001&mids=123", "still this member", "member", True, False)

    def check_stays_away_when_closed(self):
        self.zhou.evaluate("client.close()")
        self.lin.evaluate("client.join('live://1000')")
        assert self.zhou.evaluate("client.ready") is False
        self.zhou.evaluate("client.connect()")
        self.zhou.wait_for(f"client.ready && {ONLINE} === 2")

    def check_refuses_what_cannot_be(self):
        tries = """Promise.all([client.send(1100, "x".repeat(4097)), client.send(1100, new Uint8Array(4096))]
            .map((sent) => sent.then(() => "sent", (error) => error.name)))"""
        assert self.lin.evaluate(tries) == ["RangeError", "sent"]
        malformed = """["00", "0000001100100001000003e800000000", "0000000f00100001000003e800000000",
            "0000001000080001000003e800000000", "ffffffff00100001000003e800000000"].map((hex) => {
            try { return Goim.decode(Uint8Array.from(hex.match(/../g), (byte) => parseInt(byte, 16))).length; }
            catch (error) { return error.message; } })"""
        assert set(self.lin.evaluate(malformed)) == {"malformed packet"}

    def check_imports_as_a_module(self):
        names = self.lin.evaluate("import('./goim.mjs').then((goim) => Object.keys(goim).sort())")
        assert names == ["Client", "Operation", "backoffDelay", "decode", "encode"], names

    def check_nothing_came_late_to_whom_it_was_not_for(self):
        for tab, text in self.unwanted:
            assert all(said != text for _, _, said in tab.evaluate(MESSAGES)), text

    def check_the_pages_had_no_errors(self):
        # The check includes that no connection was opened while the server was down.
        problems = [problem for tab in (self.lin, self.zhou) for problem in tab.problems
                    if not problem.startswith("WebSocket connection to")]
        assert not problems, problems


def run(checks):
    """Runs them all and returns how many passed and failed. What builds on a failed one will fail too."""
    outcomes = []
    for name in [name for name in vars(Checks) if name.startswith("check_")]:
        try:
            getattr(checks, name)()
            outcomes.append(True)
            print(f"ok    {name[6:].replace('_', ' ')}", flush=True)
        except Exception as error:  # whatever it is, the check did not pass
            outcomes.append(False)
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == __file__]
            print(f"FAIL  {name[6:].replace('_', ' ')} (line {lines[-1]}): {error!r:.1500}", flush=True)
    return outcomes.count(True), outcomes.count(False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--goim", required=True)
    parser.add_argument("--chromium", required=True)
    parser.add_argument("--screenshots", help="folder for pictures of the two pages as they are at the end")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="goim-browser-") as folder:
        goim = Goim(options.goim, folder)
        log = os.path.join(folder, "chromium.err")
        goim.start()
        try:
            with Chromium(options.chromium, log) as browser:
                checks = Checks(goim, browser, serve_folder(PAGE))
                passed, failed = run(checks)
                for name in ("lin", "zhou"):
                    if options.screenshots and getattr(checks, name):
                        getattr(checks, name).screenshot(os.path.join(options.screenshots, f"{name}.png"))
        finally:
            goim.stop()
        if failed:
            print(pathlib.Path(log).read_text(errors="replace")[-1000:], (goim.folder / "goim.err").read_text()[-2000:],
                  sep="\n", file=sys.stderr)
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
