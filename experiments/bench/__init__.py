"""Benchmarks: kernels, steps, loaders, stores and sweeps, each beside what it is compared with."""
