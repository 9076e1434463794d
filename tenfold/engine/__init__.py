"""What all training shares: loader, loop, optimizers, checkpoints."""
