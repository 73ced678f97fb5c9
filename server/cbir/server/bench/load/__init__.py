"""Load: which requests are sent when, by whom, and what became of them."""
