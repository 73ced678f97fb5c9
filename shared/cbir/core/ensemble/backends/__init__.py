"""Backends: each turns a member of an ensemble into an embedder with one model library."""
