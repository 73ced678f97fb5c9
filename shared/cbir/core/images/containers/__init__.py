"""Containers: the files that pictures come in, and how what no pixel needs is taken out of them."""
