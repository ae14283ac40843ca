"""lm-eval's command line with the engine among its models: `python -m flagrelease.validate.exams.harness run ...`.

lm-eval has no plugins, so its own command cannot know a model that it did not import.
"""

from lm_eval.__main__ import cli_evaluate

import flagrelease.validate.exams.harness.model  # noqa: F401  # registers the engine

cli_evaluate()
