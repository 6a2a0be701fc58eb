"""Readers of the files that other benchmarks of routing publish. Nothing here opens a pickle."""
