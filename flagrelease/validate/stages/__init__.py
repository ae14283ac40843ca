"""The stages of a validation in order: what is asked, what a folder remembers of it, and the report.

    report = validate(prepare(request), watch)  # preconditions.py, run.py
    record(recording, watch)                    # record.py: the native side, for another machine

request.py: what is asked. stage.py: what a stage is. file_stages.py, model_stages.py: the stages. asking.py: who
answers.
port.py: the model that they share. state.py: what is finished.
preconditions.py: what is read and compared first. environment.py: machine and versions. summary.py: for the terminal.
"""
