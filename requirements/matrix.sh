#!/bin/sh
# Runs a smoke selection on pairs of Python and torch: the oldest, the newest, and each Python between.
# Interpreters are those already on this machine; a missing one is named and passed over.
set -u

# pyenv's shims answer only for the version in use; what it has installed lies beside them.
for bin in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin; do
    [ -d "$bin" ] && PATH="$bin:$PATH"
done

# The layers a worker runs on; what only the driver needs is the same everywhere.
SMOKE="tests/worker --ignore tests/worker/cli --ignore tests/worker/local --ignore tests/worker/control"
PAIRS="3.10:torch==2.6.* 3.11:torch 3.12:torch 3.13:torch 3.14:torch"
failed=""
missing=""
passed=""

for pair in ${PAIRS_ONLY:-$PAIRS}; do
    version=${pair%%:*} torch=${pair#*:}
    python=$(uv python find --no-python-downloads --no-project "$version" 2>/dev/null) || python=""
    if [ -z "$python" ]; then
        echo "== Python $version: not on this machine, not tested"
        missing="$missing $version"
        continue
    fi
    venv=".venv-$version"
    echo "== Python $version, $torch ($venv)"
    # Not the lock: the point is what a user's image may hold.
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || exit 1
    if VIRTUAL_ENV="$venv" uv pip install -q --compile-bytecode "$torch" numpy hypothesis pytest pytest-timeout --editable ".[local]" \
        && "$venv/bin/python" -m pytest $SMOKE; then
        passed="$passed $version"
    else
        failed="$failed $version"
    fi
done

echo "== passed:${passed:- none}; failed:${failed:- none}; not on this machine:${missing:- none}"
[ -z "$failed" ] && [ -n "$passed" ]
