#!/usr/bin/env bash
# The program built for what it does most (profile-guided optimisation): built once so
# that it counts what runs, given the soak's mix of work for SECONDS (30), and built
# again by what was counted. Makes target/trained/backjob, in the time of three
# release builds.
#
# Needs LLVM's tools of the same toolchain: rustup component add llvm-tools.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=${1:-30}
target=${CARGO_TARGET_DIR:-$PWD/target}
trained=$target/trained
host=$(rustc -vV | sed -n 's/^host: //p')
profdata=$(rustc --print target-libdir)/../bin/llvm-profdata
[ -x "$profdata" ] || {
  echo "llvm-profdata is needed: rustup component add llvm-tools" >&2
  exit 1
}

# Named, the target keeps these flags from what is only run to build the program.
build() {
  RUSTFLAGS="${RUSTFLAGS:-} $1" cargo build --release --locked --package backjob --bin backjob \
    --target "$host" --target-dir "$trained"
}

rm -rf "$trained/counted"
mkdir -p "$trained/counted"
build "-Cprofile-generate=$trained/counted"
LLVM_PROFILE_FILE=$trained/counted/%p.profraw cargo run --release --locked --package backjob-bench \
  --bin backjob-soak -- --server "$trained/$host/release/backjob" \
  --seconds "$seconds" --every 10 --rate 400
"$profdata" merge --output="$trained/counted.profdata" "$trained/counted"/*.profraw
build "-Cprofile-use=$trained/counted.profdata"
cp "$trained/$host/release/backjob" "$trained/backjob"
echo "$trained/backjob"
