"""Networks: the ResNet trunk and what is put on it."""
