#!/usr/bin/env bash
# Runs the grpcurl commands of the README, word for word: every ```sh block that
# stands directly under the line <!-- grpcurl -->. They name 127.0.0.1:50051, so a
# server must listen there, with an action that answers at /reports/build.
#
#     tests/clients/grpcurl.sh [FILE]     default: README.md of this repository
#
# Wants grpcurl on PATH, or its path in $GRPCURL. Prints commands and output.
set -euo pipefail

readme=${1:-$(dirname "$0")/../../README.md}
if [[ -n ${GRPCURL:-} ]]; then
  grpcurl() { "$GRPCURL" "$@"; }
  export -f grpcurl
  export GRPCURL
fi
command -v grpcurl >/dev/null || { echo "grpcurl is not on PATH, nor named by \$GRPCURL" >&2; exit 2; }

work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
awk -v into="$work/block-" '
  inside && /^```$/   { inside = 0; close(file); next }
  inside              { print > file; next }
  marked && /^```sh$/ { inside = 1; file = sprintf("%s%03d.sh", into, ++n); printf "" > file }
                      { marked = ($0 == "<!-- grpcurl -->") }
' "$readme"

shopt -s nullglob
blocks=("$work"/block-*.sh)
if ((${#blocks[@]} == 0)); then
  echo "$readme has no block to run" >&2
  exit 1
fi
failed=0
for block in "${blocks[@]}"; do
  # -v prints each command as it is read.
  if bash -v -euo pipefail "$block" 2>&1; then
    echo "ok   ${block##*/}"
  else
    echo "FAIL ${block##*/}"
    failed=1
  fi
done
exit "$failed"
