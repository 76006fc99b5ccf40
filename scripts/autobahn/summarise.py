"""Prints what an Autobahn index.json says, group by group; exits 1 when a case failed.

usage: summarise.py INDEX.JSON
"""
import collections
import json
import sys

# NON-STRICT: allowed by the RFC, but not what the suite recommends. INFORMATIONAL: cannot fail.
PASSED = {"OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED"}


def number(case):
    return [int(part) for part in case.split(".")]


def main(path):
    with open(path) as file:
        index = json.load(file)
    passed = failed = 0
    for agent in index.values():
        groups = collections.defaultdict(collections.Counter)
        notes = []
        for case in sorted(agent, key=number):
            behavior, close = agent[case]["behavior"], agent[case]["behaviorClose"]
            groups[number(case)[0]][behavior] += 1
            if behavior not in PASSED or close not in PASSED:
                failed += 1
                notes.append(f"FAILED {case}: {behavior}, at the close {close}")
                continue
            passed += 1
            if behavior in ("NON-STRICT", "UNIMPLEMENTED"):
                notes.append(f"note {case}: {behavior}")
        for group in sorted(groups):
            print(f"group {group:2}: " + ", ".join(f"{n} {what}" for what, n in groups[group].items()))
        for note in notes:
            print(note)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
