"""How a training starts. `local` runs torchrun as a subprocess; Kubernetes comes behind the same interface."""
