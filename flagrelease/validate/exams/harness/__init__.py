"""lm-eval: its task definitions, and the models that answer them. Only this folder imports it."""
