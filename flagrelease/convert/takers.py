"""Who is to take the releases of a plan: a plan that a hub or a stack of the recipe does not take is refused."""

from __future__ import annotations

from flagrelease.convert.planning.collector import paused_collector
from flagrelease.convert.planning.fit import hub_problems
from flagrelease.convert.planning.plan import Plan
from flagrelease.convert.request import ConversionRequest
from flagrelease.errors import UsageError


@paused_collector()
def require_takers(plan: Plan, request: ConversionRequest) -> None:
    """Refuse what `Summary.require_takers` refuses, without looking at chips and stacks that the request does not name.

    Raises:
        UsageError: as there.
    """
    named = {one.target for one in request.chips if one.stack is not None}
    if of_stacks := [release for release in plan.releases if release.target in named]:
        from flagrelease.convert.stacks import judge_stacks, stack_problems  # the loaders' rules

        for release in of_stacks:
            for problem in stack_problems(release.target.folder, judge_stacks(release, request.chips)):
                raise UsageError(problem)
    for release in plan.releases:
        for problem in hub_problems(release, request.hubs):
            raise UsageError(problem)
