"""Files that survive a kill: whole-file writes, an append log, and folders that can be begun or resumed."""
