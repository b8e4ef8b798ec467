"""The network: tensors in, tensors out. Begin with `network.py`."""
