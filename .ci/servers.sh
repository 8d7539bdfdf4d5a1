#!/usr/bin/env bash
# Private database servers for the tests, on loopback and under one folder.
#
#   .ci/servers.sh start FOLDER   starts them and prints the variables that name them
#   .ci/servers.sh stop FOLDER    stops what start started there, by process id
#
# PostgreSQL, MariaDB and pgbouncer are Debian's; what lacks is installed where that
# is possible, and left out, with a word, where it is not.
set -euo pipefail
command=${1:?start or stop} folder=${2:?a folder}

say() { echo "servers: $*" >&2; }

# Servers refuse to run as root.
user=$(id -un)
as=()
if [ "$(id -u)" = 0 ]; then
  user=nobody
  as=(setpriv --reuid=nobody --regid=nogroup --clear-groups)
fi

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

until_up() { # what, command...
  local what=$1 n; shift
  for n in $(seq 300); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.1
  done
  say "$what did not come up"; cat "$folder"/*.log >&2; exit 1
}

install() { # package, program
  if command -v "$2" >/dev/null || [ -x "$2" ]; then return 0; fi
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
  # Debian would start them as services of the machine.
  if [ -z "${updated:-}" ]; then apt-get update -qq >&2; updated=yes; fi
  RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1" >&2
}

pg_bin() { find /usr/lib/postgresql -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -1; }

start_postgres() {
  if [ -z "$(pg_bin)" ] && ! install postgresql /usr/lib/postgresql/none; then
    say "no PostgreSQL here"; return
  fi
  local bin data=$folder/postgres port
  bin=$(pg_bin) port=$(free_port)
  echo backjob >"$folder/password"
  "${as[@]}" "$bin/initdb" -D "$data" -U backjob -A scram-sha-256 -E UTF8 --no-sync \
    --pwfile="$folder/password" >"$folder/initdb.log" 2>&1
  # A server that dies with its machine is not what is tested: no fsync.
  "${as[@]}" "$bin/postgres" -D "$data" -p "$port" -k "$data" -c listen_addresses=127.0.0.1 \
    -c fsync=off -c max_connections=400 -c shared_buffers=64MB -c max_wal_size=256MB \
    >"$folder/postgres.log" 2>&1 &
  echo $! >"$folder/postgres.pid"
  until_up PostgreSQL "$bin/pg_isready" -q -h 127.0.0.1 -p "$port"
  echo "export BACKJOB_TEST_POSTGRES=postgres://backjob:backjob@127.0.0.1:$port/postgres"
  start_pgbouncer "$port"
}

start_pgbouncer() { # port of PostgreSQL
  if ! install pgbouncer pgbouncer; then say "no pgbouncer here"; return; fi
  local port; port=$(free_port)
  cat >"$folder/pgbouncer.ini" <<INI
[databases]
* = host=127.0.0.1 port=$1 user=backjob password=backjob
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $port
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
max_client_conn = 1000
server_idle_timeout = 5
INI
  "${as[@]}" pgbouncer -q "$folder/pgbouncer.ini" >"$folder/pgbouncer.log" 2>&1 &
  echo $! >"$folder/pgbouncer.pid"
  until_up pgbouncer bash -c "exec 3<>/dev/tcp/127.0.0.1/$port"
  echo "export BACKJOB_TEST_PGBOUNCER=postgres://backjob:backjob@127.0.0.1:$port/postgres"
}

start_mariadb() {
  if ! install mariadb-server mariadbd; then say "no MariaDB here"; return; fi
  local data=$folder/mariadb port socket=$folder/mariadb.sock
  port=$(free_port)
  "${as[@]}" mariadb-install-db --no-defaults --datadir="$data" --auth-root-authentication-method=normal \
    --skip-test-db >"$folder/mariadb-install.log" 2>&1
  "${as[@]}" mariadbd --no-defaults --datadir="$data" --port="$port" --bind-address=127.0.0.1 \
    --socket="$socket" --pid-file="$folder/mariadbd.pid" --skip-log-bin \
    --innodb-flush-log-at-trx-commit=2 --innodb-buffer-pool-size=64M --max-connections=400 \
    --skip-name-resolve >"$folder/mariadb.log" 2>&1 &
  echo $! >"$folder/mariadb.pid"
  until_up MariaDB mariadb --no-defaults -uroot -h127.0.0.1 -P"$port" -e 'SELECT 1'
  mariadb --no-defaults -uroot -h127.0.0.1 -P"$port" \
    -e "CREATE USER backjob@'127.0.0.1' IDENTIFIED BY 'backjob'; GRANT ALL ON *.* TO backjob@'127.0.0.1' WITH GRANT OPTION"
  echo "export BACKJOB_TEST_MARIADB=mysql://backjob:backjob@127.0.0.1:$port/mysql"
}

case $command in
start)
  mkdir -p "$folder"
  [ "$user" = nobody ] && chown nobody "$folder"
  start_postgres
  start_mariadb
  ;;
stop)
  for name in pgbouncer postgres mariadb; do
    [ -f "$folder/$name.pid" ] || continue
    pid=$(cat "$folder/$name.pid")
    # SIGINT: PostgreSQL cuts off who is connected.
    if [ $name = postgres ]; then kill -INT "$pid" || true; else kill "$pid" || true; fi
    for _ in $(seq 300); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    rm -f "$folder/$name.pid"
  done
  ;;
*) echo "start or stop" >&2; exit 2 ;;
esac
