"""What must survive a kill at any moment: whole files, append-only logs, folders that a command begins and resumes."""
