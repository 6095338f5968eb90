#!/bin/sh
# Installs this repository, editable, into .venv, with the versions of constraints.txt.
#
# Usage: scripts/install.sh PYTHON REQUIREMENT [TORCH_INDEX]
#   PYTHON       interpreter that .venv is made from, 3.11 or newer
#   REQUIREMENT  "." or ".[dev]"
#   TORCH_INDEX  package index that torch alone is taken from
set -eu

python=$1
requirement=$2
torch_index=${3:-}
venv_python=.venv/bin/python

fail() {
    printf '\nerror: %s\n' "$*" >&2
    exit 2
}

check_python() {
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
        fail "'$python' does not run. Install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3.12 ..."
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "Python 3.11 or newer is needed, and '$python' is $version. Name another: make PYTHON=python3.12 ..."
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "'$python' cannot create virtual environments. On Debian or Ubuntu: sudo apt-get install python$version-venv"
}

has_nvidia_gpu() {
    command -v nvidia-smi >/dev/null || [ -e /dev/nvidia0 ]
}

install_torch() {
    version=$(sed -n 's/^torch==//p' constraints.txt)
    installed=$("$venv_python" -c 'import importlib.metadata as m; print(*(d.version for d in m.distributions(name="torch")))')
    [ "${installed%%+*}" = "$version" ] && return
    # Dependencies of torch come later, from the usual index: a torch index need not have the pinned versions.
    set -- -m pip install --no-deps
    [ -z "$torch_index" ] || set -- "$@" --index-url "$torch_index"
    if [ "$(uname -s)" = Linux ] && ! has_nvidia_gpu; then
        "$venv_python" "$@" "torch==$version+cpu" 2>.venv/torch.log && return
        sed 's/^/  pip: /' .venv/torch.log >&2
        echo "No CPU build of torch $version was found: installing the standard build, which is several GB larger." >&2
        echo "TORCH_INDEX avoids that, see CONTRIBUTING.md." >&2
    fi
    "$venv_python" "$@" "torch==$version"
}

check_python
"$venv_python" -m pip --version >/dev/null 2>&1 || "$python" -m venv .venv
install_torch
"$venv_python" -m pip install --constraint constraints.txt --editable "$requirement"
if "$venv_python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torchvision") is None)'; then
    fail "torchvision is in .venv. transformers then imports it, and fails if it does not match torch. Remove it:
       $venv_python -m pip uninstall torchvision"
fi
