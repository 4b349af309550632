"""The LoRA layer, where it goes in a model, how it is scaled, and bases in 8 or 4 bits."""
