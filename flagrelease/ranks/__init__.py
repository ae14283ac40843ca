"""The processes that hold one model together, from outside of torch: who this one is, and how they start and end.

job.py: this process's place. launch.py: starts the ranks of a command on this machine and reports what became of them;
member.py is what each of them runs. status.py: the exit code and the words, in a file. lifetime.py: no rank outlives
whoever started it. command.py: the option `--ranks`.
"""
