"""Adaptive rank: the rank of each LoRA layer is found while it trains. `controller` has the picture and reads like pseudocode.

controller        joins all others: proposes, evaluates, decides
config            every constant, with its meaning
defaults          what a training takes where nothing is given
statistics        second moments of z and dz, per layer
components        one layer's components: basis, importance, change
pruning_rule      which components go first; others plug in here
evidence          losses of held-out rows, bounds, acceptance rules
decision          a proposal and what became of it
resize            layers, optimizer state and statistics of another rank
torch_optimizer   what of an optimizer's state follows a resize
guard             numbers that aren't finite, and layers that others changed
too_little        what is done where data or steps are too few
compress          prunes a finished adapter, all at once
trainer_callback  all of it in a Transformers `Trainer`
"""
