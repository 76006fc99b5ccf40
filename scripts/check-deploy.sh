#!/usr/bin/env bash
# Checks the files of deploy/: that they parse, that every setting in them exists and is valid, that
# their ports are those of goim, and that the files that the image is built from exist.
#
# usage: check-deploy.sh BINARY
set -euo pipefail
# A process that crashes must not leave a core dump in the tree.
ulimit -c 0
cd "$(dirname "$0")/.."
binary=${1:?usage: check-deploy.sh BINARY}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -c 'import yaml' 2> /dev/null || {
  python3 -m venv "$work/venv" 2> /dev/null && "$work/venv/bin/pip" install --quiet pyyaml > /dev/null 2>&1 && PATH=$work/venv/bin:$PATH
}
python3 - "$work" << 'PYTHON'
import glob, pathlib, re, subprocess, sys
import yaml

work = pathlib.Path(sys.argv[1])
files = sorted(glob.glob("deploy/**/*.yaml", recursive=True))
variables, settings = set(), set()


def walk(value):
    if isinstance(value, dict):
        for key, inner in value.items():
            if str(key).startswith("GOIM_"):
                variables.add((str(key), str(inner)))
            walk(inner)
        if str(value.get("name", "")).startswith("GOIM_"):
            variables.add((value["name"], str(value.get("value", ""))))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            if inner == "--set":
                settings.add(value[at + 1])
            walk(inner)


for file in files:
    for document in yaml.safe_load_all(open(file)):
        walk(document)
        for name, text in (document.get("data") or {}).items() if isinstance(document, dict) else ():
            (work / name).write_text(text)
# Values that are set at run time.
filled = {"GOIM_COMET_NODE_RPC_ADDR": "10.0.0.1:3109", "GOIM_COMET_NODE_SERVER": "comet-0",
          "GOIM_TIMELINES_POSTGRES": "postgres://goim:secret@db:5432/goim"}
with open(work / "environment", "w") as out:
    for name, value in sorted(variables):
        if "${" in value or "{'" in value or "$(" in value or not value:
            value = filled.get(name, "a-key-of-sixteen-bytes")
        out.write(f"{name}={filled.get(name, value)}\n")
(work / "settings").write_text("".join(f"{setting}\n" for setting in sorted(settings)))

tracked = set(subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.split())
for line in open("deploy/Containerfile"):
    if line.startswith("COPY ") and "--from" not in line:
        for path in line.split()[1:-1]:
            assert any(file == path or file.startswith(path + "/") for file in tracked), f"{path} is not in the repository"
            assert f"!{path}\n" in open(".dockerignore").read(), f"{path} is kept out by .dockerignore"
wanted = re.search(r'rust-version = "([0-9.]+)"', open("Cargo.toml").read()).group(1)
assert f"rust:{wanted}-" in open("deploy/Containerfile").read(), f"the image is not built with Rust {wanted}"
print(f"{len(files)} YAML files, {len(variables)} variables, {len(settings)} settings on command lines")
PYTHON
arguments=()
while read -r setting; do arguments+=(--set "$setting"); done < "$work/settings"
while read -r variable; do export "${variable?}"; done < "$work/environment"
# One process stores messages in a folder, a cluster on PostgreSQL: no process uses both.
folder=$(grep -oE '^timelines\.folder=.+' "$work/settings")
"$binary" config --check --config "$work/goim.toml" "${arguments[@]}" --set timelines.folder=
(unset GOIM_TIMELINES_POSTGRES; "$binary" config --check --config "$work/goim.toml" "${arguments[@]}" --set "$folder")

# The default ports must be those of the image and of the manifests.
for port in $("$binary" config | grep -oE '"[0-9.]+:31[0-9]{2}"' | grep -oE '31[0-9]{2}' | sort -u); do
  grep -q "$port" deploy/Containerfile || { echo "check-deploy.sh: port $port is not in deploy/Containerfile" >&2; exit 1; }
done
if command -v systemd-analyze > /dev/null; then
  # The units name the installed program, which does not exist here.
  sed "s#/usr/local/bin/goim#$(realpath "$binary")#" deploy/systemd/goim.service > "$work/goim.service"
  systemd-analyze verify "$work/goim.service" 2>&1 | grep -v "^$" | grep "$work" && exit 1 || true
fi
echo "deploy/ is valid"
