"""The behaviour stage: does the port keep the chat format, count tokens as the native model does, call tools, not loop?

    recorded = answer_prompts(asker, subject, rules, journal, watch)   # ask.py; on both machines
    stage = behaviour_stage(release, port, native, rules)              # stage.py

prompts.py (and prompts.json): what is asked. signs.py: what is looked for in an answer. answers.py: what is kept of
one. rates.py: two rates and the interval of their difference. golden.py: the chat encoding against the release's own
pairs.
"""
