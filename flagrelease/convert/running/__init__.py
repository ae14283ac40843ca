"""From a plan to complete releases, and the journal that lets an interrupted conversion resume."""
