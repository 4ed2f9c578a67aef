"""Forms and settings that only XLA's CPU backend needs; they change speed, not results."""
