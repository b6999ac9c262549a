"""Benchmarks: how fast each part is, beside its peers and beside what the machine could do at most."""
