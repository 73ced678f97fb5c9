"""How results are shown and taken apart: tables, notebooks, colours."""
