#!/bin/sh
# Makes the small environment in which the tests step the real `isaaclab` wheel, beside the given interpreter's own.
#
# Usage: scripts/install_isaaclab_tests.sh PYTHON     (an interpreter that has regrasp and its development tools)
#
# It holds the wheel (3 MB, pure Python), what the wheel imports and ours lacks, and a path to our torch and NumPy.
# Isaac Sim is not installed: the tests stand in for it. Without a network the tests are skipped, and say so.
set -eu

python=$1
folder=$("$python" -c 'import sys; print(sys.prefix)')/isaaclab

[ -e "$folder/complete" ] && exit 0
rm -rf "$folder"
"$python" -m venv --without-pip "$folder"
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/ours.pth"

# The wheel is tagged for Python 3.11 on Linux, but holds no compiled code.
if "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --target "$site" \
    --only-binary=:all: --python-version 3.11 --implementation cp --abi none --platform manylinux_2_35_x86_64 \
    isaaclab==2.3.2.post1 gymnasium==1.2.0 cloudpickle==3.1.2 prettytable==3.3.0 toml==0.10.2 wcwidth==0.2.13; then
    touch "$folder/complete"
else
    rm -rf "$folder"
    echo "THE ISAAC LAB TESTS WILL BE SKIPPED: the isaaclab wheel could not be fetched (see above)." >&2
fi
