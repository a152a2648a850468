"""What sensitivity is good for: compressing a model layer by layer."""
