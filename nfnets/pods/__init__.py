"""Training steps compiled for TPUs and GPUs that are not there, and what they show."""
