"""Runtimes: the same network on torch (CPU or CUDA) or on OpenVINO, behind the embedder's interface."""
