"""Adaptive rank: statistics, components, the pruning rule, held-out evidence, resizing, and the controller that joins them."""
