"""`flagrelease site`: a static site over an output folder: releases, verdicts, nights, and what changed."""
