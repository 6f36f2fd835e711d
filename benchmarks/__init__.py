"""Measure torch_corr against PyTorch and its peers: correct first, then timed, then pictured.

python -m benchmarks --quick
python -m benchmarks --help
"""
