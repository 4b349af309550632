"""Packed training: batches without padding, and the step of every method.

batches ─► packing, layout                 which rows make a batch; its tokens as one sequence, and the rows' boundaries
attention, dropout, pooling                what packed rows have computed in another way than in Transformers
packed_mode ─► pack_check                  a model that takes packed rows; whether it gives what it gives without packing
execution, threads ─► compute              micro-batches side by side; how a model is run
batch_schedule ─► training ─► checkpoint   which rows each step takes; the step; its state on disk
optim, mixed_precision, held_out           what a step updates, computes with, and decides ranks on
measure, profiling, autotune               time and memory; which steps are followed; how batches are run fastest
"""
