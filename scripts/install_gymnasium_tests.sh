#!/bin/sh
# Makes the environments in which `make test-all` plays what others wrote for Gymnasium, beside the given interpreter's.
#
# Usage: scripts/install_gymnasium_tests.sh PYTHON     (an interpreter that has regrasp and its development tools)
#
# Meta-World and Gymnasium-Robotics want another MuJoCo than Regrasp's own simulator. Without a network their tests are
# skipped, and say so.
set -eu

python=$1
prefix=$("$python" -c 'import sys; print(sys.prefix)')

make_environment() {
    folder=$prefix/$1
    shift
    [ -e "$folder/complete" ] && return
    rm -rf "$folder"
    "$python" -m venv --without-pip "$folder"
    site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    if "$python" -m pip install --quiet --disable-pip-version-check --no-compile --only-binary=:all: \
        --ignore-installed --target "$site" "$@"; then
        touch "$folder/complete"
    else
        rm -rf "$folder"
        echo "THE TESTS OF $1 WILL BE SKIPPED: it could not be fetched (see above)." >&2
    fi
}

make_environment metaworld metaworld==3.1.1 mujoco==3.3.0 gymnasium==1.4.0 packaging
make_environment robotics gymnasium-robotics==1.4.2 mujoco==3.3.0 gymnasium==1.4.0
