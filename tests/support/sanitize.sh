#!/bin/sh
# Tests the kernels with the address and undefined-behaviour sanitizers:
#     tests/support/sanitize.sh [seconds] [seed]
# Builds a copy of the package in a temporary directory, fuzzes its native entry points, then runs the
# laws of `direct`.  The installed package stays as it is.
set -e
root=$(cd "$(dirname "$0")/../.." && pwd)
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python -m pip install -q --no-deps --target "$site" -C cmake.define.TORCH_CORR_SANITIZE=ON \
    -C build-dir="$site/build" "$root"
export PYTHONPATH="$site" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
export LD_PRELOAD
python "$root/tests/support/fuzz_native.py" "${1:-60}" "${2:-0}"

# Run from another folder and without the finder of an editable installation: Python would import the
# package from either of them first.
cd "$site"
python -c '
import sys
sys.meta_path[:] = [each for each in sys.meta_path if "ScikitBuild" not in type(each).__name__]
import pytest, torch_corr.native._compiled
print("laws with", torch_corr.native._compiled.__file__)
sys.exit(pytest.main(sys.argv[1:]))
' -q -p no:cacheprovider -c "$root/pyproject.toml" --rootdir "$root" \
    "$root/tests/algorithms/test_laws.py" "$root/tests/algorithms/test_direct.py" \
    -k "test_laws and direct or test_edges or entry_points"
