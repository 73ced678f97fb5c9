"""Load: requests, when they are sent, the generator that sends them, and what became of them."""
