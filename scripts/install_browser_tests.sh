#!/bin/sh
# Makes the environment in which the tests look at pages in a real browser, beside the given interpreter's own.
#
# Usage: scripts/install_browser_tests.sh PYTHON     (an interpreter that has regrasp and its development tools)
#
# It holds Playwright and its Chromium, or Playwright alone where REGRASP_TEST_CHROMIUM names a Chromium that is there.
# Without a network the tests are skipped, and say so.
set -eu

python=$1
folder=$("$python" -c 'import sys; print(sys.prefix)')/browser

[ -e "$folder/complete" ] && exit 0
rm -rf "$folder"
"$python" -m venv "$folder"
if "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "playwright>=1.50,<2" &&
    { [ -n "${REGRASP_TEST_CHROMIUM:-}" ] || "$folder/bin/python" -m playwright install --only-shell chromium; }; then
    touch "$folder/complete"
else
    rm -rf "$folder"
    echo "THE BROWSER TESTS WILL BE SKIPPED: Playwright or its Chromium could not be fetched (see above)." >&2
fi
