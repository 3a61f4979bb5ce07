"""Compiled kernels for processors, in as many threads as torch computes with."""
