"""What damage costs."""
