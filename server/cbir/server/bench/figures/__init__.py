"""Figures: a load's outcomes as percentiles, rates, ratios, tables and a picture."""
