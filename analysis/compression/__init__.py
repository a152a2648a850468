"""What compressing a model costs, which way costs least, and why."""
