"""The gate before the logits: texts that the native model wrote, and how likely the port finds them. No sampling here.

    write_continuations(model, prompts, head, journal, watch) -> Continuations       # where the native model runs
    run_gate(model, continuations, rules, journal, binding, watch) -> Gate           # where the port runs

stored.py: the part of a baseline. texts.py: what is asked of a model, be it the bundled engine or a server (served.py).
writing.py, gate.py: the two sides. figures.py: what the page draws.
"""
