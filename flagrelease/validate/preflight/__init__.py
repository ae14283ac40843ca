"""Minutes before hours: whether a server does what every later stage takes for granted.

asking.py asks everything, and one file for each group of checks judges what came: functions of replies that ask
nothing. check.py: what a check is. fixes.yaml: the line to change, by check and kind of server.
"""
