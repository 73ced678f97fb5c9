"""Matrices: the vectors on the device that searches them, and the products of queries with all of them."""
