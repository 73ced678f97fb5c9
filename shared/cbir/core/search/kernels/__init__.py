"""Kernels: the ways to list rows by estimated score, and how this machine's is chosen by measuring."""
