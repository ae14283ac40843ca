"""The loaders of serving stacks, replayed on headers: what each parameter would hold once a stack has loaded a release.

The entries are `verdict.judge` (a stack and a release), and `replay.replay` (the rules of a loader alone).
"""
