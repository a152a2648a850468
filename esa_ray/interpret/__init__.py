"""What the weights that a model hangs on do: roles, attention, facts."""
