"""What a score is worth: single-weight damage against what scores and gradients predict."""
