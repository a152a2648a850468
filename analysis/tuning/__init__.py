"""What tuning a model gains and what it forgets, which way is worth it, and what damage a tuned model withstands."""
