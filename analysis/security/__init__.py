"""What faults and attacks on stored weights do: how likely they break a model, where, and what protection buys."""
