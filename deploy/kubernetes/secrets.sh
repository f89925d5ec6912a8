#!/bin/sh
# Makes the folder secrets/ beside this file, from which `kubectl apply -k` makes Secrets.
# It needs treadle on PATH. Names given as arguments are added to those of the servers'
# certificate: secrets.sh fabric.example.com
set -eu
cd "$(dirname "$0")"
REDIS_HOST=${REDIS_HOST:-treadle-redis} exec ../secrets.sh secrets treadle-server treadle-server.treadle treadle-server.treadle.svc \
  treadle-server.treadle.svc.cluster.local '*.treadle-dispatcher' "$@"
