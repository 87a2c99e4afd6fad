"""A step sends far more than it needs: the same long instructions, the whole history, context by the page.

Rule, per step, over calls the provider was asked and answered; any of
- system: at least 1,000 tokens of instructions, the same number in 95 % of calls;
- history: earlier messages of at least 1,000 tokens on average;
- context: a user part of at least 4,000 tokens and 20 times the output.
The input must be at least 5 times the output, and less than half of the oversized part already be cached by the
provider (it is then paid at a fraction).

Thresholds are ours: 1,000 tokens are two pages of instructions, which few steps need; three messages of a
conversation are about 300 tokens; the context rule is five chunks of 800 tokens.

Assumptions behind the saving, which the facts repeat: instructions can shrink to 500 tokens (300 where the output is
a label of at most 20 tokens), history to 300, oversized context to three fifths (5 chunks to 3). Only the price of
input tokens is counted; time to first token also falls, by an amount this run can't tell. Wrong when every token
counts (few-shot examples, legal text): the golden set decides.
"""

from paceline.diagnose.view import Seen, View, asked, commonest, evidence, mean, median_of, surer, where
from paceline.model.change import Trim
from paceline.model.estimate import Range
from paceline.model.finding import Finding, Saving
from paceline.model.price import price_of
from paceline.model.span import PROMPT_HISTORY_TOKENS, PROMPT_SYSTEM_TOKENS, PROMPT_USER_TOKENS

RULE = "oversized_prompt"
LEAST_SYSTEM, LEAST_HISTORY, LEAST_CONTEXT = 1_000, 1_000, 4_000
LEAST_INPUT_RATIO, LEAST_CONTEXT_RATIO = 5.0, 20.0
LEAST_SHARE = 0.05  # of requests
_ENOUGH_SYSTEM, _ENOUGH_SYSTEM_FOR_LABEL, _ENOUGH_HISTORY, _CONTEXT_RATIO = 500, 300, 300, 0.6
_LABEL_TOKENS = 20
_UNSURE = 0.25  # how far off the trimmed share may be, either way

Facts = dict[str, float | int | str]


def oversized_prompt(view: View) -> list[Finding]:
    """One finding per step."""
    found = []
    for calls in view.steps().values():
        made = [s for s in calls if s.call.ok and asked(s) and s.call.input_tokens]
        requests = len({s.trace.trace_id for s in made})
        if not made or requests < LEAST_SHARE * len(view.traces):
            continue
        spared, facts = _spare(made)
        if spared > 0 and mean(s.call.cached_tokens or 0 for s in made) < spared / 2:
            found.append(_finding(view, made, spared, facts))
    return found


def _spare(made: list[Seen]) -> tuple[float, Facts]:
    """Tokens per call that could go, 0 when the prompt is fine, and the facts by role."""
    system = _parts(made, PROMPT_SYSTEM_TOKENS)
    history = mean(_parts(made, PROMPT_HISTORY_TOKENS))
    context = mean(_parts(made, PROMPT_USER_TOKENS))
    inputs = mean(s.call.input_tokens or 0 for s in made)
    output = max(1.0, mean(s.call.output_tokens or 0 for s in made))
    facts: Facts = {"input_tokens": inputs, "output_tokens": output, "system_tokens": mean(system)}
    facts |= {"history_tokens": history, "user_tokens": context}
    if not system or inputs < LEAST_INPUT_RATIO * output:
        return 0.0, facts
    spared = 0.0
    usual = median_of(system) or 0.0
    same = sum(abs(tokens - usual) <= 0.01 * usual for tokens in system) / len(system)
    if usual >= LEAST_SYSTEM and same >= 0.95:
        enough = _ENOUGH_SYSTEM_FOR_LABEL if output <= _LABEL_TOKENS else _ENOUGH_SYSTEM
        spared += usual - enough
        facts |= {"same_system_ratio": same, "assumed_system_tokens": enough}
    if history >= LEAST_HISTORY:
        spared += history - _ENOUGH_HISTORY
        facts |= {"longest_history_tokens": max(_parts(made, PROMPT_HISTORY_TOKENS))}
        facts |= {"assumed_history_tokens": _ENOUGH_HISTORY}
    if context >= LEAST_CONTEXT and context >= LEAST_CONTEXT_RATIO * output:
        spared += context * (1 - _CONTEXT_RATIO)
        facts |= {"assumed_context_ratio": _CONTEXT_RATIO}
    return min(spared, inputs * 0.95), facts


def _finding(view: View, made: list[Seen], spared: float, facts: Facts) -> Finding:
    step, inputs = made[0].call.step, mean(s.call.input_tokens or 0 for s in made)
    ratio = 1 - spared / inputs
    model = commonest(s.call.model for s in made)
    price = price_of(model) if model else None
    if price is None:
        facts["cost_unknown"] = len(made)
    affected = len({s.trace.trace_id for s in made})
    heaviest = max(("system", "history", "user"), key=lambda role: float(facts[f"{role}_tokens"]))
    return Finding(
        rule=RULE,
        title=f"{step} sends {inputs:,.0f} tokens to get {float(facts['output_tokens']):,.0f} back, "
        f"{float(facts[f'{heaviest}_tokens']) / inputs:.0%} of them {_WORDS[heaviest]}",
        where=where(made),
        evidence=evidence(made, affected, len(view.traces), facts),
        critical_path_s=sum(s.path_s for s in made) / affected,
        saving=Saving(cost_per_1000_usd=view.per_1000(spared * len(made) * price.input_usd) if price else 0.0),
        confidence=surer(0.7, affected),
        remedy="Give the step only the rules it needs, the last few messages, and fewer or shorter chunks of context; "
        "what must stay, put first and unchanged, so that the provider can cache it.",
        change=Trim(step=step, input_ratio=Range(round(ratio * (1 - _UNSURE), 3), round(ratio * (1 + _UNSURE), 3))),
    )


_WORDS = {"system": "the same instructions every time", "history": "earlier messages", "user": "context"}


def _parts(made: list[Seen], name: str) -> list[int]:
    values = (s.call.attribute(name) for s in made)
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool)]
