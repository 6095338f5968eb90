#!/bin/sh
# Builds the docs site into site/, and fails at a link or an anchor that leads nowhere.
#
# Usage: scripts/build_docs.sh PYTHON     (3.11 or newer; the environment .venv-docs is made from it once)
set -eu

python=$1
if ! cmp -s docs/requirements.txt .venv-docs/requirements.txt; then
    rm -rf .venv-docs
    "$python" -m venv .venv-docs
    .venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --requirement docs/requirements.txt
    cp docs/requirements.txt .venv-docs/
fi
NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict --quiet
echo "Docs: $(pwd)/site/index.html"
