#!/bin/sh
# The kernels under the address and undefined-behaviour sanitizers: tests/sanitize.sh [seconds] [seed]
# Builds a copy of the package in a temporary directory; leaves the installed one alone.
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python -m pip install -q --no-deps --target "$site" -C cmake.define.TORCH_CORR_SANITIZE=ON \
    -C build-dir="$site/build" "$root"
export PYTHONPATH="$site" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
    python "$root/tests/fuzz_native.py" "${1:-60}" "${2:-0}"
