"""From a recipe to published releases: convert, verify, validate, publish, for the chips of the recipe.

request.py: what is asked. steps.py: what is known of a chip at the end. conversion.py, validation.py, publication.py:
the stages. run.py: all of them in order. There is no state of its own: a stage goes on from what it left on the disk.
"""
