"""What a process of each job does."""
