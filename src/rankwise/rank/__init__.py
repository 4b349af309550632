"""Adaptive rank: the rank of each LoRA layer is found while it trains. `controller` has the picture and reads like pseudocode.

config          every constant, with its meaning and its evidence          decision   a proposal and what became of it
statistics      second moments of z and dz, per layer                      resize     layers, optimizer state and statistics of another rank
components      one layer's components: basis, importance, change          controller joins them
pruning_rule    which components go first; others plug in here             defaults   what a training takes where nothing is given
evidence        losses of held-out rows, bounds, acceptance rules          too_little what is done where data or steps are too few
torch_optimizer  what of an optimizer's state follows a resize
"""
