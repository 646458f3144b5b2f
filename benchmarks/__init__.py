"""Benchmarks: how fast anchorite is against plain yardsticks built here, and how far from physical floors.

Every claim is a ratio of medians taken in one run, its rounds interleaved. The yardsticks are written the way a
competent author of plain PyTorch or OpenCV would write them; tests hold them to the same results as ours. Run one from
a checkout: `python -m benchmarks loss`; `python -m benchmarks --help` lists them.
"""
