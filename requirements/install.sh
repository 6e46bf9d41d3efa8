#!/bin/sh
# install.sh VENV LOCK [PACKAGE...]: make the virtual environment VENV if need be, and install the locked
# packages of LOCK, then PACKAGEs, then this project, editable. With uv where it can be had, else with pip.
set -eu

venv=$1 lock=$2
shift 2
python=${PYTHON:-python3}

say() { printf 'setup: %s\n' "$*" >&2; }

"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 15))' 2>/dev/null || {
    say "'$python' is not a Python 3.10 to 3.14 ($("$python" --version 2>&1 || echo 'it does not start'));" \
        "name one: make PYTHON=python3.12"
    exit 2
}
[ -x "$venv/bin/python" ] || { say "making $venv with $("$python" --version)"; "$python" -m venv "$venv"; }

[ -x "$venv/bin/uv" ] || "$venv/bin/python" -m pip install -q --disable-pip-version-check uv >&2 \
    || say "uv cannot be installed; going on with pip, which takes longer"

install() {
    if [ -x "$venv/bin/uv" ]; then
        # As pip does: torch takes seconds to import where Python cannot keep what it has compiled.
        VIRTUAL_ENV="$venv" "$venv/bin/uv" pip install -q --compile-bytecode "$@"
    else
        "$venv/bin/python" -m pip install -q --disable-pip-version-check "$@"
    fi
}

say "installing $lock into $venv (torch is large: this may take minutes the first time)"
install -r "$lock"
[ $# -eq 0 ] || install "$@"
install --no-deps --editable .
say "ready"
