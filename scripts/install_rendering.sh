#!/bin/sh
# Checks that MuJoCo can render here. As root on Debian or Ubuntu, installs what is missing; elsewhere says what to run.
#
# Usage: scripts/install_rendering.sh PYTHON     (an interpreter that has regrasp)
set -eu

python=$1

can_render() {
    "$python" -m regrasp doctor --rendering
}

can_render && exit 0

packages=$("$python" -c 'from regrasp.envs.mujoco.backend import PACKAGES; print(*PACKAGES)')
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    apt-get update
    # shellcheck disable=SC2086  # one word per package
    apt-get install --yes --no-install-recommends $packages
    can_render
elif command -v apt-get >/dev/null; then
    printf '\nRun this, then make again:\n\n    sudo apt-get install --yes %s\n\n' "$packages" >&2
    exit 2
else
    echo "Install EGL and Mesa's software driver with this system's package manager, then run make again." >&2
    exit 2
fi
