"""The long-context stage: does the port find and follow entries in long registers as the native model does?

registers.py: texts by rule. items.py: the questions of one length, exact in tokens. verdict.py: two sides to a stage.
"""
