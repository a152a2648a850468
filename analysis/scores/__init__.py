"""What the scores say: where they are high, whether seeds and scores agree, how they are distributed."""
