"""``cbir bench serve``: what the server costs over its models, its memory and an empty transport.

The server runs in a process of its own, the load comes from another, and everything it is compared with is measured in
turn with it, so that ratios hold on a machine that changes its pace.
"""
