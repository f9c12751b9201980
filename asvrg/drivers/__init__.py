"""What owns x during an epoch: a simulator, or threads that share a buffer."""
