"""Any server that speaks OpenAI's API, measured from outside."""
