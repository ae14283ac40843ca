#!/usr/bin/env bash
# make_environment.sh FOLDER makes three environments in FOLDER, in which the clients of `flagrelease serve` run: `clients`
# (client libraries and schemathesis), `bench` (lm-eval, guidellm, aiperf) and `evalscope`, which wants an older datasets.
# None of them is a dependency of the package; the tests in this folder ask for them by the path that they are given
# (pytest -m clients --clients FOLDER). It takes ten minutes and 5 GB.
# shellcheck source=tests/environments.sh
source "$(dirname "${BASH_SOURCE[0]}")/../environments.sh"

into clients openai==3.57.0 anthropic==2.14.0 langchain-openai==1.7.4 litellm==1.110.2 llm==0.36 schemathesis==4.32.5
# torch first and alone: a CPU build, where the package index offers one (PIP_EXTRA_INDEX_URL).
into bench torch==2.13.0
into bench 'lm_eval[api]==0.4.13' guidellm==0.8.1 aiperf==0.13.0
into evalscope torch==2.13.0
into evalscope 'evalscope[perf]==1.14.1'
for name in clients bench evalscope; do
  "$folder/$name/bin/python" -m pip --disable-pip-version-check check
done
