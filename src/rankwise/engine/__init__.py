"""Packed training: batches without padding, and the step of every method.

packing ─► attention, pooling, dropout     a batch as one sequence of tokens, and the model on it
execution, threads ─► compute              micro-batches side by side; how a model is run
batch_schedule ─► training ─► checkpoint   which rows each step takes; the step; its state on disk
optim, mixed_precision, held_out           what a step updates, computes with, and decides ranks on
measure, profiling, autotune               time and memory; which steps are followed; how batches are run fastest
"""
