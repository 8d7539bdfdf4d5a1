#!/usr/bin/env bash
# Ours and theirs in one run: installs the peers below target/, builds, measures
# them in turn and prints the tables. Options go to backjob-bench: --seconds 1,
# --repeat 3, --json, --brief.
#
# Debian's packages are unpacked below target/, not installed, and only where the
# programs are not there already; npm's go there too. Servers listen on free ports
# of loopback, keep their data in folders below target/bench, and end with the
# benchmark.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
target=${CARGO_TARGET_DIR:-$PWD/target}
peers=$target/bench/peers
mkdir -p "$peers/archives/partial" "$peers/root"

# Where a program is: on the system, or below target/.
find_program() {
  command -v "$1" && return
  find "$peers/root" /usr/lib/postgresql -name "$1" -perm -u+x ! -type d 2>/dev/null | sort | tail -1
}

# Unpacks a package and what it needs that is not installed.
fetch() {
  apt-get install --download-only --yes --quiet=2 --no-install-recommends \
    -o Dir::Cache::archives="$peers/archives" -o Debug::NoLocking=1 "$1" >/dev/null
  for archive in "$peers"/archives/*.deb; do dpkg-deb --extract "$archive" "$peers/root"; done
}

program() {
  local found
  found=$(find_program "$1")
  if [ -z "$found" ]; then
    echo "fetching $2" >&2
    fetch "$2"
    found=$(find_program "$1")
  fi
  [ -n "$found" ] || { echo "$1 is needed: Debian's package $2 has it" >&2; exit 1; }
  echo "$found"
}

redis=$(program redis-server redis-server)
gearmand=$(program gearmand gearman-job-server)
initdb=$(program initdb postgresql)
postgres=$(dirname "$(readlink -f "$initdb")")
libraries=$(find "$peers/root" -name 'lib*.so*' -printf '%h\n' 2>/dev/null | sort -u | paste -sd: -)
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

versions="bullmq@6.7.0 ioredis@5.11.1 graphile-worker@0.18.0"
[ "$(cat "$peers/versions" 2>/dev/null)" = "$versions" ] || {
  # shellcheck disable=SC2086
  npm install --silent --no-audit --no-fund --prefix "$peers" $versions
  echo "$versions" >"$peers/versions"
}

cargo build --release --package backjob --package backjob-bench
exec "$target/release/backjob-bench" peers --redis "$redis" --gearmand "$gearmand" \
  --postgres "$postgres" --node "$peers" --scripts "$here" "$@"
