"""What Paceline costs and how right it is: `python -m benchmarks.NAME --json [--quick]` prints one JSON object."""
