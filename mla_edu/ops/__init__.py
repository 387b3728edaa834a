"""Functions on tensors: no module, no configuration."""
