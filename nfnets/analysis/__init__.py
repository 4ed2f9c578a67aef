"""Looking at models and runs: tables and plots."""
