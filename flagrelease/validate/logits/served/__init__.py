"""Logits over an endpoint: a server's short lists of log-probabilities against the runs of a baseline.

    run_served(server, baseline, rules, work, progress) -> Stage        # stage.py

server.py: a release and who serves it. ways.py: how servers tell the log-probabilities of prompts, and the first way
that works; names.py, reading.py: from a reply to arrays. kept.py: what is kept while it runs. bounds.py: what short
lists say of KL. evaluation.py: from arrays to figures of tokens. verdict.py, figures.py: the stage.
"""
