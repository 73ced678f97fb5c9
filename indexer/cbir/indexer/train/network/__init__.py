"""The network that is trained, which of its layers are trained, and the head it is exported with."""
