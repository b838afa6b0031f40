"""Training: state, optimizer, schedule, step, loop, hooks, checkpoints, records, evaluation."""
