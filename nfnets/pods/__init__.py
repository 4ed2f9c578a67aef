"""Ahead-of-time compilation of training steps for TPUs and GPUs, and reports on them."""
