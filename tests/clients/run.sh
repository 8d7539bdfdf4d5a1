#!/usr/bin/env bash
# Runs real clients, and the example applications, against a real server.
#
#     tests/clients/run.sh BINARY TOOLS
#
# BINARY is `backjob`, with `examples/action` beside it; TOOLS a folder for what
# has to be installed (grpcurl, a Python environment, node modules). Wants go, node,
# npm and python3; takes php from PATH or, as root, from Debian. Uses the ports
# 50051 and 18080 to 18089 of 127.0.0.1, and ends what it starts.
set -euo pipefail

binary=$(realpath "$1")
mkdir -p "$2"
tools=$(realpath "$2")
cd "$(dirname "$0")/../.."
root=$PWD
clients=$root/tests/clients
work=$(mktemp -d)
pids=()
failed=()

clean() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$work" "$clients"/{node,web,connect,signature}/node_modules "$root/examples/node/node_modules"
}
trap clean EXIT

# check NAME COMMAND...: runs it, shows the end of what it said, and remembers if
# it failed.
check() {
  printf '\n-- %s\n' "$1"
  if timeout 300 "${@:2}" >"$work/said" 2>&1; then
    tail -15 "$work/said" | cut -c1-200
    return
  fi
  tail -200 "$work/said" | cut -c1-1000
  echo "FAIL $1"
  failed+=("$1")
}

# until_open PORT PID: waits until something listens there, at most 60 s.
until_open() {
  for _ in $(seq 600); do
    if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then return; fi
    kill -0 "$2" 2>/dev/null || { echo "what should listen on port $1 has ended" >&2; return 1; }
    sleep 0.1
  done
  echo "nothing listens on port $1 after 60 s" >&2
  return 1
}

# background LOG COMMAND...: starts it; its id is in $pid.
background() {
  "${@:2}" >"$work/$1.log" 2>&1 &
  pid=$!
  pids+=("$pid")
}

# -- what has to be installed ------------------------------------------------

if [[ ! -x $tools/bin/grpcurl ]]; then
  GOBIN=$tools/bin go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3
fi
if [[ ! -x $tools/python/bin/python ]]; then
  python3 -m venv "$tools/python"
fi
"$tools/python/bin/python" -m pip install -q --disable-pip-version-check -r tests/clients/python/requirements.txt
npm install --silent --no-fund --no-audit --prefix "$tools" \
  @bufbuild/buf@1.75.0 @bufbuild/protoc-gen-es@2.17.0 @bufbuild/protobuf@2.17.0 \
  @grpc/grpc-js@1.14.7 @grpc/proto-loader@0.8.1 \
  @connectrpc/connect@2.2.0 @connectrpc/connect-web@2.2.0 @connectrpc/connect-node@2.2.0 http-message-signatures@1.0.6
if ! command -v php >/dev/null; then
  if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    apt-get update -q >"$work/apt.log" && apt-get install -y -q php-cli >>"$work/apt.log"
  fi
  command -v php >/dev/null || { echo "php is not on PATH" >&2; exit 2; }
fi
for folder in "$clients"/{node,web,connect,signature} examples/node; do
  ln -sfn "$tools/node_modules" "$folder/node_modules"
done
PATH=$tools/node_modules/.bin:$PATH buf generate --template tests/clients/web/buf.gen.yaml
export GRPCURL=$tools/bin/grpcurl
export BACKJOB_ADDR=127.0.0.1:50051
python=$tools/python/bin/python

# -- clients against the demo ------------------------------------------------

background demo "$binary" demo --keep
until_open 50051 "$pid"
check "grpcurl, the README's commands" "$clients/grpcurl.sh"
check "grpc-go" go run -C "$clients/go" .
check "grpcio" "$python" "$clients/python/checks.py"
check "@grpc/grpc-js" node "$clients/node/checks.mjs"
check "gRPC-Web" node "$clients/web/checks.mjs"
check "Connect" node "$clients/connect/checks.mjs"
kill -TERM "$pid"
wait "$pid" || { echo "FAIL the demo did not end well"; failed+=("demo"); }

# -- several nodes, replaced under the calls of a client with a retry policy ----

if [[ -n ${BACKJOB_TEST_POSTGRES:-} ]]; then
  check "grpcio while nodes are replaced" "$python" "$clients/python/rolling.py" "$binary"
else
  echo "SKIPPED: grpcio while nodes are replaced; set BACKJOB_TEST_POSTGRES"
fi

# -- the README's checks of the signature ------------------------------------

READMECHECK_ALL=1 check "the README's short checks" python3 "$clients/readme.py"
check "the Go example's check" go test -C examples/go ./...

# -- the example applications, and two public libraries for RFC 9421 ---------

folder=$work/server
mkdir "$folder"
(cd "$folder" && "$binary" keygen >/dev/null)
targets=(rust python node go php shell library.py library.mjs)
{
  for i in "${!targets[@]}"; do
    printf '[targets."%s"]\nurl = "http://127.0.0.1:%d"\n' "${targets[i]//./-}" $((18080 + i))
  done
  printf '[targets.default]\nurl = "http://127.0.0.1:18080"\n'
} >"$folder/backjob.toml"
go build -C examples/go -o "$work/go-action" .
for i in "${!targets[@]}"; do
  name=${targets[i]//./-}
  port=$((18080 + i))
  key=$(cd "$folder" && "$binary" keygen --target "$name")
  export TRIGGER_KEYID=$(sed -n 's/^keyid //p' <<<"$key") TRIGGER_KEY=$(sed -n 's/^key //p' <<<"$key")
  export PORT=$port FOLDER=$PWD/src
  case $name in
    rust) background "$name" "$(dirname "$binary")/examples/action" ;;
    python) background "$name" "$python" examples/python/action.py ;;
    node) background "$name" node examples/node/action.mjs ;;
    go) background "$name" "$work/go-action" ;;
    php) background "$name" php -S "127.0.0.1:$port" examples/php/action.php ;;
    shell) background "$name" "$python" "$clients/shell/application.py" ;;
    library-py) background "$name" "$python" "$clients/signature/live.py" ;;
    library-mjs) background "$name" node "$clients/signature/live.mjs" ;;
  esac
  until_open "$port" "$pid" || { cat "$work/$name.log"; exit 1; }
done
unset PORT FOLDER TRIGGER_KEY TRIGGER_KEYID
cd "$folder"
background server "$binary" serve
until_open 50051 "$pid"

# action NAME: a job of this target runs to its end; a stranger is turned away.
action() {
  "$binary" start POST '/reports/build?page=1' --target "$1" -q name=N%C3%A4me -d id=5 --follow -o human || return
  local port=$2 status
  status=$(curl -s -o /dev/null -w '%{http_code}' -d id=5 "http://127.0.0.1:$port/reports/build")
  [[ $status == 401 ]] || { echo "a stranger got $status, not 401"; return 1; }
}
# stopped NAME: a job that is cancelled while it runs is CANCELLED by its action.
stopped() {
  local id
  id=$("$binary" start POST '/reports/build?pause=200ms' --target "$1" -o json | grep -om1 '[0-9a-f-]\{36\}')
  for _ in $(seq 300); do
    if "$binary" status "$id" -o json | grep -q '"progressDetail"'; then break; fi
    sleep 0.1
  done
  "$binary" cancel "$id" >/dev/null
  "$binary" watch "$id" -o json >"$work/stopped" || true
  grep -q JOB_STATE_CANCELLED "$work/stopped" || { cat "$work/stopped"; return 1; }
  echo "cancelled"
}
export -f action stopped
export binary work
for i in "${!targets[@]}"; do
  name=${targets[i]//./-}
  check "action: $name" bash -c "action $name $((18080 + i))"
done
for name in rust python node go php; do
  check "cancel: $name" bash -c "stopped $name"
done

if ((${#failed[@]} > 0)); then
  printf '\nFAILED: %s\n' "${failed[*]}"
  for log in "$work"/*.log; do
    printf -- '-- %s\n' "${log##*/}"
    tail -20 "$log"
  done
  exit 1
fi
printf '\nall clients passed\n'
