"""Packed training: batches without padding, and the step of every method.

packing ─► packed_mode, pack_check         a batch as one sequence of tokens, the model on it, and whether it can be
attention, dropout, pooling                what is computed in another way than in Transformers
execution, threads ─► compute              micro-batches side by side; how a model is run
batch_schedule ─► training ─► checkpoint   which rows each step takes; the step; its state on disk
optim, mixed_precision, held_out           what a step updates, computes with, and decides ranks on
measure, profiling, autotune               time and memory; which steps are followed; how batches are run fastest
"""
