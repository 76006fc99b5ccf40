#!/usr/bin/env bash
# Checks that goim-client and the crates it needs can be published: packages them, and builds each
# package against the others, without the network.
set -euo pipefail
cd "$(dirname "$0")/.."

# In the order in which they are published: each after those that it depends on.
crates=(goim-wire goim-websocket goim-compression goim-session goim-client)

# The manifest fields that the registry requires or shows, and that nothing else checks.
cargo metadata --no-deps --format-version 1 --offline --locked | python3 -c '
import json, sys
wanted = ["description", "license", "readme", "rust_version", "keywords", "categories"]
missing = [package["name"] + ": no " + field for package in json.load(sys.stdin)["packages"]
           if package["name"] in sys.argv[1:] for field in wanted if not package[field]]
sys.exit("\n".join(missing) or 0)
' "${crates[@]}"

# A dirty tree is allowed, so that a change can be checked before it is committed.
cargo package --locked --offline --allow-dirty --quiet "${crates[@]/#/--package=}"

# What a user of goim-client gets besides the code.
packaged=$(tar -tzf target/package/goim-client-*.crate)
for file in README.md examples/chat.rs examples/sync.rs examples/tls.rs examples/token_provider.rs; do
  grep -q "/$file\$" <<< "$packaged" || {
    echo "goim-client: $file is not in the package" >&2
    exit 1
  }
done
echo "${#crates[@]} crates can be published"
