"""Answers that follow a JSON schema, a regular expression, a choice, or the schemas of the tools that they call.

llguidance compiles what is asked for and says which tokens may come next (docs/serving.md tells why that library).
"""
