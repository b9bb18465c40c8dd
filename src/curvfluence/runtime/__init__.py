"""The machine that everything runs on: its devices, random generators and precision."""
