#!/bin/sh
# Makes what the processes of a cluster show each other, one folder for each kind of them:
#
#   secrets.sh DIR HOST...
#
#   DIR/ca      the private CA. Keep it off the machines of the cluster
#   DIR/server  servers and dispatchers: pair, CA, hashes of the tokens
#   DIR/worker  workers: pair, CA, their token
#   DIR/client  clients: pair, CA, a token
#   DIR/redis   made only when REDIS_HOST is set: a pair of Redis's own, its password
#               (redis-auth.conf) and the store URL that contains it (store-url)
#
# HOST are the names by which servers and dispatchers are reached. What is there already
# stays: to make something new, take its folder away. The CA stays for the others.
set -eu
umask 077
if [ $# -lt 2 ]; then
  echo "usage: $0 DIR HOST..." >&2
  exit 2
fi
dir=$1
shift
mkdir -p "$dir/ca" "$dir/server" "$dir/worker" "$dir/client"

# pairs HOST...: three new pairs of the CA in $dir/ca.
pairs() {
  for host; do
    set -- "$@" --host "$host"
    shift
  done
  treadle certs --dir "$dir/ca" "$@" >/dev/null
}

# move KIND: a pair to where it is used. It is whole before the pair's name is there.
move() {
  cp "$dir/ca/ca.pem" "$dir/$1/ca.pem"
  mv "$dir/ca/$1-key.pem" "$dir/$1/$1-key.pem"
  mv "$dir/ca/$1.pem" "$dir/$1/$1.pem"
}

if [ ! -f "$dir/server/server.pem" ] || [ ! -f "$dir/worker/worker.pem" ] || [ ! -f "$dir/client/client.pem" ]; then
  rm -f "$dir/ca/server.pem" "$dir/ca/server-key.pem" "$dir/ca/worker.pem" "$dir/ca/worker-key.pem" \
    "$dir/ca/client.pem" "$dir/ca/client-key.pem" # of a run that was stopped
  pairs "$@"
  for kind in server worker client; do
    move "$kind"
  done
fi

for kind in worker client; do
  if [ ! -f "$dir/$kind/token" ]; then
    treadle token create --role "$kind" --name "$kind" --file "$dir/server/tokens.json" >"$dir/$kind/token.new"
    mv "$dir/$kind/token.new" "$dir/$kind/token"
  fi
done

if [ -n "${REDIS_HOST:-}" ] && [ ! -f "$dir/redis/store-url" ]; then
  mkdir -p "$dir/redis"
  pairs "$REDIS_HOST"
  rm "$dir/ca/worker.pem" "$dir/ca/worker-key.pem" "$dir/ca/client.pem" "$dir/ca/client-key.pem"
  cp "$dir/ca/ca.pem" "$dir/redis/ca.pem"
  mv "$dir/ca/server-key.pem" "$dir/redis/redis-key.pem"
  mv "$dir/ca/server.pem" "$dir/redis/redis.pem"
  password=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
  printf 'requirepass %s\nmasterauth %s\n' "$password" "$password" >"$dir/redis/redis-auth.conf"
  printf 'rediss://:%s@%s:6379' "$password" "$REDIS_HOST" >"$dir/redis/store-url"
fi
echo "The secrets are in $dir."
