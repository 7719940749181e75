"""Side-by-side measurements, one command each; see docs/benchmarks.md."""
