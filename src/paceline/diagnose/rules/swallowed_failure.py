"""A step fails, the exception is swallowed, and the request is answered all the same.

Rule: a failed call or span below a successful request, in at least 5 % of requests or at least 3 of them. A failure
that a later call of the same kind and step makes good is a retry, not a finding. Of a failure and those it caused
further out, the innermost is reported.

Thresholds: 5 % or 3 are ours; one or two may be the network's weather, three of the same kind are a cause.

Assumptions: what is recorded as failed did fail, and the answer lacked what it would have given. Wrong when the
application asks in order to be refused ("does it exist?") and takes the error for an answer; then the confidence
still says 0.9, and the remedy is to ask differently. The saving is 0: what the missing step would have taken, and
what its result would have spared later steps, was not recorded. That is why these findings are ranked first.
"""

from collections import Counter, defaultdict

from paceline.diagnose.view import EXAMPLES, View, commonest, endpoint, mean, surer
from paceline.model.finding import Evidence, Finding, Saving, Where
from paceline.model.span import EXCEPTION_MESSAGE, EXCEPTION_TYPE
from paceline.trace.failures import Failure, swallowed_failures
from paceline.trace.tree import Trace, critical_path

RULE = "swallowed_failure"
LEAST_SHARE = 0.05
LEAST_COUNT = 3
_TIMED = 200  # traces whose critical path is looked at

Hidden = tuple[Trace, Failure]


def swallowed_failure(view: View) -> list[Finding]:
    """One finding per failing step and error."""
    groups: defaultdict[tuple[str, str, str], list[Hidden]] = defaultdict(list)
    for trace in view.traces:
        for failure in swallowed_failures(trace):
            groups[failure.step or failure.span.name, failure.kind, failure.error].append((trace, failure))
    found = []
    for (step, _, error), hidden in sorted(groups.items()):
        affected = len({trace.trace_id for trace, _ in hidden})
        if affected >= LEAST_COUNT or affected >= LEAST_SHARE * len(view.traces):
            found.append(_finding(view, step, error.rsplit(".", 1)[-1], hidden, affected))
    return found


def _finding(view: View, step: str, error: str, hidden: list[Hidden], affected: int) -> Finding:
    hidden.sort(key=lambda h: (h[1].span.start_ns, h[1].span.span_id))
    first = hidden[0][1]
    share = affected / view.requests
    followed_by = commonest(f.followed_by for _, f in hidden)
    instead = f"; {followed_by} goes on without it" if followed_by else ""
    endpoints = {endpoint(trace) for trace, _ in hidden}
    facts: dict[str, float | int | str] = {
        "request_ratio": round(share, 4),
        "failures": len(hidden),
        "exception": str(first.span.attributes.get(EXCEPTION_TYPE, first.error)),
    }
    message = Counter(str(f.span.attributes.get(EXCEPTION_MESSAGE, "")) for _, f in hidden).most_common(1)[0][0]
    facts |= {"message": message} if message else {}
    facts |= {"followed_by": followed_by} if followed_by else {}
    return Finding(
        rule=RULE,
        title=f"{step} fails with {error} in {share:.0%} of requests and nobody sees it{instead}",
        where=Where(
            endpoint=endpoints.pop() if len(endpoints) == 1 else None,
            step=step,
            code=first.code,
            fingerprint=first.span.fingerprint,
        ),
        evidence=Evidence(
            span_ids=[f.span.span_id for _, f in hidden[:EXAMPLES]],
            trace_ids=list(dict.fromkeys(t.trace_id for t, _ in hidden[:EXAMPLES])),
            count=affected,
            of=len(view.traces),
            facts=facts,
        ),
        critical_path_s=mean(dict(critical_path(t)).get(f.span.span_id, 0.0) for t, f in hidden[:_TIMED]),
        saving=Saving(),
        confidence=surer(0.9, affected),
        remedy=f"Make {step} work, let /ready check what it needs, and count or raise {error} instead of hiding it; "
        "answers made without it are worse, whatever their speed.",
    )
