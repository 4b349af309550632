"""Packed training: batches without padding, attention, dropout, the optimizer, and the training step."""
