"""Pretrained models: where they are found, how they are loaded, and what differs between families."""
