#!/bin/sh
# Makes .venv with everything the project needs. Wants Python 3.11 to 3.13 and a package index, nothing else.
set -eu
cd "$(dirname "$0")/.."

VENV=.venv

say() { printf 'setup: %s\n' "$*" >&2; }

# python3 first: it is what the user chose; then those that are installed beside it.
find_python() {
    for name in python3 python python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1; then
            echo "$name"
            return
        fi
    done
}

if ! "$VENV/bin/python" -c '' 2>/dev/null; then
    python=$(find_python)
    if [ -z "$python" ]; then
        say "no Python 3.11, 3.12 or 3.13 was found ($(command -v python3 >/dev/null && python3 --version || echo 'there is no python3')): install one and run this again"
        exit 1
    fi
    say "making $VENV with $($python --version)"
    rm -rf "$VENV"
    if ! "$python" -m venv "$VENV"; then
        rm -rf "$VENV"
        say "$python cannot make an environment: install its venv module (Debian, Ubuntu: apt install python3-venv)"
        exit 1
    fi
fi

if ! "$VENV/bin/python" -m uv --version >/dev/null 2>&1; then
    say "installing uv into $VENV"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/setup.lock
fi

# Wheels of torch and its libraries are hundreds of megabytes; uv's default of 30 s is short for a slow line.
UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-300}
export UV_HTTP_TIMEOUT
VIRTUAL_ENV="$PWD/$VENV"
export VIRTUAL_ENV

say "installing the pinned dependencies (the first time this fetches a few gigabytes)"
"$VENV/bin/python" -m uv pip install --quiet --require-hashes -r requirements.lock -r locks/services.lock
# Built with what has just been installed, so that nothing comes in past the lock.
"$VENV/bin/python" -m uv pip install --quiet --no-deps --no-build-isolation ./packages/weights
"$VENV/bin/python" -m uv pip install --quiet --no-deps --no-build-isolation -e .

# Annoy is published as source only. It is one of three kinds of index, so that nothing depends on it.
if "$VENV/bin/python" -c 'import annoy' 2>/dev/null; then
    :
elif command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null; then
    say "building annoy"
    if ! "$VENV/bin/python" -m uv pip install --quiet --require-hashes --no-build-isolation -r locks/annoy.lock; then
        say "annoy could not be built (the Python headers may be missing); the rest works without it"
    fi
else
    say "no C++ compiler: left annoy out; the rest works without it"
fi
say "done"
