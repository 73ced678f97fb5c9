"""Figures: percentiles, rates and ratios computed from the outcomes of a load, and tables and a chart of them."""
