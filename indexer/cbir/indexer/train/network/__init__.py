"""The network that is trained, which of its layers are, and the head that it leaves."""
