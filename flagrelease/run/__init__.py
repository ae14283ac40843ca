"""From a recipe to published releases: convert, verify, validate, publish, for the chips of the recipe.

run.py: all stages in order. request.py: what is asked. needs.py: what is looked at first. conversion.py,
verification.py, baseline.py, validation.py, publication.py: the stages. judgement.py: what a report says of a chip.
on_ranks.py: commands on several ranks. steps.py: what is known of a chip on its way and at the end. A release is read
once, behind the conversion, and handed on. `run` keeps no state of its own: stages resume from what is on the disk.
"""
