"""Benchmarks of a machine: the engine, its operators, and any server that speaks OpenAI's API."""
