"""The behaviour stage: does the port keep the chat format, count tokens as the native model does, call tools, not loop?

    answering = EngineAsker(scheduler, effort, rules)    # ask.py; or EndpointAsker(endpoint, effort, rules), served.py
    recorded = collect(answering, subject, stack, rules, journal, watch)   # journal.py; on both machines
    stage = behaviour_stage(release, port, native)       # stage.py

prompts.py (and prompts.json): what is asked. signs.py: what is looked for in an answer. answers.py: what is kept of
one. rates.py: two rates and the interval of their difference. golden.py: the chat encoding against the release's own
pairs.
"""
