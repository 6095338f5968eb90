#!/bin/sh
# Makes the environments in which `make test-all` loads RLinf's releases, beside the given interpreter's own.
#
# Usage: scripts/install_rlinf_tests.sh PYTHON     (an interpreter that has regrasp and its development tools)
#
# Each holds RLinf's wheel, the newest Transformers that it takes, and a path to our torch, Ray and NumPy: it asks for
# much that these tests do not import. Without a network the tests are skipped, and say so.
set -eu

python=$1
prefix=$("$python" -c 'import sys; print(sys.prefix)')

transformers="transformers==4.57.6 tokenizers==0.22.2 huggingface-hub==0.36.2"

for version in 0.2 0.3.0; do
    folder=$prefix/rlinf-$version
    [ "$(cat "$folder/complete" 2>/dev/null)" = "$transformers" ] && continue
    rm -rf "$folder"
    "$python" -m venv --without-pip "$folder"
    site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/ours.pth"
    if "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --ignore-requires-python \
        --only-binary=:all: --target "$site" "rlinf==$version" $transformers; then
        echo "$transformers" >"$folder/complete"
    else
        rm -rf "$folder"
        echo "THE TESTS WITH RLINF $version WILL BE SKIPPED: it could not be fetched (see above)." >&2
    fi
done
