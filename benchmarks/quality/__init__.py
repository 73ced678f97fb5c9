"""How good the hits are, and what training, tuning and feedback gain; the folder above measures time and memory.

Scripts, run as ``python benchmarks/quality/retrieval.py``: they import each other by their names alone.
"""
