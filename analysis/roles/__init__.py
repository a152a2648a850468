"""What critical weights do: roles, what attention does under damage, and where facts are."""
